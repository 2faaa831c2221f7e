"""Finds the plan for a budget: the solver's, rehearsed, and solved for again where its step took more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from warnings import warn

from revolve.schedules.chain import Chain
from revolve.schedules.frontier import solve
from revolve.schedules.plans import Plan, with_carried

from .exceptions import BudgetWarning

__all__ = ["fit"]

ROUNDS = 5  # plans that are rehearsed at most


def fit(chain: Chain, formats: Sequence[str], budget: int, rehearse: Callable[[Plan], Chain]) -> Plan:
    """Return the fastest plan within a budget, with the peak that it was seen to have.

    What was seen raises peaks only, so that a plan that keeps the budget stays the fastest. A BudgetWarning says so
    where no plan that was rehearsed did.

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
        rehearsed = Plan.from_actions(seen, plan.actions, plan.strategy, budget, plan.tolerance)
        if rehearsed.peak <= budget:
            return rehearsed
        chain = with_carried(chain, seen) if seen.carries else seen
    warn(
        f"the plan for {budget} bytes took up to {rehearsed.peak} when it was rehearsed, and {ROUNDS - 1} before it "
        f"took more than {budget}, too; use a budget that is smaller by {rehearsed.peak - budget} bytes",
        BudgetWarning,
        stacklevel=3,
    )
    return plan
