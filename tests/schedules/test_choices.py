"""Choosing a point of a frontier: least peak, knee, plain training, a percentage, an overhead."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_chains import random_chain

from revolve.schedules import BudgetError, Chain, InfeasibleBudget, simulate, solve
from revolve.schedules.overheads import parse_overhead
from revolve.schedules.plans import plain_schedule

chains = st.builds(
    lambda seed, length: random_chain(random.Random(seed), length, formats=0),
    st.integers(0, 2**32),
    st.integers(1, 9),
)
properties = settings(max_examples=60)


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


class Drawn:
    """Gives a frontier other points than the solver's, to draw its shape by hand."""

    def __init__(self, points):
        self.frontier = solve(Chain.uniform(2))
        self.frontier.peaks = np.array([peak for peak, _ in points])
        self.frontier.makespans = np.array([float(makespan) for _, makespan in points])


@pytest.mark.parametrize(
    ("points", "knee"),
    [
        ([(10, 5)], 10),
        ([(10, 5), (20, 1)], 10),
        ([(10, 9), (11, 3), (12, 2), (20, 1)], 12),  # below the chord by 0.625, 0.65
        ([(10, 9), (11, 3), (13, 2), (20, 1)], 11),  # the same, 0.575
        ([(10, 9), (15, 5), (20, 1)], 10),  # on the chord
        ([(10, 9), (17, 8), (20, 1)], 10),  # above it
        ([(0, 3), (1, 2), (2, 1), (3, 0)], 0),  # on it, though 1 - 1/3 - 2/3 is no 0 in floating point
    ],
)
def test_knee_is_farthest_below_the_chord(points, knee):
    assert Drawn(points).frontier.knee == knee


@properties
@given(chains)
def test_knee_by_its_definition(chain):
    frontier = solve(chain)
    peaks, times = frontier.peaks.tolist(), [nanoseconds(makespan) for makespan in frontier.makespans]
    assert isinstance(frontier.knee, int)
    assert frontier.knee in peaks
    if len(peaks) < 3:
        assert frontier.knee == frontier.smallest
        return
    gains = [
        1 - Fraction(p - peaks[0], peaks[-1] - peaks[0]) - Fraction(t - times[-1], times[0] - times[-1])
        for p, t in zip(peaks, times, strict=True)
    ]
    assert gains[peaks.index(frontier.knee)] == max(gains)
    assert frontier.plan(frontier.knee).peak == frontier.knee


@properties
@given(chains)
def test_plain_is_the_last_point_and_its_plan_plain_training(chain):
    frontier = solve(chain)
    assert isinstance(frontier.plain, int)
    assert frontier.plain == frontier.peaks[-1] == simulate(chain, plain_schedule(len(chain))).peak
    assert frontier.plan(frontier.plain).plain


@pytest.mark.parametrize("tolerance", [0.0, 0.5])
def test_plain_budgets_give_plain_training_whatever_was_left_out(tolerance):
    # Stages that take no time can be run again for nothing, and a tolerance leaves points out.
    free = Chain.uniform(6, forward=0.0, backward=1.0, saved_bytes=5)
    slow = Chain.uniform(6, forward=1e-9, backward=1.0, saved_bytes=5)
    for chain in (free, slow):
        frontier = solve(chain, tolerance=tolerance)
        assert frontier.plain == simulate(chain, plain_schedule(6)).peak
        assert frontier.plan(frontier.plain).plain
        assert frontier.plan("100%").plain
        assert frontier.plan(overhead=0).makespan == chain.plain_makespan


@properties
@given(chains, st.integers(0, 130))
def test_percentages_are_of_plain_training(chain, percent):
    frontier = solve(chain)
    budget = frontier.plain * percent // 100
    if budget < frontier.smallest:
        with pytest.raises(InfeasibleBudget) as caught:
            frontier.plan(f"{percent}%")
        assert caught.value.budget == budget
        return
    plan = frontier.plan(f"{percent}%")
    assert plan.budget == budget
    assert plan.actions == frontier.plan(budget).actions


@properties
@given(chains, st.integers(0, 60))
def test_overhead_gives_the_least_peak_that_keeps_it(chain, percent):
    frontier = solve(chain)
    plain = nanoseconds(chain.plain_makespan)
    plan = frontier.plan(overhead=f"{percent}%")
    assert 100 * nanoseconds(plan.makespan) <= (100 + percent) * plain
    assert plan.peak == plan.budget == frontier.budget_for(percent / 100)
    cheaper = frontier.peaks[frontier.peaks < plan.peak]
    for peak in cheaper:
        assert 100 * nanoseconds(frontier.plan(int(peak)).makespan) > (100 + percent) * plain


def test_overhead_is_compared_to_the_nanosecond():
    # 10 stages of 1 + 1 s: one forward run more is exactly 5 %, and as a float 20 * 1.05 is 21.
    chain = Chain.uniform(10, saved_bytes=5)
    assert solve(chain).plan(overhead=0.05).makespan == 21.0
    assert solve(chain).plan(overhead=0.0499999).makespan == 20.0
    stages = (replace(chain.stages[0], forward=1.0 + 1e-9), *chain.stages[1:])
    late = solve(replace(chain, stages=stages))
    assert late.plan(overhead="5%").makespan == 21.000000001  # of 21.00000000105


@pytest.mark.parametrize("tolerance", [0.0, 0.3, 3.0])
def test_overhead_is_kept_with_a_tolerance_too(tolerance):
    frontier = solve(random_chain(random.Random(4), 12, formats=0), tolerance=tolerance)
    for overhead in (0, 0.02, "10%", 0.5):
        plan = frontier.plan(overhead=overhead)
        assert plan.makespan <= (1 + float(parse_overhead(overhead))) * plan.plain_makespan + 1e-9


def test_plain_training_where_its_point_was_left_out():
    frontier = solve(Chain.uniform(5, saved_bytes=7))
    frontier.peaks, frontier.makespans = frontier.peaks[:-1], frontier.makespans[:-1]
    assert frontier.budget_for(0) == frontier.plain > frontier.peaks[-1]
    assert frontier.plan(overhead=0).plain


@pytest.mark.parametrize(
    ("overhead", "share"),
    [
        (0, 0),
        (0.1, Fraction(1, 10)),
        ("0.1", Fraction(1, 10)),
        (" 10 % ", Fraction(1, 10)),
        ("12.5%", Fraction(1, 8)),
        (2, 2),
        (1e-5, Fraction(1, 10**5)),
        ("1E-2", Fraction(1, 100)),
        (np.float64(0.3), Fraction(3, 10)),
        (np.int64(1), 1),
    ],
)
def test_overheads_that_can_be_read(overhead, share):
    assert parse_overhead(overhead) == share


BAD = [-0.1, "-10%", float("nan"), float("inf"), "nan", "ten", "", "%", True, (0.1,), "1/3", "1e9999", "10%%", b"1"]


@pytest.mark.parametrize("overhead", BAD)
def test_overheads_that_cannot_be_read_are_repeated(overhead):
    with pytest.raises(BudgetError) as caught:
        solve(Chain.uniform(2)).plan(overhead=overhead)
    assert repr(overhead) in str(caught.value)
    assert "0 or more" in str(caught.value)


def test_exactly_one_of_budget_and_overhead():
    frontier = solve(Chain.uniform(2))
    with pytest.raises(BudgetError, match=r"budget=None and overhead=None: .* exactly one"):
        frontier.plan()
    with pytest.raises(BudgetError, match=r"budget=3 and overhead=0\.1: .* exactly one"):
        frontier.plan(3, overhead=0.1)
