"""Which stages are found in a model, and that finding them leaves no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from branching import NETWORKS, ResidualNet, make, normal
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from twins import assert_equal, run

import revolve
from revolve.runtime.exceptions import MeasurementError, ModelError, RecomputeError


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
    "residual": ["conv", "bn+relu", "layers.0", "layers.1", "layers.2", "pool", "fc"],
    "dense": ["stem", "block.0", "block.1", "block.2", "block.3", "norm", "head"],
    "transformer": ["embed", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "norm", "head"],
    "encoder and decoder": ["encode.0", "encode.1", "start", "decode.0", "decode.1", "decode.2"],
    "shared": ["first", "layer", "layer", "layer", "layer", "last"],
    "u-net": ["down1", "act", "pool", "down2", "act", "middle", "act", "up", "last"],
    "dense lists": ["stem", *(f"{name}{i}" for i in range(5) for name in ("norms.", "act:", "layers.")), "head"],
    "branches": [
        *("start", "down", "high.0.0", "high.0.1", "high.0.2", "low.0.0", "low.0.1", "low.0.2", "mix.0", "up"),
        *("high.1.0", "high.1.1", "high.1.2", "low.1.0", "low.1.1", "low.1.2", "mix.1", "up"),
    ],
    "shortcuts": [
        *("start", "blocks.0.0", "norms.0+act", "blocks.0.1+blocks.0.2+norms.1+act"),
        *("blocks.1.0", "norms.2+act", "blocks.1.1+blocks.1.2+norms.3+act"),
        *("blocks.2.0", "norms.4+act", "blocks.2.1+blocks.2.2+norms.5+act"),
    ],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_stages(name):
    model, sample = make(name)
    stages = revolve.linearize(model, sample)
    assert [stage.name for stage in stages] == [path.split(":")[0] for path in EXPECTED[name]]
    assert stages.coverage > (0.85 if name == "branches" else 0.99)  # the last GELU is no call's input
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


EVERY = [f"layers.{index}" for index in range(5)]
GLUED = ["layers.0", "layers.1+layers.2", "layers.3", "layers.4"]


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (lambda model, x: x * 1.0, EVERY),
        (lambda model, x: torch.cat([x, x], 1)[:, 4:12], EVERY),
        (lambda model, x: x.view(6, 8), EVERY),
        (lambda model, x: x.detach().requires_grad_(), EVERY),
        (lambda model, x: x.add_(1.0), GLUED),  # the same tensor, changed: it cannot be kept between the stages
        (lambda model, x: functional.relu(x, inplace=True), GLUED),
    ],
)
def test_functions_between_two_calls_belong_to_the_second(between, expected):
    model = Steps(between, depth=5)
    assert names(model, normal(6, 8)) == expected
    assert_planned_as_plain(model, normal(6, 8))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


@pytest.mark.parametrize(
    "between",
    [
        lambda model, x: Doubled.apply(x),  # nothing is seen of it
        lambda model, x: torch.func.vmap(torch.sin)(x),
        lambda model, x: torch.bernoulli(x.sigmoid().detach(), generator=torch.Generator().manual_seed(1)) * x.sum(),
        lambda model, x: filled(x),
    ],
)
def test_functions_that_cannot_be_called_again_are_left_outside(between):
    model = Steps(between, depth=5)
    found = revolve.linearize(model, normal(6, 8))
    assert len(found) >= 3
    assert_planned_as_plain(model, normal(6, 8))


def test_a_backward_pass_in_the_forward():
    model = Steps(lambda model, x: torch.autograd.grad((x * x).sum(), x, create_graph=True)[0], depth=5)
    with pytest.raises(ModelError, match="runs a backward pass in its own forward"):
        revolve.linearize(model, normal(6, 8))


def filled(x):
    """Write into a tensor that comes from nowhere, and read it."""
    buffer = torch.zeros(6, 16)
    buffer[:, :8] = x.sin()
    buffer[:, 8:] = x.cos()
    return buffer[:, :8] * buffer[:, 8:]


def assert_planned_as_plain(model, sample):
    plain = copy.deepcopy(model)
    frontier = revolve.solve(revolve.measure(model, sample))
    for peak in {frontier.smallest, int(frontier.peaks[len(frontier.peaks) // 2])}:
        revolve.checkpointed(model, frontier.plan(peak))
        model.zero_grad()
        plain.zero_grad()
        assert_equal(run(model, sample), run(plain, sample))
        report = revolve.verify(model, sample, repeats=1)
        assert report.exact
        assert report.kept, f"{report.measured_peak} bytes measured, {report.predicted_peak} predicted"
        revolve.restore(model)


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


def test_hooks_that_change_an_output_belong_to_the_next_stage():
    model = Steps(lambda model, x: x, depth=5)
    model.layers[1].register_forward_hook(lambda module, inputs, output: output * 2)
    assert names(model, normal(6, 8)) == EVERY
    assert_planned_as_plain(model, normal(6, 8))


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


def in_a_view(x):
    half = x[:, :4]
    doubled = x * 2
    half += 1  # a view: x changes as well
    return torch.cat([half, doubled[:, 4:]], 1) + x


def test_functions_that_change_a_view_of_what_an_earlier_stage_gave():
    model = Steps(lambda model, x: in_a_view(x), depth=5)
    assert names(model, normal(6, 8)) == GLUED
    assert_planned_as_plain(model, normal(6, 8))


def test_what_a_stage_takes_and_changes_in_a_later_step_is_an_error():
    model = Steps(lambda model, x: x * 2, depth=5)
    frontier = revolve.solve(revolve.measure(model, normal(6, 8)))
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    model.between = lambda model, x: in_a_view(x)
    with pytest.raises(RecomputeError, match=r"what 'layers.2' takes of the stage before it is changed in place"):
        model(normal(6, 8))


@pytest.mark.parametrize("build", [lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh()), lambda: NETWORKS["shared"][0]()])
def test_values_on_one_side_alone(build):
    with torch.device("meta"):
        model = build()
    with pytest.raises(MeasurementError, match=r"weight of the \w+ is on the meta device, without values"):
        revolve.linearize(model, torch.zeros(4, 4))
    with pytest.raises(MeasurementError, match="has values, unlike the sample"):
        revolve.linearize(build(), torch.zeros(4, 4, device="meta"))
