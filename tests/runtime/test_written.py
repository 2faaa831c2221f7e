"""Measuring puts back the parameters that a model changes in its own forward."""

from __future__ import annotations

import pytest
import torch
from branching import words
from torch import nn
from torch.nn import functional

import revolve
from revolve.integrations.torch import checkpoint_sequential
from revolve.runtime.exceptions import MeasurementError


class Renormalising(nn.Module):
    """Calls functions that write its weights, outside of any stage."""

    def __init__(self, *, clamp=False):
        super().__init__()
        self.embed = nn.Embedding(17, 16)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)) for _ in range(4))
        self.clamp = clamp

    def forward(self, x):
        if self.clamp:
            self.embed.weight.data.clamp_(-0.1, 0.1)
        x = functional.embedding(x, self.embed.weight, max_norm=0.5)
        for layer in self.layers:
            x = layer(x)
        return x


def state_of(model):
    return [(p.detach().clone(), p._version) for p in model.parameters()]


def assert_untouched(model, before):
    for parameter, (value, version) in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter._version == version


@pytest.mark.parametrize("look", [revolve.measure, revolve.linearize])
@pytest.mark.parametrize("clamp", [False, True])
def test_weights_that_the_models_own_forward_writes(look, clamp):
    model = Renormalising(clamp=clamp)
    before = state_of(model)
    look(model, words(4, 8))
    assert_untouched(model, before)
    model(words(4, 8))
    assert not torch.equal(model.embed.weight, before[0][0])


@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_a_stage_writes(tied):
    """That is an error, behind which they are what they were."""
    model = nn.Sequential(nn.Embedding(17, 16, max_norm=0.5), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 17))
    if tied:
        model[3].weight = model[0].weight
    before = state_of(model)
    with pytest.raises(MeasurementError, match=r"changes weight of module 0 \(Embedding\)"):
        revolve.measure(model, words(4, 8))
    assert_untouched(model, before)
    with pytest.raises(MeasurementError, match=r"changes weight of module 0 \(Embedding\)"):
        checkpoint_sequential(model, 2, words(4, 8))
    assert_untouched(model, before)


def test_operators_of_a_higher_order():
    """They have no schema, and are passed on."""

    class Flexible(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))

    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(8, 8), Flexible(), nn.Linear(8, 8), nn.Tanh())
    assert len(revolve.measure(model, torch.randn(4, 8)).stages) == 4
