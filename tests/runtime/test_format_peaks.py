"""Peaks of plans with formats: never below the measured ones, and hardly above where a form's size is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from steps import run_step
from torch import nn

import revolve
from revolve import Plan
from revolve.runtime.allocations import Phase
from revolve.runtime.format_trials import ActivationTrial, passing_around
from revolve.storage.accounts import DenserThanPlanned

SIDE = 40


class Mean(nn.Module):
    """Has hardly anything in passing, and saves nothing."""

    def forward(self, x):
        return x.mean((2, 3))


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(96, 96), nn.Tanh())), nn.Linear(96, 2))


def pictures() -> torch.Tensor:
    return torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def first_stored(format_: str, length: int) -> list[list]:
    """Store x_1, run the rest, run it again from there."""
    forward = [["forward", 0], ["store", 1, format_], *(["forward", i] for i in range(1, length))]
    again = [["load", 1], ["drop", 1], *(["save", i] for i in range(1, length))]
    back = [["backward", i] for i in reversed(range(1, length))]
    return [*forward, ["loss"], *again, *back, ["load", 0], ["rebuild", 0], ["backward", 0]]


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["bf16", "int8", "int4", "disk"])
def test_points_of_the_frontier(format_):
    model, x = perceptron(), torch.randn(4096, 96)
    chain = revolve.measure(model, x, formats=(format_,))
    fast = revolve.solve(free_of_charge(chain, format_), (format_,))
    used = set()
    for peak in fast.peaks[:: max(1, len(fast.peaks) // 5)]:
        plan = Plan.from_actions(chain, fast.plan(int(peak)).actions)
        used |= {type(action).__name__ for action in plan.actions if getattr(action, "format", None) == format_}
        revolve.checkpointed(model, plan)
        report = revolve.verify(model, x, repeats=1)
        assert report.passed, report.differences
        assert 0.99 * report.predicted_peak <= report.measured_peak <= report.predicted_peak
    assert used == ({"Save"} if format_ == "disk" else {"Save", "Store"})  # a save on disk takes no memory


def free_of_charge(chain: revolve.Chain, format_: str) -> revolve.Chain:
    """Return a chain whose formats take no time, so that plans are full of them."""
    document = chain.to_json()
    costs = document["formats"][format_]
    costs.update({name: [0.0] * len(values) for name, values in costs.items() if name.endswith("_time")})
    return revolve.Chain.from_json(document)


@pytest.mark.parametrize("format_", ["int8", "int4"])
def test_what_encoding_takes_in_passing_is_planned_for_where_nothing_else_covers_it(format_):
    """Neither the convolution before nor the mean behind takes as much, and nothing later is larger."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 16, 3), Mean(), nn.Linear(16, 2)), pictures()
    chain = revolve.measure(model, x, formats=(format_,))
    plan = Plan.from_actions(chain, first_stored(format_, len(chain)))
    revolve.checkpointed(model, plan)
    report = revolve.verify(model, x, repeats=1)
    dense = chain.activation_bytes(1)
    assert report.measured_peak > dense * (1 + int(format_[3:]) / 32 + 1 / 16 + 0.1)  # the form, and some more
    assert report.measured_peak <= report.predicted_peak


@pytest.mark.parametrize(
    ("storing", "loading", "made", "used", "planned"),
    [
        (0, 0, 0, 0, 25),
        (10, 0, 0, 0, 35),
        (10, 0, 34, 0, 35),  # one byte too few
        (10, 0, 35, 0, 25),  # while there is no form yet
        (10, 0, 0, 6, 29),  # beside the form
        (10, 0, 0, 10, 25),
        (0, 10, 99, 0, 35),
        (0, 10, 0, 34, 35),
        (0, 10, 0, 35, 25),  # the form may be dropped before the stage runs
        (10, 4, 0, 8, 29),
    ],
)
def test_what_covers_transient_bytes(storing, loading, made, used, planned):
    trial = object.__new__(ActivationTrial)
    trial.dense_bytes = 100
    trial.account = type("Spent", (), {"spent": 20, "reserve": 5})()
    phases = [Phase(0, 0, 0), Phase(7, 7 + 20 + storing, 7 + 20), Phase(27, 27 + 100 + loading, 127)]
    assert trial.stored_bytes(phases, made, used) == planned


STAGE = {
    **{"output_bytes": 100, "saved_bytes": 10, "saves_input": True, "saves_output": False},
    **{"forward_extra": 50, "save_extra": 40, "rebuild_extra": 7, "backward_extra": 500},
}


@pytest.mark.parametrize(
    ("before", "after", "last", "around"),
    [
        ({}, {}, False, (50, 150)),
        ({"saved_bytes": 0}, {"saved_bytes": 0}, False, (40, 140)),
        ({}, {"backward_extra": 20}, False, (50, 30)),
        ({}, {"backward_extra": 120, "saves_input": False}, False, (50, 30)),  # x_i is gone by then
        ({}, {"backward_extra": 0}, False, (50, 17)),
        ({}, {"backward_extra": 0, "saves_output": True}, False, (50, 117)),
        ({}, {}, True, (50, 50)),  # its output may be the caller's
    ],
)
def test_what_passes_around_an_activation(before, after, last, around):
    fields = [{**STAGE, **before}, {**STAGE, **after}, *([] if last else [STAGE])]
    assert passing_around(1, fields) == around


def test_what_a_format_cannot_keep_is_said_to_be_so():
    model, x = perceptron(), torch.randn(1024, 96)
    chain = revolve.measure(model, x, formats=("int8",))
    actions = [*(["save", i, "int8"] for i in range(len(chain))), ["loss"]]
    plan = Plan.from_actions(chain, [*actions, *(["backward", i] for i in reversed(range(len(chain))))])
    planned = revolve.checkpointed(model, replace(plan, budget=plan.peak))
    run_step(planned, x)
    odd = x.clone()
    odd[0, 0] = math.nan
    with pytest.raises(
        DenserThanPlanned, match=r"what stage '1' saves .* fewer zeros, or values the format cannot keep"
    ):
        planned(odd)
