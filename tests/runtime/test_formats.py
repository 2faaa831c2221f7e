"""Checkpoints and saved tensors in other formats than dense: equal bits, shared forms, and a budget that holds."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from steps import CPU, assert_same, run_step
from torch import nn
from torch.nn import functional

import revolve
from revolve import Plan
from revolve.runtime.allocations import trace_allocations
from revolve.runtime.exceptions import PlanMismatch, RecomputeError
from revolve.runtime.instrumentation import plan_of
from revolve.storage import codecs
from revolve.storage.accounts import DenserThanPlanned

SIDE = 32


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 8), (8, 8)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(8 * (SIDE // 4) ** 2, 5))


def pictures(seed: int = 1) -> torch.Tensor:
    return torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def saving(length: int, format_: str) -> list[list]:
    """Every stage saved in a format."""
    forward = [["save", i, format_] for i in range(length)]
    return [*forward, ["loss"], *(["backward", i] for i in reversed(range(length)))]


def storing(length: int, format_: str) -> list[list]:
    """Segments of two stages, their inputs stored in a format, run again with everything saved in it."""
    sweep, rest = [], []
    for start in range(0, length, 2):
        segment = range(start, min(start + 2, length))
        sweep += [["store", start, format_]] * bool(start) + [["forward", i] for i in segment]
        again = [["load", start], *([["drop", start]] * bool(start)), *(["save", i, format_] for i in segment)]
        rest = [*again, *(["backward", i] for i in reversed(segment)), *rest]
    return [*sweep, ["loss"], *rest]


SCHEDULES = {"saving": saving, "storing": storing}


@pytest.fixture(scope="module")
def chain():
    return revolve.measure(convolutions(), pictures(), formats=("bitmap",))


@pytest.fixture
def counted(monkeypatch):
    """Count the forms that are made, and those that are alive."""
    made: list[weakref.ref] = []

    class CountedForm(codecs.BitmapForm):
        __slots__ = ("__weakref__",)

        def __init__(self, buffer):
            super().__init__(buffer)
            made.append(weakref.ref(self))

    monkeypatch.setattr(codecs, "BitmapForm", CountedForm)
    return made


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steps_equal_plain_ones_within_the_predicted_peak(chain, schedule):
    plain = convolutions()
    planned = revolve.checkpointed(convolutions(), Plan.from_actions(chain, SCHEDULES[schedule](len(chain), "bitmap")))
    for seed in (1, 2):
        assert_same(run_step(planned, pictures(seed)), run_step(plain, pictures(seed)))
    report = revolve.verify(planned, pictures())
    assert report.exact
    assert report.measured_peak <= report.predicted_peak


def test_stages_share_one_form_of_what_stands_between_them(chain, counted):
    """A ReLU saves its output, the convolution behind it the same storage; the pool saves its input."""
    planned = revolve.checkpointed(convolutions(), Plan.from_actions(chain, saving(len(chain), "bitmap")))
    output = planned(pictures())
    between = [j for j in range(1, len(chain)) if chain.encoded("bitmap", j)]
    assert between == [2, 4, 6]  # what the three ReLUs return; the pool leaves too few zeros
    alive = [form() for form in counted if form() is not None]
    assert len(alive) == len(counted) == 3
    del alive
    output.square().mean().backward()
    assert not any(form() for form in counted)


def test_views_of_one_storage_share_its_form(counted):
    class Parts(nn.Module):
        def forward(self, x):
            a, b, c = x.chunk(3, dim=1)
            return a * b + b * c.transpose(2, 3) + 1

    layers = [nn.Conv2d(3, 6, 1), nn.ReLU(), Parts(), nn.Flatten(), nn.Linear(2 * SIDE**2, 3)]
    model = nn.Sequential(*layers)
    chain = revolve.measure(model, pictures(), formats=("bitmap",))
    plain = copy.deepcopy(model)
    planned = revolve.checkpointed(model, Plan.from_actions(chain, saving(len(chain), "bitmap")))
    counted.clear()
    assert_same(run_step(planned, pictures()), run_step(plain, pictures()))
    assert len(counted) == 1


def test_a_loaded_activation_is_not_encoded_again(chain, counted):
    """What is loaded, kept stored, and saved in the same format keeps its form."""
    length = len(chain)
    actions = [*(["forward", i] for i in range(2)), ["store", 2, "bitmap"], *(["forward", i] for i in range(2, length))]
    actions += [["loss"], ["load", 2], *(["save", i, "bitmap"] for i in range(2, length))]
    actions += [*(["backward", i] for i in reversed(range(2, length))), ["drop", 2], ["load", 0], ["save", 0]]
    actions += [["save", 1], ["backward", 1], ["backward", 0]]
    planned = revolve.checkpointed(convolutions(), Plan.from_actions(chain, actions))
    assert_same(run_step(planned, pictures()), run_step(convolutions(), pictures()))
    assert len(counted) == 3


def test_everything_is_released_without_a_backward(chain, counted):
    planned = revolve.checkpointed(convolutions(), Plan.from_actions(chain, saving(len(chain), "bitmap")))
    output = planned(pictures())
    assert any(form() for form in counted)
    del output
    assert not any(form() for form in counted)


@pytest.mark.filterwarnings("ignore::revolve.runtime.exceptions.BudgetWarning")
def test_second_backward_and_second_derivative(chain):
    plain = convolutions()
    planned = revolve.checkpointed(convolutions(), Plan.from_actions(chain, storing(len(chain), "bitmap")))
    found = []
    for model in (plain, planned):
        output = model(pictures())
        loss = output.square().mean()
        first = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), list(model.parameters()), allow_unused=True)
        found.append([*first, *second])
    for ours, theirs in zip(*found, strict=True):
        assert ours is theirs or torch.equal(ours, theirs)


def made_up(chain, model):
    """Give a measured chain a budget that its bitmap plan uses up to the last byte."""
    plan = Plan.from_actions(chain, saving(len(chain), "bitmap"))
    return replace(plan, budget=plan.peak)


def denser(model: nn.Sequential, by: float) -> None:
    """Let the first convolution raise its output, so that fewer zeros come out of the ReLU."""
    with torch.no_grad():
        model[0].bias += by


def test_a_step_that_is_too_dense_fails_before_it_exceeds_the_budget_and_the_next_one_is_planned_anew(chain):
    model = convolutions()
    planned = revolve.checkpointed(model, made_up(chain, model))
    run_step(planned, pictures())
    denser(model, 3.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with trace_allocations(CPU) as tracer:
        with pytest.raises(DenserThanPlanned, match=r"what stage '1' saves would take \d+ bytes"):
            planned(pictures())
        tracer.mark()
    gc.collect()
    assert tracer.phases[0].peak <= chain_peak(planned)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    plain = revolve.restore(copy.deepcopy(model))
    assert_same(run_step(planned, pictures()), run_step(plain, pictures()))
    assert revolve.verify(planned, pictures()).kept


def chain_peak(model: nn.Module) -> int:
    plan = plan_of(model)
    assert plan is not None
    return plan.peak


def test_a_reserve_that_is_nearly_used_up_lets_the_next_step_be_planned_anew(chain):
    model = convolutions()
    planned = revolve.checkpointed(model, made_up(chain, model))
    run_step(planned, pictures())
    runner = model.__dict__["forward"]
    first = runner.choose(pictures())
    assert runner.choose(pictures()) is first
    denser(model, 0.07)
    plain = revolve.restore(copy.deepcopy(model))
    assert_same(run_step(planned, pictures()), run_step(plain, pictures()))
    second = runner.choose(pictures())
    assert second is not first
    assert second.plan.budget == first.plan.budget
    assert_same(run_step(planned, pictures()), run_step(plain, pictures()))
    assert runner.choose(pictures()) is second


def test_a_plan_is_made_anew_while_it_is_verified(chain):
    model = convolutions()
    planned = revolve.checkpointed(model, made_up(chain, model))
    run_step(planned, pictures())
    denser(model, 0.07)
    report = revolve.verify(planned, pictures())
    assert report.passed
    assert report.plan is not plan_of(model)


def test_what_the_budget_leaves_is_used_before_a_step_fails(chain):
    model = convolutions()
    plan = made_up(chain, model)
    planned = revolve.checkpointed(model, replace(plan, budget=plan.peak + 10**6))
    denser(model, 3.0)
    plain = revolve.restore(copy.deepcopy(model))
    assert_same(run_step(planned, pictures()), run_step(plain, pictures()))


@pytest.mark.parametrize("functional_form", [False, True])
def test_a_tensor_that_is_saved_before_it_is_written_is_not_encoded(functional_form):
    """RReLU hands its noise to autograd before it draws it."""

    class Leaky(nn.Module):
        def forward(self, x):
            return functional.rrelu(x, training=True) * 2

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Leaky() if functional_form else nn.RReLU(), nn.MaxPool2d(2), nn.Flatten())
    model.append(nn.Linear(8 * (SIDE // 2 - 1) ** 2, 2))
    chain = revolve.measure(model, pictures(), formats=("bitmap",))
    costs = chain.formats["bitmap"]
    assert costs.saved_bytes[1] >= chain.stages[1].saved_bytes + chain.activation_bytes(1)
    planned = revolve.checkpointed(model, Plan.from_actions(chain, saving(len(chain), "bitmap")))
    with pytest.raises(RecomputeError, match=r"stage '1' saves a tensor before it is written"):
        planned(pictures())


def test_formats_are_checked(chain):
    unknown = replace(chain, formats={"zip": chain.formats["bitmap"]})
    plan = Plan.from_actions(unknown, saving(len(chain), "zip"))
    with pytest.raises(revolve.RevolveError, match="no format is named 'zip'"):
        revolve.checkpointed(convolutions(), plan)
    with pytest.raises(revolve.RevolveError, match="no format is named 'zip'"):
        revolve.measure(convolutions(), pictures(), formats=("zip",))
    with pytest.raises(PlanMismatch, match="formats="):
        revolve.checkpointed(convolutions(), plan, formats=("dense", "bitmap"))


def test_small_activations_stay_dense(chain):
    """A form has a header; the cost model knows that x_L is the caller's and a small x_j not worth a form."""
    costs = chain.formats["bitmap"]
    assert not chain.encoded("bitmap", len(chain))
    assert costs.stored_bytes[0] == chain.input_bytes


