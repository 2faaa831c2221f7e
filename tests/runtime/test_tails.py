"""Rule [2] of the executor: a stage is run again before any of its backward, also where that begins with functions that
save nothing, whose gradients would be there besides."""

from __future__ import annotations

import pytest
import torch
from steps import assert_budgets_hold, forgetful_plan, square, tight_plan, twins
from torch import nn

import revolve
from revolve.runtime.executor import Run

EVENTS: list[str] = []


class Noted(torch.autograd.Function):
    """Notes when its backward runs; saves nothing."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        EVENTS.append("backward")
        return gradient * 2


class Tailed(nn.Module):
    """Ends in functions that save nothing."""

    def __init__(self, width=32):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        EVENTS.append("again" if revolve.is_recomputing() else "first")
        x = self.linear(x).tanh()
        return Noted.apply(x).mean(0, keepdim=True) + x


@pytest.mark.parametrize("planner", [tight_plan, forgetful_plan])
def test_a_stage_is_run_again_before_its_backward(planner):
    torch.manual_seed(0)
    planned, plain = twins(nn.Sequential(*(Tailed() for _ in range(4))), planner)
    x = torch.randn(8, 32)
    for _ in range(2):
        EVENTS.clear()
        square(planned(x)).backward()
        first = EVENTS.index("backward")
        assert EVENTS[:4] == ["first"] * 4
        if planner is forgetful_plan:  # the last stage as well
            assert "again" in EVENTS[:first]
            assert EVENTS[-2:] == ["again", "backward"]
        square(plain(x)).backward()
    for ours, theirs in zip(planned.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


class Splitting(nn.Module):
    """Gives a second tensor whose backward needs nothing of what is saved for the first."""

    def __init__(self, width=32):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        EVENTS.append("again" if revolve.is_recomputing() else "first")
        x, other = x if isinstance(x, tuple) else (x, None)
        return self.linear(x).tanh(), x.mean(0) if other is None else other


def test_nothing_is_run_again_for_a_part_that_needs_nothing():
    torch.manual_seed(0)
    planned, _ = twins(nn.Sequential(*(Splitting() for _ in range(4))))
    x = torch.randn(8, 32, requires_grad=True)
    EVENTS.clear()
    result, other = planned(x)
    torch.autograd.grad(other.sum(), [x], retain_graph=True)
    assert EVENTS == ["first"] * 4
    result.sum().backward()
    assert EVENTS.count("again") == 4 + 3 + 2 + 1


class Passing(nn.Module):
    """Passes on what it is given beside the activation."""

    def __init__(self, width=32):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, pair):
        x, other = pair
        return self.linear(x).tanh() + other, other


def test_nodes_that_the_stage_has_not_made_are_left_alone(monkeypatch):
    torch.manual_seed(0)
    planned, _ = twins(nn.Sequential(*(Passing() for _ in range(3))))
    other = torch.randn(8, 32, requires_grad=True).view(8, 32)
    results = [planned((torch.randn(8, 32), other)) for _ in range(2)]
    told = []
    monkeypatch.setattr(Run, "reach", lambda run, stage: told.append(stage))
    other.sum().backward()
    assert len(results) == 2
    assert not told


class Averaging(nn.Module):
    """Makes much of little, and takes the mean: the gradient of that is as large, and made first."""

    def __init__(self, width=32, times=8):
        super().__init__()
        self.linear, self.times = nn.Linear(width, width * times), times

    def forward(self, x):
        wide = self.linear(x)
        parts = [wide * 2, wide * 3, wide * 4]
        wide = nn.functional.gelu(sum(parts))
        del parts
        return wide.unflatten(-1, (self.times, -1)).mean(-2)


@pytest.mark.parametrize("depth", [2, 3])
def test_budgets_hold_where_the_last_functions_save_nothing(depth):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), *(Averaging() for _ in range(depth)), nn.Linear(32, 32))
    x = torch.randn(1024, 16)
    frontier = revolve.solve(revolve.measure(model, x))
    assert_budgets_hold(model, x, frontier, (0, 0.3, 0.7))


class Written(nn.Module):
    """Ends by writing a view in place, whose node makes memory before anything is unpacked."""

    def __init__(self, width=16):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.InstanceNorm2d(width, affine=True, track_running_stats=True)

    def forward(self, x):
        y = self.norm(self.conv(x))
        y += x
        return torch.relu_(y)


def test_budgets_hold_where_a_view_is_written():
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), Written(), Written(), nn.RReLU()),
        torch.randn(4, 3, 32, 32),
    )
    formats = ("dense", "int4")
    frontier = revolve.solve(revolve.measure(model, x, formats=formats), formats)
    assert_budgets_hold(model, x, frontier, (0, 0.1, 0.3, 0.6), exact=False)
