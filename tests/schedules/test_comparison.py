"""Strategies side by side."""

from __future__ import annotations

import pickle
import random

import pytest
from random_chains import random_chain

from revolve.schedules import BudgetError, Chain, InfeasibleBudget, ScheduleError, compare, solve
from revolve.schedules.comparison import BASELINES


@pytest.fixture
def chain():
    return random_chain(random.Random(8), 10, formats=0)


@pytest.mark.parametrize("budget", ["60%", "100%", "30%"])
def test_every_row_is_the_strategy_itself(chain, budget):
    frontier = solve(chain)
    rows = compare(chain, budget)
    assert [row.strategy for row in rows] == [*BASELINES, "optimal"]
    for row, plan in zip(rows, [*BASELINES.values(), frontier.plan], strict=True):
        assert row.budget == frontier.plain * int(budget[:-1]) // 100
        arguments = (row.budget,) if row.strategy == "optimal" else (chain, row.budget)
        if row.feasible:
            assert row.plan == plan(*arguments)
            assert row.smallest is None
        else:
            with pytest.raises(InfeasibleBudget) as caught:
                plan(*arguments)
            assert row.smallest == caught.value.smallest > row.budget


def test_runs_again_are_counted():
    rows = {row.strategy: row for row in compare(Chain.uniform(6, saved_bytes=3), 16)}
    assert rows["plain"].recomputed is None
    assert rows["sequential"].recomputed == rows["balanced"].recomputed == 3
    assert rows["every_nth"].recomputed == 6
    assert rows["every_nth"].plan.makespan == 12 + 6
    assert rows["optimal"].recomputed <= rows["single_level"].recomputed <= 3


def test_documents():
    feasible, infeasible = (compare(Chain.uniform(6, saved_bytes=3), budget)[3] for budget in (16, 5))
    assert feasible.to_json() == {
        "strategy": "sequential",
        "feasible": True,
        "smallest": None,
        "member": "sequential(2)",
        "peak": 15,
        "makespan": 15.0,
        "ratio": 1.25,
        "recomputed": 3,
    }
    assert infeasible.to_json() == {
        "strategy": "sequential",
        "feasible": False,
        "smallest": 11,
        "member": None,
        "peak": None,
        "makespan": None,
        "ratio": None,
        "recomputed": None,
    }


def test_a_frontier_at_hand_is_used():
    chain = random_chain(random.Random(4), 10, formats=1)
    free = solve(chain, formats=tuple(chain.formats))
    assert free.plan(free.smallest).formats() != ("dense",)
    assert compare(chain, free.smallest, frontier=free)[-1].plan == free.plan(free.smallest)


def test_some_strategies_alone(chain):
    rows = compare(chain, "60%", strategies=["optimal", "balanced"])
    assert [row.strategy for row in rows] == ["balanced", "optimal"]
    assert rows == [row for row in compare(chain, "60%") if row.strategy in ("balanced", "optimal")]
    assert compare(chain, "60%", strategies=[]) == []
    with pytest.raises(ScheduleError, match=r"strategy 'best' is unknown; use some of plain, .* optimal"):
        compare(chain, "60%", strategies=["balanced", "best"])


def test_unreadable_budgets_and_pickling(chain):
    with pytest.raises(BudgetError, match="'lots'"):
        compare(chain, "lots")
    rows = compare(chain, "50%")
    assert pickle.loads(pickle.dumps(rows)) == rows