class Recurrent(nn.Module):
    """Writes the gates of a cell one after the other, in parts of one tensor with versions of their own."""

    def __init__(self, cell, width=64):
        super().__init__()
        self.cell, self.width = cell(width), width

    def forward(self, x):
        if not isinstance(self.cell, nn.RNNCellBase):
            return self.cell(x)[0]
        states = x.new_zeros(len(x), self.width)
        states = (states, states) if isinstance(self.cell, nn.LSTMCell) else states
        for index in range(x.shape[1]):
            states = self.cell(x[:, index], states)
        return torch.stack([*states], 1) if isinstance(states, tuple) else states


class Parts(nn.Module):
    """Rectifies parts of one tensor, so that they are sparse."""

    def __init__(self, width=64):
        super().__init__()
        self.linear = nn.Linear(width, 4 * width)

    def forward(self, x):
        parts = [part.sub_(1.0).relu_() for part in self.linear(x).unsafe_chunk(4, -1)]
        return parts[0] * parts[1] + parts[2][..., 1:].sum() * parts[3]


class Apart(nn.Module):
    """Writes two parts that are in no graph, each as often as the other, and saves one in between."""

    def __init__(self, width=64):
        super().__init__()
        self.linear, self.both, self.scale = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(1, width)

    def forward(self, x):
        with torch.no_grad():
            a, b = self.both(x).unsafe_chunk(2, -1)
        y = a.sub_(1.0).relu_() * self.scale.bias
        return self.linear(x) + y + b.sub_(2.0).relu_() * self.scale.bias


CELLS = {
    "gru": lambda: Recurrent(lambda width: nn.GRU(width, width, batch_first=True)),
    "lstm": lambda: Recurrent(lambda width: nn.LSTM(width, width, batch_first=True)),
    "gru cell": lambda: Recurrent(lambda width: nn.GRUCell(width, width)),
    "lstm cell": lambda: Recurrent(lambda width: nn.LSTMCell(width, width)),
    "parts": Parts,
    "parts apart": Apart,
}


@pytest.mark.parametrize("format_", ["bitmap", "disk"])
@pytest.mark.parametrize("name", CELLS)
def test_parts_that_are_written_one_by_one(name, format_):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), CELLS[name](), nn.Linear(64, 8)), torch.randn(16, 12, 64)
    chain = revolve.measure(model, x, formats=(format_,))
    plan = Plan.from_actions(chain, saving(4, format_))
    report = revolve.verify(revolve.checkpointed(model, plan), x, repeats=1)
    assert report.exact, report.differences
    assert report.measured_peak <= plan.peak
