"""Rule [8] of the executor: what cannot be run again is an error, never a wrong gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from steps import batch, forgetful_plan, named_chain, perceptron, square, tight_plan, twins
from torch import nn

import revolve
from revolve.runtime.exceptions import BudgetWarning, MeasurementError, PlanMismatch, RecomputeError


class Doubling(nn.Module):
    """Doubles, in place where told to."""

    inplace = False

    def forward(self, x):
        return x.mul_(2).sin() if self.inplace else (x * 2).sin()


def test_a_stage_that_begins_to_change_its_input():
    planned, _ = twins(perceptron(Doubling))
    planned[4].inplace = True
    with pytest.raises(RecomputeError, match=r"stage '4' changes its input in place.*inplace=False"):
        planned(batch())


class Moody(nn.Module):
    """Does something else in every call."""

    def __init__(self, moods):
        super().__init__()
        self.moods = itertools.cycle(moods)

    def forward(self, x):
        return next(self.moods)(x)


@pytest.mark.parametrize(
    "moods",
    [
        (torch.sin, lambda x: x.sin().cos()),
        (lambda x: x.sin().cos(), torch.sin),
        (torch.sin, lambda x: x * 1.0),
        (torch.sin, lambda x: x.repeat(2, 1).sin()[:8]),
        (torch.sin, lambda x: x.double().sin().float()),
    ],
)
@pytest.mark.parametrize("planner", [tight_plan, forgetful_plan])
def test_a_stage_that_does_something_else_when_run_again(moods, planner):
    planned, _ = twins(perceptron(lambda: Moody(moods)), planner)
    with pytest.raises(RecomputeError, match=r"stage '\d+' cannot be recomputed: it.*the same each time"):
        square(planned(batch())).backward()


class Descending(nn.Module):
    """Takes a step down a slope of its own."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Linear(16, 16)

    def forward(self, x):
        height = self.slope(x).tanh().square().sum()
        (gradient,) = torch.autograd.grad(height, [x], create_graph=True)
        return x - 0.1 * gradient


def test_a_stage_that_is_differentiated_in_its_own_forward():
    reason = "runs a backward pass in its own forward .*call revolve.checkpointed on the part"
    with pytest.raises(MeasurementError, match=reason):
        revolve.measure(perceptron(Descending), batch())
    for planner in (tight_plan, forgetful_plan):
        planned, _ = twins(perceptron(Descending), planner)
        with pytest.raises(RecomputeError, match=reason):
            square(planned(batch())).backward()


class Peeking(nn.Module):
    """Differentiates, behind the model's back, what an earlier stage has made."""

    def __init__(self):
        super().__init__()
        self.made = []
        self.weights = []

    def forward(self, x):
        (gradient,) = torch.autograd.grad(self.made[-1].sum(), self.weights, retain_graph=True)
        return x.sin() * gradient.mean()


def test_a_stage_that_differentiates_another_one_when_run_again():
    """It was an endless recursion, from one thread of autograd's into the next."""
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), Peeking(), nn.Linear(16, 16), nn.Tanh())
    planned, _ = twins(model)
    planned[2].weights.append(planned[0].weight)

    def hand_on(module, args, output):
        if not revolve.is_recomputing():
            planned[2].made.append(output)

    planned[1].register_forward_hook(hand_on)
    with pytest.warns(BudgetWarning):
        loss = square(planned(batch()))
    with pytest.raises(RecomputeError, match=r"stage '1' is differentiated in the forward of a stage"):
        loss.backward()
    assert not revolve.is_recomputing()


def test_an_input_changed_between_forward_and_backward():
    planned, _ = twins(perceptron())
    x = batch()
    loss = square(planned(x))
    x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place since the forward pass; change a copy"):
        loss.backward()


def test_an_output_changed_between_forward_and_backward():
    for model in twins(perceptron(), lambda model: tight_plan(model, 30)):
        output = model(batch())
        loss = square(output)
        with torch.no_grad():
            output.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


class Careless(nn.Module):
    """Changes what autograd has saved."""

    def forward(self, x):
        y = x.exp()
        z = y * 2
        y.add_(1)
        return z


def test_a_saved_tensor_changed_in_a_stage():
    model = nn.Sequential(nn.Linear(16, 16), Careless(), nn.Linear(16, 16))
    saving = [["forward", 0], ["save", 1], ["save", 2], ["loss"], ["backward", 2], ["backward", 1]]
    plan = revolve.Plan.from_actions(named_chain(model), [*saving, ["load", 0], ["rebuild", 0], ["backward", 0]])
    for twin in twins(model, lambda _: plan):
        loss = square(twin(batch()))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_parameter_changed_between_forward_and_backward(name):
    planned, _ = twins(perceptron())
    loss = square(planned(batch()))
    with torch.no_grad():
        getattr(planned[2], name).add_(1)
    with pytest.raises(RuntimeError, match=rf"{name} of module 0 \(Linear\) has been changed|modified by an inplace"):
        loss.backward()


def test_a_buffer_changed_between_forward_and_backward():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("factor", torch.ones(16))

        def forward(self, x):
            return (x + self.factor).sin()

    planned, _ = twins(perceptron(Scale))
    loss = square(planned(batch()))
    planned[1].factor.add_(1)
    with pytest.raises(RecomputeError, match=r"stage '1' cannot be run again: factor of module 0 \(Scale\)"):
        loss.backward()


def test_a_buffer_that_changes_from_the_second_step_on():
    class Late(nn.Module):
        steps = 0

        def __init__(self):
            super().__init__()
            self.register_buffer("sum", torch.zeros(16))

        def forward(self, x):
            if self.steps:
                self.sum.add_(1)
            return (x + self.sum).sin()

    planned, plain = twins(perceptron(Late))
    planned(batch())
    planned[1].steps = plain[1].steps = 1
    with pytest.raises(
        RecomputeError, match=r"stage '1' changed its buffer or attribute sum .*revolve.checkpointed again"
    ):
        planned(batch())
    planned[1].sum.zero_()
    revolve.checkpointed(planned, forgetful_plan(planned))
    for model in (planned, plain):
        square(model(batch())).backward()
    assert torch.equal(planned[0].weight.grad, plain[0].weight.grad)


def test_schedules_that_autograd_cannot_execute():
    model = perceptron(depth=1)
    twice = [["forward", 0], ["load", 0], ["save", 0], ["save", 1], ["loss"], ["backward", 1], ["backward", 0]]
    with pytest.raises(PlanMismatch, match="runs stages again before the loss"):
        revolve.checkpointed(model, revolve.Plan.from_actions(named_chain(model), twice))
    assert "forward" not in vars(model)
