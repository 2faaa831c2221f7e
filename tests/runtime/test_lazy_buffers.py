"""Buffers and caches that the first call makes: part of that step's peak, and no reason to plan anew."""

from __future__ import annotations

import warnings

import pytest
import torch
from steps import CPU, batch, square
from torch import nn

import revolve
from revolve.runtime.allocations import trace_allocations
from revolve.runtime.exceptions import BudgetWarning


class Block(nn.Module):
    """Keeps 4 KiB from its first call on."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return x + self.down(self.up(x).tanh()) * (1 + self.mean(x.detach()).mean())

    def mean(self, x):
        if not hasattr(self, "kept"):
            self.register_buffer("kept", torch.ones(1024), persistent=False)
        return self.kept


class Absent(Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("kept", None)

    def mean(self, x):
        self.kept = torch.ones(1024) if self.kept is None else self.kept
        self.kept.mul_(0.9).add_(x.mean())
        return self.kept.clone()


class Replaced(Absent):
    def mean(self, x):
        self.kept = torch.ones(1024) if self.kept is None else 0.9 * self.kept + x.mean()
        return self.kept


class Attribute(Block):
    def mean(self, x):
        if not hasattr(self, "kept"):
            self.kept = torch.ones(1024)
        return self.kept


class Tower(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.first, self.blocks = nn.Linear(16, 16), nn.ModuleList(kind() for _ in range(5))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


BUILDERS = {"tower": Tower, "sequence": lambda kind: nn.Sequential(nn.Linear(16, 16), *(kind() for _ in range(5)))}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("kind", [Block, Absent, Replaced, Attribute])
def test_the_first_steps_keep_the_budget_and_are_the_planned_ones(kind, name, monkeypatch):
    torch.manual_seed(0)
    model, x = BUILDERS[name](kind), batch(rows=256)
    square(nn.Sequential(nn.Linear(16, 16), nn.Tanh())(x)).backward()  # what torch itself allocates once
    frontier = revolve.solve(revolve.measure(model, x))
    plan = frontier.plan(frontier.smallest)
    assert not plan.plain
    revolve.checkpointed(model, plan)
    monkeypatch.setattr("revolve.runtime.runner.measure_children", None)  # a call would be measured anew
    for _ in range(3):
        model.zero_grad()
        with warnings.catch_warnings(), trace_allocations(CPU) as tracer:
            warnings.simplefilter("error", BudgetWarning)
            loss = square(model(x))
            loss.backward()
            tracer.mark()
        room = 4096 if (kind, name) == (Replaced, "sequence") else 0  # the old value, where a stage runs again
        assert tracer.phases[0].peak <= plan.peak + room
