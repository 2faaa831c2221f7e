"""Chains whose activations carry what leaps over stages: shared bytes, and the better of two frontiers."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_chains import passing_on, random_chain

from revolve.schedules import Chain, ChainError, InfeasibleBudget, Plan, simulate, solve
from revolve.schedules.plans import plain_schedule, with_carried


def pair(seed: int) -> Chain:
    """Return a chain with one that holds less and carries more."""
    rng = random.Random(seed)
    chain = random_chain(rng, rng.randint(2, 7), formats=0)
    heavier = [replace(stage, backward_extra=stage.backward_extra + rng.randint(0, 30)) for stage in chain.stages]
    larger = [replace(s, output_bytes=s.output_bytes + rng.randint(0, 8)) for s in chain.stages[:-1]]
    carried = passing_on(replace(chain, stages=(*larger, chain.stages[-1])), rng)
    return with_carried(replace(chain, stages=tuple(heavier)), carried)


def makespan(frontier, budget):
    try:
        return frontier.plan(budget).makespan
    except InfeasibleBudget:
        return float("inf")


@given(seed=st.integers(0, 2**32), tolerance=st.sampled_from([0.0, 0.1]))
def test_for_every_budget_the_better_plan_counts(seed, tolerance):
    chain = pair(seed)
    frontier = solve(chain, tolerance=tolerance)
    held, carried = (solve(c, tolerance=tolerance) for c in (replace(chain, carried=None), chain.carried))
    assert frontier.smallest == min(held.smallest, carried.smallest)
    assert all(a < b for a, b in zip(frontier.peaks, frontier.peaks[1:], strict=False))
    assert all(a > b for a, b in zip(frontier.makespans, frontier.makespans[1:], strict=False))
    for budget in {*held.peaks.tolist(), *carried.peaks.tolist(), frontier.plain}:
        plan = frontier.plan(budget)
        assert plan.peak == simulate(plan.chain, plan.actions).peak <= budget
        if not tolerance:
            assert plan.makespan == min(makespan(held, budget), makespan(carried, min(budget, held.plain)))
        assert plan.plain_peak == held.plain
        assert Plan.from_json(plan.to_json()) == plan
    assert (frontier.makespans <= (1 + tolerance) * frontier.least_makespans * (1 + 1e-12)).all()
    assert frontier.plan(frontier.plain).plain
    assert not frontier.plan(frontier.plain).chain.carries


def test_both_kinds_of_plans_are_chosen():
    found = set()
    for seed in range(20):
        frontier = solve(pair(seed))
        found |= {frontier.plan(int(peak)).chain.carries for peak in frontier.peaks}
    assert found == {False, True}


def test_what_passes_through_counts_once_while_a_stage_runs():
    stage = {"forward": 1.0, "backward": 1.0, "saved_bytes": 0, "saves_input": False, "backward_extra": 0}
    stages = [stage | {"output_bytes": size} for size in (10, 12, 1)]
    stages[1] |= {"passed_bytes": 7, "forward_extra": 3, "save_extra": 2}
    chain = Chain.from_json({"format": "revolve.chain/1", "input_bytes": 5, "stages": stages})
    actions = [["save", 0], ["save", 1], ["save", 2], ["loss"], *(["backward", i] for i in (2, 1, 0))]
    peaks = [entry.peak for entry in simulate(chain, actions).timeline]
    assert peaks[:3] == [10, 10 + 12 - 7 + 2, 12 + 1]
    forward = [["forward", 0], ["forward", 1], ["forward", 2], ["loss"]]
    again = [["load", 0], ["forward", 0], ["forward", 1], ["rebuild", 2], ["backward", 2]]
    again += [["load", 0], ["forward", 0], ["rebuild", 1], ["backward", 1], ["load", 0], ["rebuild", 0]]
    timeline = simulate(chain, [*forward, *again, ["backward", 0]]).timeline
    assert timeline[1].peak == 10 + 12 - 7 + 3
    assert timeline[1].held == 12  # of x_1 only what x_2 has, too, is left


def test_documents():
    chain = pair(3)
    assert Chain.from_json(chain.to_json()) == chain
    document = chain.carried.to_json()
    assert document["carries"] is True
    assert document["plain_peak"] == simulate(chain, plain_schedule(len(chain))).peak
    bare = replace(chain, carried=None).to_json()
    assert not {"carried", "carries", "plain_peak"} & set(bare)
    assert all("passed_bytes" not in stage for stage in bare["stages"])


@pytest.mark.parametrize(
    ("index", "size", "message"),
    [(0, 1, "stage 0 .*passed_bytes is 1; .*x_0"), (1, 4, "stage 1 .*passed_bytes is 4; .*3 bytes"), (2, 1, "x_L")],
)
def test_nothing_passes_that_is_not_in_both(index, size, message):
    document = Chain.uniform(3, output_bytes=3).to_json()
    document["stages"][index]["passed_bytes"] = size
    with pytest.raises(ChainError, match=message):
        Chain.from_json(document)


def test_a_carried_chain_of_other_stages():
    document = Chain.uniform(3).to_json() | {"carried": Chain.uniform(2).to_json()}
    with pytest.raises(ChainError, match="carried has other stages"):
        Chain.from_json(document)
