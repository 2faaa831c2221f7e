"""Classic Revolve on a heterogeneous chain: optimal where all stages are alike, applied where they are not.

``revolve(length, slots)`` counts slots and looks neither at the sizes nor at the times of stages. All
numbers of slots are tried, and the judge tells which of them fit in bytes and which of those is the
fastest. Revolve tapes one stage at a time: every stage but the last runs again at least once before its
backward, however many slots there are.

References
----------
Griewank, Walther: Algorithm 799: Revolve, ACM TOMS 26(1), 2000, doi:10.1145/347837.347846.
"""

from __future__ import annotations

from collections.abc import Iterator

from .binomial import revolve
from .chain import Chain
from .families import plan_fastest
from .generated import Schedule
from .plans import Plan

__all__ = ["plan_revolve"]


def plan_revolve(chain: Chain, budget: int | str) -> Plan:
    """Return the fastest of Revolve's schedules, over all numbers of slots, that fits a budget.

    Parameters
    ----------
    chain
        The chain.
    budget
        Bytes, or a string such as ``"300MB"`` or ``"80%"`` (of plain training's peak).

    Returns
    -------
    Plan
        Its strategy tells the slots, the initial state included, for example ``"revolve(3)"``.

    Raises
    ------
    InfeasibleBudget
        If no number of slots fits; the error names the least budget of all of them.
    BudgetError
        If the budget cannot be understood.

    Examples
    --------
    >>> plan_revolve(Chain.uniform(6, saved_bytes=3), 10).strategy
    'revolve(4)'
    """
    return plan_fastest(chain, budget, "revolve", list_members)


def list_members(chain: Chain) -> Iterator[tuple[str, Schedule]]:
    """Yield name and schedule for 1, 2, ... slots."""
    length = len(chain)
    return ((f"revolve({slots})", revolve(length, slots)) for slots in range(1, length + 1))
