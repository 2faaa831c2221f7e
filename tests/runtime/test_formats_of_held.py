"""What leaps over stages, or is not their own, stays dense where they are kept in storage formats."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from branching import make, normal
from formatted import check, forced
from test_formats import SCHEDULES
from torch import nn
from torch.nn import functional
from twins import assert_equal, run

import revolve
from revolve import Plan
from revolve.runtime import interception
from revolve.runtime.exceptions import BudgetWarning
from revolve.runtime.interception import chain_of


class Pair(nn.Module):
    """Two layers beside one another, on one tensor or two."""

    def __init__(self, width):
        super().__init__()
        self.left, self.right = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x, y=None):
        return self.left(x), self.right(x if y is None else y)


class Leaping(nn.Module):
    """Of two tensors that pass from the first layers to the second ones, the last stage takes and saves one, too."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first, self.second, self.third = Pair(width), Pair(width), nn.Linear(width, width)
        self.last = nn.Linear(2 * width, width)

    def forward(self, x):
        x, leaping = self.first(x)
        x, y = self.second(x, leaping)
        x = self.third(x + y)
        return self.last(torch.cat([x * leaping, leaping], 1))


def leaping():
    torch.manual_seed(0)
    return Leaping(), normal(2048, 64)


@pytest.mark.parametrize("way", ["measured", "from a file", "copied"])
def test_what_leaps_over_stages_is_known_before_it_is_made(way, monkeypatch):
    """It is held dense, and a form of it would be one too many; a plan from a file finds it out in its first call."""
    model, sample = leaping()
    plan = forced(revolve.measure(model, sample, formats=("int8",)), "saving", "int8")
    if way == "from a file":
        plan, model = Plan.from_json(plan.to_json()), leaping()[0]
    revolve.checkpointed(model, plan)
    if way == "copied":
        model = pickle.loads(pickle.dumps(model))
    scouted = []
    scout = interception.scout
    monkeypatch.setattr(interception, "scout", lambda *arguments: scouted.append(1) or scout(*arguments))
    with warnings.catch_warnings():
        warnings.simplefilter("error", BudgetWarning)
        report = revolve.verify(model, sample, repeats=1)
    assert report.passed
    assert report.measured_peak <= report.predicted_peak
    assert scouted == [1] * (way == "from a file")
    passed = chain_of(model).passed
    assert [sorted(stage.held) for stage in passed] == [[1], [], [], []]
    plain = revolve.restore(copy.deepcopy(model))
    model.eval()
    assert torch.equal(model(sample), plain(sample))


class Squashing(Pair):
    """Saves one of the two tensors that it gives."""

    def forward(self, x):
        x, y = super().forward(x)
        return x.tanh(), y


class Shortcut(nn.Module):
    """What the first stage saves leaps to the last one; something else passes to the next one."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first, self.last = Squashing(width), nn.Linear(width, width)
        self.middle = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x):
        leaping, x = self.first(x)
        for layer in self.middle:
            x = layer(x)
        return self.last(x + leaping)


def test_holders_refer_to_what_is_held_anyway():
    """A coarse form of what the first stage saves would be one too many, and its gradients would deviate."""
    torch.manual_seed(0)
    model, sample = Shortcut(), normal(512, 64)
    chain = revolve.measure(model, sample, formats=("bf16",))
    actions = [["save", i, *(["bf16"] * (i == 0))] for i in range(len(chain))]
    plan = Plan.from_actions(chain, [*actions, ["loss"], *(["backward", i] for i in reversed(range(len(chain))))])
    assert chain.stages[0].name == "first"
    assert chain.encoded("bf16", 1)
    report = revolve.verify(revolve.checkpointed(model, plan), sample, repeats=1)
    assert report.exact
    assert report.lossy == ("bf16",)
    for schedule in SCHEDULES:  # the stage is run again, and what it saves is not what is held
        assert check(model, sample, forced(chain, schedule, "bf16"), "bf16") > 0.7


@pytest.mark.parametrize("name", ["transformer", "residual"])
def test_scouting_leaves_no_trace(name):
    model, sample = make(name)
    plain = copy.deepcopy(model)
    plan = forced(revolve.measure(model, sample, formats=("bitmap",)), "storing", "bitmap")
    model = revolve.checkpointed(copy.deepcopy(plain), plan)  # of which nothing is known
    before = list(model.parameters())
    assert_equal(run(model, sample), run(plain, sample))
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), before, strict=True))
    assert_equal(run(model, sample), run(plain, sample))


class Rated(nn.Module):
    """Adds up how large its layers' outputs are, in place, in a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))

    def forward(self, x):
        total = torch.zeros_like(x)
        for layer in self.layers:
            x = functional.relu(layer(x))
            total.addcmul_(x + 1, x)
            x = x * 1.5
            x *= x.sigmoid()
        return x + total


@pytest.mark.parametrize(
    "format_", ["bitmap", *(pytest.param(name, marks=pytest.mark.slow) for name in ("int8", "disk"))]
)
def test_functions_that_change_what_their_stage_has_not_made_are_left_outside(format_):
    """What they save stays dense, and is none of the stage's."""
    torch.manual_seed(0)
    model, sample = Rated(), normal(4, 8, 24, 24)
    chain = revolve.measure(model, sample, formats=(format_,))
    for schedule in SCHEDULES:
        check(model, sample, forced(chain, schedule, format_), format_)
