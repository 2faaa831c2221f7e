"""The recurrence over a dense table of slots: the exact frontier's second opinion, and a baseline."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_chains import random_chain

from revolve.schedules import BudgetError, Chain, InfeasibleBudget, plan_discretised, simulate, solve

chains = st.builds(
    lambda seed, length: random_chain(random.Random(seed), length, formats=0), st.integers(0, 2**32), st.integers(1, 9)
)
properties = settings(max_examples=40, deadline=None)


@properties
@given(chains, st.data())
def test_slots_of_one_byte_are_exact(chain, data):
    frontier = solve(chain)
    budget = data.draw(st.integers(max(frontier.smallest, 1), max(frontier.plain, 1)))
    plan = plan_discretised(chain, budget, slots=budget)
    assert plan.makespan == frontier.plan(budget).makespan
    assert plan.peak <= budget


@properties
@given(chains)
def test_one_byte_too_few_is_infeasible_for_both(chain):
    smallest = solve(chain).smallest
    if smallest > 1:
        with pytest.raises(InfeasibleBudget) as caught:
            plan_discretised(chain, smallest - 1, slots=smallest - 1)
        named = caught.value.smallest
        assert plan_discretised(chain, named, slots=smallest - 1).peak <= named


@properties
@given(chains, st.integers(20, 60), st.data())
def test_coarse_slots_keep_the_budget_and_never_beat_the_optimum(chain, slots, data):
    frontier = solve(chain)
    budget = data.draw(st.integers(max(frontier.smallest, 1), 2 * frontier.plain + 1))
    try:
        plan = plan_discretised(chain, budget, slots)
    except InfeasibleBudget as error:
        budget = error.smallest
        plan = plan_discretised(chain, budget, slots)
    assert simulate(chain, plan.actions).peak <= budget
    assert plan.makespan >= frontier.plan(budget).makespan
    assert plan.strategy == f"discretised({slots})"


def test_too_few_slots_for_any_budget():
    with pytest.raises(BudgetError, match="slots=1 are too few for 4 stages"):
        plan_discretised(Chain.uniform(4, saved_bytes=3), 100, slots=1)


def test_rounding_up_costs_time():
    chain = Chain.uniform(5, output_bytes=10, saved_bytes=35)
    times = [plan_discretised(chain, 150, slots).makespan for slots in (6, 12, 500)]
    assert times[0] > times[-1] == solve(chain).plan(150).makespan


@pytest.mark.parametrize("slots", [0, -1, 2.5, True])
def test_impossible_numbers_of_slots(slots):
    with pytest.raises(BudgetError, match="slots"):
        plan_discretised(Chain.uniform(2), 10, slots)


def test_no_bytes_at_all():
    with pytest.raises(InfeasibleBudget):
        plan_discretised(Chain.uniform(2), 0)
