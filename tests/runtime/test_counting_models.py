"""Models whose result depends on what they keep outside of buffers: measuring and verifying put it back."""

from __future__ import annotations

import copy

import pytest
import torch
from steps import batch, square
from torch import nn
from torch.nn import functional

import revolve


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return (x + self.down(self.up(x).tanh())) * (1 + 0.1 * self.count())

    def count(self):
        return 0.0


class Number(Block):
    calls = 0

    def count(self):
        self.calls += 1
        return self.calls


class InPlace(Block):
    def __init__(self):
        super().__init__()
        self.calls = torch.zeros(())

    def count(self):
        return self.calls.add_(1).clone()


class Replaced(InPlace):
    def count(self):
        self.calls = self.calls + 1
        return self.calls


class Listed(Block):
    def __init__(self):
        super().__init__()
        self.calls = [torch.zeros(())]

    def count(self):
        return self.calls[0].add_(1).clone()


class Late(Block):
    """Has no such attribute before its first call."""

    def count(self):
        self.calls = getattr(self, "calls", 0) + 1
        return self.calls


class Statistics(Block):
    """Raises no version when it writes."""

    def __init__(self):
        super().__init__()
        self.mean, self.variance = torch.zeros(16), torch.ones(16)

    def forward(self, x):
        y = functional.batch_norm(super().forward(x), self.mean, self.variance, training=True)
        return y * (1 + self.mean.norm().item())


class Tower(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.blocks = nn.ModuleList(kind() for _ in range(4))
        self.steps, self.history, self.known, self.seen = 0, [], {"steps": 0}, set()

    def forward(self, x):
        self.steps += 1
        self.known["steps"] += 1
        self.history.append(self.steps)
        self.seen.add(self.steps)
        x = x * (self.steps + len(self.history) + self.known["steps"] + len(self.seen))
        for block in self.blocks:
            x = block(x)
        return x


KINDS = (Block, Number, InPlace, Replaced, Listed, Late, Statistics)
BUILDERS = {"tower": Tower, "sequence": lambda kind: nn.Sequential(*(kind() for _ in range(4)))}


def attributes(model):
    """Return copies of what the user's own attributes are."""
    standard = vars(nn.Module()).keys() | {"forward"}
    own = [{name: value for name, value in vars(m).items() if name not in standard} for m in model.modules()]
    return copy.deepcopy(own)


def step(model):
    model.zero_grad()
    loss = square(model(batch()))
    loss.backward()
    return [loss, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_counts_its_calls(kind, build):
    torch.manual_seed(0)
    model = build(kind)
    plain, before = copy.deepcopy(model), attributes(model)
    frontier = revolve.solve(revolve.measure(model, batch()))
    assert str(attributes(model)) == str(before)
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    report = revolve.verify(model, batch(), repeats=1)
    assert report.exact, report.differences
    assert report.kept
    assert str(attributes(model)) == str(before)
    for _ in range(2):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(step(model), step(plain), strict=True))
    assert str(attributes(model)) == str(attributes(plain))
