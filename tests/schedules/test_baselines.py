"""The baselines: each one by its definition, valid, within its budget, and never better than the best."""

from __future__ import annotations

import random

import pytest
from exhaustive import least_makespan
from hypothesis import given, settings
from hypothesis import strategies as st
from random_chains import random_chain

from revolve.schedules import (
    BudgetError,
    Chain,
    ChainError,
    InfeasibleBudget,
    plan_balanced,
    plan_every_nth,
    plan_greedy,
    plan_revolve,
    plan_sequential,
    plan_sublinear,
    revolve,
    sequential,
    simulate,
    solve,
)
from revolve.schedules.comparison import BASELINES
from revolve.schedules.families import plan_fastest
from revolve.schedules.greedy import greedy_starts, list_members
from revolve.schedules.periodic import every_nth
from revolve.schedules.plans import plain_schedule
from revolve.schedules.segments import schedule_from_cuts, schedule_from_segments
from revolve.schedules.sublinear import root_segments

names = pytest.mark.parametrize("name", BASELINES)
# Slots are shares of the budget: what they round up to, and so the time, may rise with the budget.
exact_names = pytest.mark.parametrize("name", [name for name in BASELINES if name != "discretised"])
chains = st.builds(
    lambda seed, length: random_chain(random.Random(seed), length, formats=0),
    st.integers(0, 2**32),
    st.integers(1, 12),
)


def plan_or_least(name, chain, budget):
    """Return the plan, or the least budget where none fits."""
    try:
        return BASELINES[name](chain, budget)
    except InfeasibleBudget as error:
        return error.smallest


@names
@settings(max_examples=25)
@given(chains, st.integers(5, 105))
def test_valid_within_the_budget_and_never_faster_than_the_optimum(name, chain, percent):
    frontier = solve(chain)
    budget = frontier.plain * percent // 100
    plan = plan_or_least(name, chain, budget)
    if isinstance(plan, int):
        plan = BASELINES[name](chain, plan)  # what the error names is enough
        budget = plan.budget
        assert name == "discretised" or plan.peak == budget
    judged = simulate(chain, plan.actions)
    assert (judged.peak, judged.makespan) == (plan.peak, plan.makespan)
    assert plan.peak <= budget == plan.budget
    assert plan.strategy.split("(")[0] == name
    assert frontier.plan(budget).makespan <= plan.makespan


