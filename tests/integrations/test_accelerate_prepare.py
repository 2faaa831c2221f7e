"""A training loop with accelerate: a plan may be put on before or after ``prepare``, in full and mixed precision."""

from __future__ import annotations

import pytest
import torch
from pictures import textures
from torch import nn
from vision_operators import define_vision_operators

import revolve
from revolve.runtime.exceptions import ModelError
from revolve.runtime.instrumentation import plan_of

define_vision_operators()
accelerate = pytest.importorskip("accelerate", reason="needs accelerate")


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x):
        return x + self.layers(x)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList(Residual(8) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def sequential():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), *(Residual(8) for _ in range(4)), nn.Flatten(), nn.LazyLinear(3)
    )


def train(build, when, precision):
    """Train with a plan put on at some time; return losses and parameters."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    images, labels = textures(side=16, each=4)
    torch.manual_seed(0)
    model = build().train()
    model(images)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def plan():
        frontier = revolve.solve(revolve.measure(model, images))
        revolve.checkpointed(model, frontier.plan(frontier.smallest))
        assert plan_of(model).counts()["forward"]

    if when == "before":
        plan()
    prepared, optimizer = accelerator.prepare(model, optimizer)
    if when == "after":
        plan()
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(prepared(images), labels)
        accelerator.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses, [*accelerator.unwrap_model(prepared).state_dict().values()]


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("build", [Network, sequential], ids=["module", "sequential"])
def test_losses_and_weights_are_those_of_plain_training(build, when, precision):
    if build is sequential and when == "after" and precision == "bf16":
        with pytest.raises(ModelError, match="forward has been replaced"):  # by prepare: plan before it
            train(build, when, precision)
        return
    plain = train(build, "never", precision)
    planned = train(build, when, precision)
    assert planned[0] == plain[0]
    assert all(torch.equal(a, b) for a, b in zip(planned[1], plain[1], strict=True))
