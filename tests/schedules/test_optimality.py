"""The solver against exhaustive search over all schedules, the non-persistent ones included.

REVOLVE_CHAINS sets how many chains the slow tests search; 500 for a night.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from exhaustive import least_makespan, nanoseconds
from random_chains import random_chain

from revolve.schedules import Action, Chain, InfeasibleBudget, simulate, solve

CHAINS = int(os.environ.get("REVOLVE_CHAINS", "80"))
LENGTHS, WEIGHTS = (1, 2, 3, 4, 5, 6), (1, 4, 6, 6, 3, 1)


class Case(NamedTuple):
    """One chain and budget; times in nanoseconds, None where infeasible."""

    chain: Chain
    budget: int
    planned: int | None
    optimum: int | None

    @property
    def excess(self) -> float:
        """Return how much longer than the optimum the plan takes; infinite where only the plan is infeasible."""
        if self.planned == self.optimum:
            return 0.0
        return float("inf") if self.planned is None else self.planned / self.optimum - 1


def cases(seed: int, chains: int, *, lengths=LENGTHS, weights=WEIGHTS, **kind) -> Iterator[Case]:
    """Compare plans with the optimum at the ends of the frontier, between them, and below."""
    rng = random.Random(seed)
    for _ in range(chains):
        chain = random_chain(rng, rng.choices(lengths, weights)[0], **kind)
        frontier = solve(chain, formats=tuple(chain.formats))
        low, high = frontier.smallest, int(frontier.peaks[-1])
        between = [rng.randint(low, high) for _ in range(3)]
        for budget in sorted({max(low - 1, 0), rng.randint(low // 2, low), low, high, *between}):
            yield compare(chain, budget, frontier)


def compare(chain: Chain, budget: int, frontier) -> Case:
    """Plan, search, and have the judge confirm both."""
    planned = optimum = None
    try:
        plan = frontier.plan(budget)
    except InfeasibleBudget:
        assert budget < frontier.smallest
    else:
        judged = simulate(chain, plan.actions)
        assert judged.peak <= budget
        planned = nanoseconds(judged.makespan)
    found = least_makespan(chain, budget)
    if found is not None:
        optimum, actions = found
        judged = simulate(chain, actions)
        assert judged.peak <= budget
        assert nanoseconds(judged.makespan) == optimum
    return Case(chain, budget, planned, optimum)


def judge(found: list[Case], least_share: float) -> str:
    """Check what holds for every case, and the share of optimal ones; return the figures."""
    for case in found:
        if case.planned is not None:
            assert case.optimum is not None, f"search misses the plan of {case.chain} in {case.budget} bytes"
            assert case.planned >= case.optimum, f"search is not exhaustive: {case.chain} in {case.budget} bytes"
    optimal = sum(case.excess == 0 for case in found)
    missed = sum(case.excess == float("inf") for case in found)
    worst = max((case.excess for case in found if case.excess < float("inf")), default=0.0)
    figures = (
        f"{optimal} of {len(found)} cases optimal ({optimal / len(found):.2%}), "
        f"{missed} feasible ones refused, worst excess {worst:.1%}"
    )
    assert optimal >= least_share * len(found), figures
    assert worst < 0.3, figures
    return figures


def test_a_few_random_chains(record_property):
    record_property("optimality", judge(list(cases(seed=1, chains=40)), 0.98))


def test_a_few_chains_whose_rebuilds_need_more_than_saves(record_property):
    # Not what stages do, but a chain file may say so; then saving instead of rebuilding may be the only way to fit.
    record_property("optimality", judge(list(cases(seed=3, chains=40, consistent=False)), 0.98))


def test_a_few_chains_whose_stages_can_be_saved_in_formats(record_property):
    found = [*cases(seed=4, chains=16, lengths=(1, 2, 3), weights=(1, 4, 3), formats=2, modes=True)]
    found += cases(seed=5, chains=6, lengths=(3, 4), weights=(1, 1), formats=1, modes=True)
    record_property("optimality", judge(found, 0.98))
    saves = [action for case in found for action in solve_again(case) if action.kind == "save"]
    assert sum(action.format != "dense" for action in saves) > len(saves) / 5  # or the chains test nothing


def solve_again(case: Case) -> tuple[Action, ...]:
    """Return the actions of a case's plan."""
    frontier = solve(case.chain, formats=tuple(case.chain.formats))
    return frontier.plan(case.budget).actions if case.budget >= frontier.smallest else ()


@pytest.mark.slow
@pytest.mark.parametrize(("consistent", "least_share"), [(True, 0.98), (False, 0.94)])
def test_many_chains_whose_stages_can_be_saved_in_formats(record_property, consistent, least_share):
    # Formats whose forms are larger than the tensors, or whose decoding holds nothing, make out-of-order saves pay.
    kind = {"formats": 2, "modes": True, "consistent": consistent}
    figures = judge(list(cases(seed=6, chains=CHAINS // 4, lengths=(2, 3, 4), weights=(2, 2, 1), **kind)), least_share)
    record_property("optimality", figures)
    print(figures)


@pytest.mark.slow
def test_many_random_chains(record_property):
    figures = judge(list(cases(seed=2, chains=CHAINS)), 0.98)
    record_property("optimality", figures)
    print(figures)
