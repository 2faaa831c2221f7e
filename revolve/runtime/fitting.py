"""Finds the plan for a budget: the solver's, rehearsed, and solved for again where its step took more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from revolve.schedules.chain import Chain
from revolve.schedules.frontier import solve
from revolve.schedules.plans import Plan, with_carried

__all__ = ["fit"]

ROUNDS = 5  # plans that are rehearsed at most


def fit(chain: Chain, formats: Sequence[str], budget: int, rehearse: Callable[[Plan], Chain]) -> Plan:
    """Return a plan within a budget that was seen to keep it.

    Parameters
    ----------
    chain
        The chain, as measured.
    formats
        Storage formats that the plan may use.
    budget
        Bytes.
    rehearse
        Runs a step by a plan, and returns the plan's chain with the peaks that it was seen to have.

    Raises
    ------
    InfeasibleBudget
        If there is none.
    """
    for _ in range(ROUNDS):
        plan = solve(chain, formats, tolerance="auto").plan(budget)
        seen = rehearse(plan)
        if seen == plan.chain:
            break
        chain = with_carried(chain, seen) if seen.carries else seen
    return plan
