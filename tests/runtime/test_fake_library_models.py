"""Models of transformers and any other modules, measured without running: the saved bytes of real measurement."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import revolve

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 128), nn.Linear(128, 32)

    def forward(self, x, scale):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x)))) * scale


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(32, 8)

    def forward(self, x, scale):
        for block in self.blocks:
            x = block(x, scale)
        return self.head(x)


def compare(model, sample):
    real, fake = revolve.measure(model, sample), revolve.measure(model, sample, mode="fake", device="h100")
    assert [s.name for s in fake.stages] == [s.name for s in real.stages]
    assert [s.saved_bytes for s in fake.stages] == [s.saved_bytes for s in real.stages]
    solved, imagined = revolve.solve(real), revolve.solve(fake)
    assert 0.99 * solved.plain <= imagined.plain <= 1.1 * solved.plain
    assert 0.99 * solved.smallest <= imagined.smallest <= 1.1 * solved.smallest


def test_a_module_that_runs_its_stages_itself():
    torch.manual_seed(0)
    compare(Network(), (torch.randn(64, 32), torch.ones(32)))


@pytest.mark.usefixtures("torchvision_operators")
def test_llama_takes_the_way_of_real_tensors():
    library = pytest.importorskip("transformers", reason="needs the extra [transformers]")
    config = library.LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=64, use_cache=False)
    torch.manual_seed(0)
    words = torch.arange(96).reshape(2, 48) % 64
    compare(library.LlamaForCausalLM(config).train(), {"input_ids": words, "labels": words})
