"""Rule [2] of the executor: a stage is run again before any of its backward, also where that begins with functions that
save nothing, whose gradients would be there besides."""

from __future__ import annotations

import copy

import pytest
import torch
from steps import forgetful_plan, square, tight_plan, twins
from torch import nn

import revolve

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
    """Ends in functions that save nothing, or in one that writes a view in place."""

    def __init__(self, end, width=32):
        super().__init__()
        self.linear, self.end = nn.Linear(width, width), end

    def forward(self, x):
        EVENTS.append("again" if revolve.is_recomputing() else "first")
        return self.end(self.linear(x).tanh())


def narrowed(x):
    return Noted.apply(x).mean(0, keepdim=True) + x


def written(x):
    view = Noted.apply(x).view(2, -1, x.shape[-1]).transpose(0, 1)
    return torch.relu_(view).reshape(x.shape)


ENDS = {"functions that save nothing": narrowed, "a view that is written": written}


@pytest.mark.parametrize("planner", [tight_plan, forgetful_plan])
@pytest.mark.parametrize("end", ENDS)
def test_a_stage_is_run_again_before_its_backward(end, planner):
    torch.manual_seed(0)
    planned, plain = twins(nn.Sequential(*(Tailed(ENDS[end]) for _ in range(4))), planner)
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
    for share in (0, 0.3, 0.7):
        plan = frontier.plan(int(frontier.smallest + share * (frontier.plain - frontier.smallest)))
        planned = revolve.checkpointed(copy.deepcopy(model), plan)
        report = revolve.verify(planned, x, repeats=1)
        assert report.exact, report.differences
        assert report.measured_peak <= plan.peak
