"""Which stages are found in a model, and that finding them leaves no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from branching import NETWORKS, ResidualNet, make, normal
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import revolve
from revolve.runtime.exceptions import MeasurementError, ModelError


def names(model, sample):
    return [stage.name for stage in revolve.linearize(model, sample)]


SEQUENTIALS = {
    "plain": lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)),
    "in place": lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 4)),
    "nested": lambda: nn.Sequential(
        nn.Linear(8, 8), nn.Sequential(nn.GELU(), nn.Sequential(nn.Linear(8, 8))), nn.Tanh()
    ),
    "views": lambda: nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.GELU()),
    "identity": lambda: nn.Sequential(nn.Linear(8, 8), nn.Identity(), nn.Dropout(0.0), nn.Linear(8, 8)),
    "repeated": lambda: nn.Sequential(*[nn.Linear(8, 8), nn.Tanh()] * 2),
}


class Wrapped(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("name", SEQUENTIALS)
def test_a_sequential_and_a_module_around_it(name):
    torch.manual_seed(0)
    body = SEQUENTIALS[name]()
    frontier = revolve.solve(revolve.measure(body, normal(6, 8)))
    stages = revolve.linearize(body, normal(6, 8))
    assert [stage.name for stage in stages] == [stage.name for stage in frontier.chain.stages]
    assert stages.coverage == 1.0
    if name != "repeated":  # by its first name each time
        inside = ["+".join(f"body.{path}" for path in stage.name.split("+")) for stage in stages]
        assert names(Wrapped(body), normal(6, 8)) == inside


EXPECTED = {
    "residual": ["conv", "bn+relu", "layers.0", "layers.1", "layers.2", "pool"],
    "dense": ["stem", "block.0", "block.1", "block.2", "block.3", "norm"],
    "transformer": ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "norm", "head"],
    "encoder and decoder": ["start", "decode.0", "decode.1", "decode.2"],
    "shared": ["first", "layer", "layer", "layer", "layer", "last"],
    "u-net": ["down1", "act", "pool", "down2", "act", "middle", "act", "up"],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_stages(name):
    model, sample = make(name)
    stages = revolve.linearize(model, sample)
    assert [stage.name for stage in stages] == EXPECTED[name]
    modules = dict(model.named_modules())
    for stage in stages:
        assert list(stage.functions) == [modules[path] for path in stage.name.split("+")]


def test_coverage():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 24), nn.Linear(24, 24)

        def forward(self, x):
            x = self.second(self.first(x))  # saves 24 numbers a row; the input is the caller's
            return x.sin().exp()  # saves twice as many

    assert revolve.linearize(Model(), normal(6, 8)).coverage == pytest.approx(1 / 3)


def test_nothing_is_left_behind():
    model, sample = ResidualNet(), normal(4, 3, 24, 24)
    tables = [dict(vars(module)) for module in model.modules()]
    buffers, state = copy.deepcopy(list(model.buffers())), torch.get_rng_state()
    revolve.linearize(model, sample)
    assert [vars(module) for module in model.modules()] == tables
    assert all(map(torch.equal, model.buffers(), buffers))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


class Steps(nn.Module):
    """Linear layers with something between them."""

    def __init__(self, between, depth=4):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))
        self.between = between

    def forward(self, x):
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index == 1:
                x = self.between(self, x)
        return x


def test_nothing_between():
    assert names(Steps(lambda model, x: x), normal(6, 8)) == [f"layers.{index}" for index in range(4)]


@pytest.mark.parametrize(
    "between",
    [
        lambda model, x: x * 1.0,
        lambda model, x: x.add_(1.0),  # the same tensor object, changed
        lambda model, x: x.view(6, 8),
        lambda model, x: x.detach().requires_grad_(),
    ],
)
def test_what_breaks_a_chain(between):
    assert names(Steps(between, depth=5), normal(6, 8)) == ["layers.2", "layers.3", "layers.4"]


def test_a_chain_never_begins_in_place():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.layers = nn.ReLU(inplace=True), nn.Sequential(nn.Linear(8, 8), nn.Tanh())

        def forward(self, x):
            return self.layers(self.act(x * 2))

    assert names(Model(), normal(6, 8)) == ["layers.0", "layers.1"]


def test_a_container_that_leaps_over_a_child_stays_closed():
    """As BERT's attention: the second child takes the container's own input as well."""

    class Add(nn.Module):
        def forward(self, x, y):
            return (x + y).tanh()

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.add = nn.Linear(8, 8), Add()

        def forward(self, x):
            return self.add(self.inner(x), x)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.start, self.layers = nn.Linear(8, 8), nn.ModuleList(Layer() for _ in range(3))

        def forward(self, x):
            x = self.start(x)
            for layer in self.layers:
                x = layer(x)
            return x

    assert names(Model(), normal(6, 8)) == ["start", *(f"layers.{index}" for index in range(3))]


def test_hooks_that_change_an_output_break_the_chain():
    model = Steps(lambda model, x: x, depth=5)
    model.layers[1].register_forward_hook(lambda module, inputs, output: output * 2)
    assert names(model, normal(6, 8)) == ["layers.2", "layers.3", "layers.4"]


class Cache:
    """A mutable object that is handed from layer to layer."""


class Caching(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x, cache):
        return functional.gelu(x * self.weight)


class Cached(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Caching() for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, {"past": (Cache(), None)})
        return x


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return checkpoint(self.layer, x, use_reentrant=False)


class Alone(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return functional.gelu(x * self.weight)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Cached(), "'layers.1': it takes a Cache, which it may change .*use_cache=False"),
        (Checkpointed(), "'layer': it runs under saved-tensor hooks of the model"),
        (Alone(), "no module call of the Alone can be a stage: it calls none"),
    ],
)
def test_no_chain(model, message):
    with pytest.raises(ModelError, match=message):
        revolve.linearize(model, normal(6, 8))


def test_a_sample_that_does_not_fit():
    with pytest.raises(MeasurementError, match="stage 'ResidualNet' cannot be run on its input"):
        revolve.linearize(ResidualNet(), normal(4, 2, 24, 24))