@names
def test_never_faster_than_exhaustive_search(name):
    rng = random.Random(11)
    for _ in range(12):
        chain = random_chain(rng, rng.randint(1, 4), formats=0)
        top = simulate(chain, plain_schedule(len(chain))).peak
        for budget in {top, top - 1, top * 2 // 3, top // 2}:
            plan = plan_or_least(name, chain, budget)
            found = least_makespan(chain, plan if isinstance(plan, int) else budget)
            assert found is not None
            if not isinstance(plan, int):
                assert found[0] <= round(plan.makespan * 1e9)


@exact_names
@settings(max_examples=15)
@given(chains)
def test_more_bytes_never_cost_time(name, chain):
    top = simulate(chain, plain_schedule(len(chain))).peak
    makespans = []
    for budget in sorted({top * part // 8 for part in range(1, 12)}):
        plan = plan_or_least(name, chain, budget)
        makespans.append(float("inf") if isinstance(plan, int) else plan.makespan)
    assert makespans == sorted(makespans, reverse=True)


@exact_names
def test_budgets_are_read_as_everywhere(name):
    chain = Chain.uniform(6, output_bytes=10**6)
    top = simulate(chain, plain_schedule(6)).peak
    assert BASELINES[name](chain, "1GB").budget == 10**9
    assert BASELINES[name](chain, "150%").budget == top * 3 // 2
    with pytest.raises(BudgetError, match="'lots'"):
        BASELINES[name](chain, "lots")
    with pytest.raises(InfeasibleBudget, match=f"budget 7 bytes is below the .* strategy '{name}'") as caught:
        BASELINES[name](chain, 7)
    assert caught.value.budget == 7 < caught.value.smallest
    with pytest.raises(ChainError, match=r"the chain is a dict; pass a revolve\.Chain"):
        BASELINES[name](chain.to_json(), 7)


def fastest(chain, budget, schedules):
    """Return the least (makespan, peak) among those that fit."""
    judged = [simulate(chain, schedule) for schedule in schedules]
    return min((s.makespan, s.peak) for s in judged if s.peak <= budget)


@settings(max_examples=30)
@given(chains, st.integers(60, 100))
def test_families_pick_their_fastest_member(chain, percent):
    length = len(chain)
    families = {
        plan_sequential: [sequential(length, k) for k in range(1, length + 1)],
        plan_balanced: [sequential(length, k, balanced=True) for k in range(1, length + 1)],
        plan_every_nth: [every_nth(length, n) for n in range(1, length + 1)],
        plan_revolve: [revolve(length, slots) for slots in range(1, length + 1)],
        plan_greedy: [
            schedule_from_cuts(greedy_starts(chain, limit)[0], length)
            for limit in range(1 + sum(stage.saved_bytes + stage.output_bytes for stage in chain.stages))
        ],
    }
    for plan, schedules in families.items():
        schedules = [list(schedule) for schedule in schedules]
        least = min(simulate(chain, schedule).peak for schedule in schedules)
        budget = max(least, simulate(chain, plain_schedule(length)).peak * percent // 100)
        chosen = plan(chain, budget)
        assert (chosen.makespan, chosen.peak) == fastest(chain, budget, schedules)
        if least:
            with pytest.raises(InfeasibleBudget) as caught:
                plan(chain, least - 1)
            assert caught.value.smallest == least


def test_parameters_in_the_names_give_the_plans():
    chain = random_chain(random.Random(8), 12, formats=0)
    assert plan_sequential(chain, "70%").actions == tuple(sequential(12, parameter(plan_sequential(chain, "70%"))))
    balanced = plan_balanced(chain, "70%")
    assert balanced.actions == tuple(sequential(12, parameter(balanced), balanced=True))
    assert plan_every_nth(chain, "95%").actions == tuple(every_nth(12, parameter(plan_every_nth(chain, "95%"))))
    assert plan_revolve(chain, "70%").actions == tuple(revolve(12, parameter(plan_revolve(chain, "70%"))))
    greedy = plan_greedy(chain, "70%")
    assert greedy.actions == tuple(schedule_from_cuts(greedy_starts(chain, parameter(greedy))[0], 12))


def parameter(plan) -> int:
    """Return what stands in the parentheses of a plan's strategy."""
    return int(plan.strategy.split("(")[1].rstrip(")"))


def test_ties_go_to_the_least_peak():
    chain = Chain.uniform(4, saved_bytes=5)
    wasteful = [["save", 0], ["save", 1], ["save", 2], ["store", 3, "dense"], *map(list, tail())]
    members = [("wasteful", wasteful), ("plain", plain_schedule(4)), ("wasteful again", wasteful)]
    assert plan_fastest(chain, 100, "family", lambda _: members).strategy == "wasteful"
    leaner = Chain.uniform(4, saved_bytes=5, saves_input=False)
    assert plan_fastest(leaner, 100, "family", lambda _: members).strategy == "plain"


def tail():
    return ["save", 3], ["loss"], ["backward", 3], ["drop", 3], ["backward", 2], ["backward", 1], ["backward", 0]


@pytest.mark.parametrize(
    ("length", "root"),
    [(1, 1), (2, 1), (3, 2), (6, 2), (7, 3), (9, 3), (12, 3), (13, 4), (20, 4), (21, 5), (100, 10), (10**6, 1000)],
)
def test_root_is_the_nearest(length, root):
    assert root_segments(length) == root == round(length**0.5)


def test_chen_sqrt_has_no_choice():
    chain = Chain.uniform(10, saved_bytes=5)
    plan = plan_sublinear(chain, "100%")
    assert plan.strategy == "chen_sqrt(3)"
    assert plan.actions == tuple(sequential(10, 3, balanced=True))  # 4, 3, 3
    assert plan.makespan == 27.0
    with pytest.raises(InfeasibleBudget) as caught:
        plan_sublinear(chain, plan.peak - 1)
    assert caught.value.smallest == plan.peak


def sized(*sizes: int) -> Chain:
    """Return stages that hold these bytes, one of them the output."""
    stages = [{"forward": 1, "backward": 1, "output_bytes": 1, "saved_bytes": size - 1} for size in sizes]
    return Chain.from_json({"format": "revolve.chain/1", "input_bytes": 1, "stages": stages})


@pytest.mark.parametrize(
    ("limit", "starts", "sums"),
    [
        (0, [0, 1, 2, 3, 4], [3, 1, 4, 1]),
        (1, [0, 1, 3], [3, 5]),
        (3, [0, 2, 3], [4, 4]),
        (4, [0, 3], [8]),
        (7, [0, 3], [8]),
        (8, [0, 4], [9]),
        (9, [0], []),
    ],
)
def test_greedy_by_hand(limit, starts, sums):
    # Sums of 3, 1, 4, 1, 5 restart where they exceed the limit; the last stage ends nothing.
    assert greedy_starts(sized(3, 1, 4, 1, 5), limit) == (starts, sums)


@settings(max_examples=40)
@given(chains)
def test_every_set_of_greedy_cuts_is_a_member_once(chain):
    members = [tuple(schedule) for _, schedule in list_members(chain)]
    total = sum(stage.saved_bytes + stage.output_bytes for stage in chain.stages)
    cuts = [greedy_starts(chain, limit)[0] for limit in range(total + 1)]
    different = [cut for index, cut in enumerate(cuts) if index == 0 or cut != cuts[index - 1]]
    assert members == [tuple(schedule_from_cuts(cut, len(chain))) for cut in different]


def test_every_second_by_hand():
    assert [action.to_json() for action in every_nth(5, 2)] == [
        *(["forward", 0], ["save", 1], ["store", 2, "dense"], ["forward", 2], ["save", 3]),
        *(["store", 4, "dense"], ["forward", 4], ["loss"]),
        *(["load", 4], ["rebuild", 4], ["backward", 4], ["drop", 4], ["backward", 3]),
        *(["load", 2], ["rebuild", 2], ["backward", 2], ["drop", 2], ["backward", 1]),
        *(["load", 0], ["rebuild", 0], ["backward", 0]),
    ]
    assert simulate(Chain.uniform(6, rebuild=0.5), every_nth(6, 1)).makespan == 15.0
    assert simulate(Chain.uniform(6, rebuild=0.5), every_nth(6, 6)).makespan == 12.5


@pytest.mark.parametrize(("length", "n", "named"), [(3, 0, "n=0"), (0, 1, "length=0"), (3, 1.0, r"n=1\.0")])
def test_impossible_periods(length, n, named):
    with pytest.raises(BudgetError, match=named):
        every_nth(length, n)


def test_revolve_runs_all_but_the_last_stage_again():
    chain = Chain.uniform(9, saved_bytes=2)
    plan = plan_revolve(chain, "1kB")
    assert plan.makespan == 2 * 9 + 8
    assert plan.strategy == "revolve(8)"  # slots for all inputs but the last stage's


def test_segments_with_and_without_their_input_held():
    held = list(schedule_from_segments([(1, 3)], 4))
    let_go = list(schedule_from_segments([(1, 3)], 4, hold=False))
    assert [a.to_json() for a in let_go] == [
        *(["save", 0], ["store", 1, "dense"], ["forward", 1], ["forward", 2], ["save", 3], ["loss"], ["backward", 3]),
        *(["load", 1], ["drop", 1], ["save", 1], ["rebuild", 2], ["backward", 2], ["backward", 1], ["backward", 0]),
    ]
    assert [a.to_json() for a in held] == [
        *(["save", 0], ["store", 1, "dense"], ["forward", 1], ["forward", 2], ["save", 3], ["loss"], ["backward", 3]),
        *(["load", 1], ["save", 1], ["rebuild", 2], ["backward", 2], ["backward", 1], ["drop", 1], ["backward", 0]),
    ]


@settings(max_examples=40)
@given(chains, st.randoms(use_true_random=False))
def test_letting_an_input_go_never_takes_more(chain, rng):
    length = len(chain)
    cuts = sorted(rng.sample(range(length + 1), min(length + 1, 2 * rng.randint(0, 3))))
    segments = list(zip(cuts[::2], cuts[1::2], strict=False))
    held, let_go = (simulate(chain, schedule_from_segments(segments, length, hold=hold)) for hold in (True, False))
    assert let_go.peak <= held.peak
    assert let_go.makespan == held.makespan
