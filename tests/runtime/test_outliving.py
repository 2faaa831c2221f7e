"""What outlives a stage, in the caller's or the model's hands or as part of another gradient, belongs to the peak."""

from __future__ import annotations

import copy

import pytest
import torch
from steps import assert_budgets_hold
from torch import nn

import revolve


class Rectified(nn.Module):
    """Saves its output, and gives it free in the middle of its backward."""

    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x):
        return torch.relu_(self.conv(x))


class Squashed(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return torch.relu_(self.linear(torch.tanh(x)))


class Tailed(nn.Module):
    """Does something with what its chain has given, and may add what the first stage gave."""

    def __init__(self, stage, tail):
        super().__init__()
        self.layers, self.head, self.tail = nn.ModuleList(stage() for _ in range(5)), nn.Linear(64, 64), tail

    def forward(self, x):
        first = y = self.layers[0](x)
        for layer in self.layers[1:]:
            y = layer(y)
        return {"twice": y * 2, "sum": y + first, "first": (y, first)}[self.tail] if self.tail else self.head(y + first)


class Listing(nn.Module):
    """Holds what its layers give in a list, and calls a function between two modules where its memory is highest."""

    def __init__(self, width=64):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(6))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        given = [x]
        for layer in self.layers:
            given.append(layer(given[-1]))
        return self.down(torch.tanh(self.up(given[-1])))


class Wide(nn.Module):
    """Takes its most memory at the end, where its backward begins."""

    def __init__(self, width=64):
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(width, width)

    def forward(self, x):
        return self.down(nn.functional.gelu(self.up(x)).unflatten(-1, (-1, x.shape[-1])).mean(-2))


class Residual(nn.Module):
    """Adds to what each layer gives what it takes: the two have one gradient."""

    def __init__(self, norm, depth):
        super().__init__()
        self.stem, self.head = nn.Linear(64, 64), nn.Linear(64, 8)
        self.layers, self.norms = (
            nn.ModuleList(Wide() for _ in range(depth)),
            nn.ModuleList(norm() for _ in range(depth)),
        )

    def forward(self, x):
        x = self.stem(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x) + x)
        return self.head(x)


ROWS, SIGNALS = (torch.randn(*size, generator=torch.Generator().manual_seed(1)) for size in ((128, 64), (4, 8, 256)))

CASES = {
    "the caller's output": (lambda: nn.Sequential(*(Rectified() for _ in range(5))), SIGNALS),
    "the caller's output among others": (lambda: Tailed(Rectified, "first"), SIGNALS),
    "an output that the model drops": (lambda: Tailed(Squashed, "twice"), ROWS),
    "an output that the model adds to": (lambda: Tailed(Rectified, "sum"), SIGNALS),
    "the gradient of a sum": (lambda: Tailed(Squashed, ""), torch.cat([ROWS] * 4)),
    "a generator read beside a list": (Listing, ROWS),
    "the gradient of a skip": (lambda: Residual(lambda: nn.LayerNorm(64), 1), torch.cat([ROWS] * 4)),
    "the gradient of several skips": (lambda: Residual(nn.Tanh, 3), torch.cat([ROWS] * 4)),
}


@pytest.mark.parametrize("formats", [("dense",), ("dense", "bitmap", "disk")], ids="+".join)
@pytest.mark.parametrize("name", CASES)
def test_budgets_hold_what_outlives_a_stage(name, formats):
    make, x = CASES[name]
    torch.manual_seed(0)
    model = make()
    frontier = revolve.solve(revolve.measure(model, x, formats=formats), formats)
    for factor in (1.0, 1.02, 1.05, 1.1, 1.2, 1.3, 1.5):
        planned, plan = copy.deepcopy(model), frontier.plan(int(frontier.smallest * factor))
        revolve.checkpointed(planned, plan)
        report = revolve.verify(planned, x, repeats=1)
        assert report.exact, report.differences
        assert report.measured_peak <= plan.peak


class Branching(nn.Module):
    """Returns two results."""

    def __init__(self, width=64):
        super().__init__()
        self.stem, self.head = nn.Linear(width, width), nn.Linear(width, width)
        self.branch = nn.Sequential(*(Squashed(width) for _ in range(3)))

    def forward(self, x):
        x = self.stem(x)
        other = self.branch(x)
        return self.head(torch.tanh(x)), other


def test_budgets_hold_a_result_that_no_gradient_comes_to():
    torch.manual_seed(0)
    model = Branching()

    def loss(output):
        return output[0].square().mean()

    frontier = revolve.solve(revolve.measure(model, ROWS, loss))
    assert_budgets_hold(model, ROWS, frontier, (0, 0.3, 0.7), loss)


class Bulky(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.down(nn.functional.gelu(self.up(x)))


class Keeping(nn.Module):
    """Has a result that it does not use until its middle: the graph of that lives as long."""

    def __init__(self, width=64):
        super().__init__()
        self.stem, self.side, self.head = nn.Linear(width, width), Bulky(), nn.Linear(width, 8)
        self.layers = nn.ModuleList([nn.Linear(width, width), Bulky(), nn.Linear(width, width)])

    def forward(self, x):
        x = self.stem(x)
        unused = self.side(x)
        for layer in self.layers:
            x = layer(x)
        del unused
        return self.head(x.tanh())


def test_an_unused_result_that_the_model_keeps_for_a_while():
    torch.manual_seed(0)
    model, x = Keeping(), torch.randn(256, 64)
    assert_budgets_hold(model, x, revolve.solve(revolve.measure(model, x)), (0, 0.3, 0.6, 0.9))
