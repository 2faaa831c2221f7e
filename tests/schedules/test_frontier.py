"""The frontier: what every budget costs, all at once."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_chains import random_chain

from revolve.schedules import BudgetError, Chain, ChainError, InfeasibleBudget, count_forwards, simulate, solve

chains = st.builds(
    lambda seed, length, formats, modes: random_chain(random.Random(seed), length, formats=formats, modes=modes),
    st.integers(0, 2**32),
    st.integers(1, 9),
    st.integers(0, 2),
    st.booleans(),
)
properties = settings(max_examples=60)


def nanoseconds(seconds):
    return np.rint(np.asarray(seconds) * 1e9).astype(np.int64)


@properties
@given(chains)
def test_every_point_is_a_plan_with_that_peak_and_makespan(chain):
    frontier = solve(chain, formats=tuple(chain.formats))
    assert frontier.smallest == frontier.peaks[0]
    for peak, makespan in zip(frontier.peaks, frontier.makespans, strict=True):
        plan = frontier.plan(int(peak))
        judged = simulate(chain, plan.actions)
        assert (plan.peak, plan.makespan) == (judged.peak, judged.makespan) == (peak, makespan)


@properties
@given(chains)
def test_more_bytes_always_save_time(chain):
    frontier = solve(chain, formats=tuple(chain.formats))
    assert len(frontier) == len(frontier.peaks) == len(frontier.makespans)
    assert (np.diff(frontier.peaks) > 0).all()
    assert (np.diff(frontier.makespans) < 0).all()


@properties
@given(chains, st.data())
def test_between_two_points_the_lower_one_counts(chain, data):
    frontier = solve(chain)
    budget = data.draw(st.integers(frontier.smallest, 2 * int(frontier.peaks[-1]) + 1))
    plan = frontier.plan(budget)
    point = np.searchsorted(frontier.peaks, budget, side="right") - 1
    assert plan.peak == frontier.peaks[point] <= budget
    assert plan.makespan == frontier.makespans[point]
    assert plan.budget == budget


@properties
@given(chains)
def test_last_point_is_plain_training(chain):
    frontier = solve(chain)
    for budget in (int(frontier.peaks[-1]), 2 * int(frontier.peaks[-1]) + 1):
        plan = frontier.plan(budget)
        assert plan.plain
        assert plan.ratio == 1.0
        assert plan.peak == plan.plain_peak
        assert plan.makespan == plan.plain_makespan == chain.plain_makespan


@properties
@given(chains)
def test_below_the_smallest_budget_the_error_names_it(chain):
    frontier = solve(chain)
    if frontier.smallest == 0:
        assert frontier.plan(0).peak == 0
        return
    with pytest.raises(InfeasibleBudget, match=rf"least feasible {frontier.smallest} bytes") as caught:
        frontier.plan(frontier.smallest - 1)
    assert caught.value.smallest == frontier.smallest
    assert caught.value.budget == frontier.smallest - 1
    assert "\n" not in str(caught.value)
    assert frontier.plan(caught.value.smallest).peak == frontier.smallest


@properties
@given(chains, st.sampled_from([0.001, 0.01, 0.1, 1.0]))
def test_tolerance_bounds_the_excess(chain, tolerance):
    exact, rough = solve(chain), solve(chain, tolerance=tolerance)
    assert rough.smallest == exact.smallest
    assert len(rough) <= len(exact)
    assert rough.tolerance == tolerance
    for peak, makespan in zip(exact.peaks, exact.makespans, strict=True):
        plan = rough.plan(int(peak))
        assert plan.peak <= peak
        assert plan.makespan <= (1 + tolerance) * makespan + 1e-9
        assert plan.tolerance == tolerance


@pytest.mark.parametrize(("tolerance", "share"), [(0.1, 0.7), (0.5, 0.25), (2.0, 0.1)])
def test_tolerance_thins_a_long_frontier_within_its_bound(tolerance, share):
    chain = random_chain(random.Random(0), 25, largest=10**6, formats=0)
    exact, rough = solve(chain), solve(chain, tolerance=tolerance)
    assert len(rough) < share * len(exact)
    serving = np.searchsorted(rough.peaks, exact.peaks, side="right") - 1
    assert (rough.makespans[serving] <= (1 + tolerance) * exact.makespans).all()


@properties
@given(chains, st.integers(2, 7))
def test_scaling_times_scales_makespans(chain, factor):
    document = chain.to_json()
    document["loss_time"] *= factor
    for stage in document["stages"]:
        for name in ("forward", "rebuild", "backward"):
            stage[name] *= factor
    scaled, frontier = solve(Chain.from_json(document)), solve(chain)
    assert (scaled.peaks == frontier.peaks).all()
    assert (nanoseconds(scaled.makespans) == factor * nanoseconds(frontier.makespans)).all()


@properties
@given(chains, st.integers(2, 4), st.data())
def test_permuting_equal_stages_changes_nothing(chain, count, data):
    # Equal but for their names, which solvers must not look at.
    position = data.draw(st.integers(0, len(chain) - 1))
    copies = [replace(chain.stages[position], name=f"copy {index}") for index in range(count)]
    frontiers = []
    for order in (copies, data.draw(st.permutations(copies))):
        stages = (*chain.stages[:position], *order, *chain.stages[position + 1 :])
        frontiers.append(solve(replace(chain, stages=stages, formats={})))
    assert frontiers[0].peaks.tolist() == frontiers[1].peaks.tolist()
    assert frontiers[0].makespans.tolist() == frontiers[1].makespans.tolist()


@properties
@given(chains)
def test_formats_never_cost_time(chain):
    dense, free = solve(chain), solve(chain, formats=tuple(chain.formats))
    assert free.smallest <= dense.smallest
    for peak, makespan in zip(dense.peaks, dense.makespans, strict=True):
        assert free.plan(int(peak)).makespan <= makespan


def test_a_format_is_used_where_it_pays():
    # Storing x_1 dense does not fit; halved, it spares the second run of the slow stage 0.
    chain = Chain.uniform(2, output_bytes=10, saved_bytes=20, saves_input=False, backward_extra=0)
    slow = replace(chain.stages[0], forward=100.0, rebuild=100.0, saved_bytes=90)
    document = replace(chain, stages=(slow, *chain.stages[1:] * 3)).to_json()
    costs = {"stored_bytes": [5] * 5, "store_time": [1.0] * 5, "load_time": [2.0] * 5}
    chain = Chain.from_json({**document, "formats": {"bitmap": costs}})
    dense, both = solve(chain), solve(chain, formats="bitmap")
    assert both.smallest <= dense.smallest
    used = [both.plan(int(peak)).formats() for peak in both.peaks]
    assert ("bitmap",) in used or ("dense", "bitmap") in used or ("bitmap", "dense") in used
    assert not any("bitmap" in dense.plan(int(peak)).formats() for peak in dense.peaks)


def test_a_save_mode_is_used_where_it_pays():
    # Stage 1 saves its output, stage 2 its input, which is the same: halved once, it leaves room for the loss, and
    # without that the first three stages run again.
    chain = Chain.uniform(4, forward=10.0, output_bytes=10, backward_extra=0)
    stages = [replace(stage, saves_input=i == 2, saves_output=i == 1) for i, stage in enumerate(chain.stages)]
    costs = {"stored_bytes": [5] * 5, "store_time": [1.0] * 5, "load_time": [2.0] * 5, "saved_bytes": [0] * 4}
    costs |= {"encode_time": [0.25] * 4, "decode_time": [0.5] * 4, "save_extra": [0] * 4, "backward_extra": [0] * 4}
    stages[3] = replace(stages[3], output_bytes=0)
    document = replace(chain, stages=tuple(stages)).to_json() | {"loss_extra": 30}
    chain = Chain.from_json(document | {"formats": {"bitmap": costs}})
    dense, both = solve(chain), solve(chain, formats="bitmap")
    plan = both.plan(overhead="10%")
    assert [a.to_json() for a in plan.actions if a.kind == "save"] == [
        ["save", 0], ["save", 1, "bitmap"], ["save", 2, "bitmap"], ["save", 3],
    ]  # fmt: skip
    assert plan.makespan == chain.plain_makespan + 1.0 + 2 * (0.25 + 0.5)
    assert (plan.peak, dense.plain) == (30 + 5, 30 + 10)
    assert dense.plan(plan.peak).makespan == chain.plain_makespan + 3 * 10.0


@pytest.mark.parametrize("length", range(1, 13))
def test_uniform_chain_with_room_for_one_tape_is_revolve(length):
    # The saved tensors of one stage are so large that two never fit: that is Revolve's tape of one step. Next
    # to the tape, a rebuild holds x_L, the gradient, the stage's own input and the stored activations, a
    # byte each; the byte of loss_extra stands for that input at the turn-around, where nothing is rebuilt.
    tape = 1000
    chain = Chain.uniform(length, saved_bytes=tape, saves_input=False, backward_extra=0)
    chain = replace(chain, loss_extra=1)
    frontier = solve(chain)
    for slots in range(1, length + 1):
        plan = frontier.plan(tape + slots + 2)
        assert plan.makespan == count_forwards(length, slots) + 2 * length


@pytest.mark.parametrize("budget", ["lots", -1, 1.5, None, "50 per cent"])
def test_budgets_that_cannot_be_understood(budget):
    with pytest.raises(BudgetError, match="budget"):
        solve(Chain.uniform(2)).plan(budget)


def test_budgets_may_be_written_for_people():
    frontier = solve(Chain.uniform(4, output_bytes=10**6))
    assert frontier.plan("4MB").actions == frontier.plan(4 * 10**6).actions


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf"), "1%"])
def test_impossible_tolerances(tolerance):
    with pytest.raises(BudgetError, match="tolerance="):
        solve(Chain.uniform(2), tolerance=tolerance)


def test_the_chain_of_a_plan_has_the_formats_that_were_allowed():
    chain = random_chain(random.Random(3), 4, formats=2)
    first, second = chain.formats
    plan = solve(chain, (first,)).plan("100%")
    assert list(plan.chain.formats) == [first]
    assert solve(chain).plan("100%").chain.formats == {}
    assert solve(chain, (second, first)).chain == chain


def test_unknown_format():
    with pytest.raises(ChainError, match=r"format 'bitmap' is not among the chain's \(dense\)"):
        solve(Chain.uniform(2), formats=("dense", "bitmap"))


def test_pickle():
    chain = random_chain(random.Random(3), 5, formats=1)
    frontier = solve(chain, formats=tuple(chain.formats))
    plan = frontier.plan(frontier.smallest)
    with pytest.raises(InfeasibleBudget) as caught:
        frontier.plan(frontier.smallest - 1)
    assert pickle.loads(pickle.dumps(chain)) == chain
    assert pickle.loads(pickle.dumps(plan)) == plan
    error = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(error, InfeasibleBudget)
    assert str(error) == str(caught.value)
    assert (error.smallest, error.budget) == (frontier.smallest, frontier.smallest - 1)


def test_repr_shows_the_ends():
    assert repr(solve(Chain.uniform(2, saved_bytes=10**6))) == "<Frontier of 2 points, 1 MB .. 2 MB>"
