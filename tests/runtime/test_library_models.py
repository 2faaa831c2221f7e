"""Models of transformers and timm, tiny and with random weights: every bit and the predicted peak at three budgets."""

from __future__ import annotations

import pytest
import torch

import revolve
from revolve.runtime.exceptions import ModelError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("torchvision_operators")]

WORDS, WIDE, DEPTH = 64, 32, 3
SIZES = {"hidden_size": WIDE, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "intermediate_size": 64}


def text(**more):
    """Return a batch of words and labels."""
    ids = torch.randint(0, WORDS, (2, 48), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids, "use_cache": False, **more}


def transformers_model(model, config, **settings):
    """Return a model of transformers from its configuration."""
    library = pytest.importorskip("transformers", reason="needs the extra [transformers]")
    torch.manual_seed(0)
    return getattr(library, model)(getattr(library, config)(**settings)).train()


def llama():
    config = {**SIZES, "num_key_value_heads": 2, "vocab_size": WORDS}
    return transformers_model("LlamaForCausalLM", "LlamaConfig", **config), text()


def gpt2():
    config = {"n_embd": WIDE, "n_layer": DEPTH, "n_head": 4, "vocab_size": WORDS, "n_positions": 64}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    return transformers_model("GPT2LMHeadModel", "GPT2Config", **config, **special), text()


def bert():
    model = transformers_model("BertForMaskedLM", "BertConfig", **SIZES, vocab_size=WORDS, max_position_embeddings=64)
    sample = text(attention_mask=torch.ones(2, 48, dtype=torch.long).tril(30))
    del sample["use_cache"]
    return model, sample


def vit():
    model = transformers_model("ViTForImageClassification", "ViTConfig", **SIZES, image_size=32, patch_size=4)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return model, {"pixel_values": images, "labels": torch.tensor([0, 1])}


def t5():
    sizes = {"d_model": WIDE, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": WORDS}
    return transformers_model("T5ForConditionalGeneration", "T5Config", **sizes, decoder_start_token_id=0), text()


def timm_model(name, **settings):
    """Return a model of timm and images for it."""
    library = pytest.importorskip("timm", reason="needs the extra [timm]")
    torch.manual_seed(0)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return library.create_model(name, num_classes=4, **settings).train(), images


TRANSFORMERS = {"llama": llama, "gpt2": gpt2, "bert": bert, "vit": vit, "t5": t5}
TIMM = {
    "resnet": ("resnet26", {}),
    "vit": ("vit_tiny_patch16_224", {"img_size": 64, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4}),
    "convnext": ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "drop_path_rate": 0.2}),
    "densenet": ("densenet121", {"growth_rate": 4, "block_config": (2, 2)}),
}


def check(model, sample, coverage):
    """Train by plans of three budgets."""
    stages = revolve.linearize(model, sample)
    assert stages.coverage >= coverage
    frontier = revolve.solve(revolve.measure(model, sample))
    assert [stage.name for stage in frontier.chain.stages] == [stage.name for stage in stages]
    for peak in (frontier.peaks[0], frontier.peaks[len(frontier.peaks) // 2], frontier.peaks[-2]):
        revolve.checkpointed(model, frontier.plan(int(peak)))
        report = revolve.verify(model, sample, repeats=1)
        assert report.exact, report.differences
        assert report.kept
        assert 0.8 * report.predicted_peak <= report.measured_peak <= report.predicted_peak
    revolve.restore(model)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_models_of_transformers(name):
    check(*TRANSFORMERS[name](), 0.8)


def test_a_cache_is_refused_with_what_to_do():
    model, sample = llama()
    frontier = revolve.solve(revolve.measure(model, sample))
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    with pytest.raises(ModelError, match=r"stage 'model\.layers\.0' is called with a DynamicCache.*use_cache=False"):
        model(**{**sample, "use_cache": True})


@pytest.mark.parametrize("name", TIMM)
def test_models_of_timm(name):
    kind, settings = TIMM[name]
    check(*timm_model(kind, **settings), 0.95)
