"""Families of schedules with a parameter: the fastest member that fits a budget, as the judge says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .chain import Chain
from .exceptions import ChainError, InfeasibleBudget
from .plans import Plan, plain_schedule
from .problem import check_extent
from .simulator import simulate
from .units import format_bytes, parse_bytes

__all__ = ["plan_fastest", "plan_plain", "read_budget", "refuse"]


def read_budget(chain: Chain, budget: int | str) -> int:
    """Return a budget in bytes; a percentage is of plain training's peak, since a chain knows no device.

    Parameters
    ----------
    chain
        The chain.
    budget
        Bytes, or a string such as ``"300MB"`` or ``"80%"``.

    Raises
    ------
    ChainError
        If the chain is none.
    BudgetError
        If the budget cannot be understood.
    """
    if not isinstance(chain, Chain):
        raise ChainError(f"the chain is a {type(chain).__name__}; pass a revolve.Chain (Chain.load(path) reads a file)")
    check_extent(chain)
    return parse_bytes(budget, simulate(chain, plain_schedule(len(chain))).peak)


def refuse(strategy: str, limit: int, least: int) -> InfeasibleBudget:
    """Return the error for a budget in which a strategy has no schedule.

    Parameters
    ----------
    strategy
        Its name.
    limit, least
        Bytes that were asked for, and the least with which the strategy has one.
    """
    return InfeasibleBudget(
        f"budget {limit} bytes is below the {least} bytes ({format_bytes(least)}) that the strategy {strategy!r} "
        "needs at least; raise the budget, or use solve(chain), which needs no more than any strategy",
        least,
        limit,
    )


def plan_fastest(
    chain: Chain, budget: int | str, family: str, list_members: Callable[[Chain], Iterable[tuple[str, Iterable[Any]]]]
) -> Plan:
    """Return the fastest member of a family that fits a budget; of equally fast ones, that of least peak.

    Parameters
    ----------
    chain
        The chain.
    budget
        Bytes, or a string such as ``"300MB"`` or ``"80%"`` (of plain training's peak).
    family
        Name of the family, for the error.
    list_members
        Returns name and schedule of each member for a chain; the name becomes the plan's strategy.
        Schedules are iterated once, or twice for the one that is returned.

    Raises
    ------
    InfeasibleBudget
        If no member fits; the error names the least budget of all members.
    ChainError, BudgetError
        If the chain is none, or the budget cannot be understood.
    """
    limit = read_budget(chain, budget)
    best: tuple[float, int] | None = None
    chosen: tuple[str, Iterable[Any]] = ("", ())
    least: int | None = None
    for name, schedule in list_members(chain):
        judged = simulate(chain, schedule)
        least = judged.peak if least is None else min(least, judged.peak)
        if judged.peak <= limit and (best is None or (judged.makespan, judged.peak) < best):
            best, chosen = (judged.makespan, judged.peak), (name, schedule)
    if best is None:
        assert least is not None, "a family has at least one member"
        raise refuse(family, limit, least)
    return Plan.from_actions(chain, chosen[1], chosen[0], limit)


def plan_plain(chain: Chain, budget: int | str) -> Plan:
    """Return plain training, if it fits a budget.

    Parameters
    ----------
    chain
        The chain.
    budget
        Bytes or a string, as for ``plan_fastest``.

    Raises
    ------
    InfeasibleBudget
        If it does not fit; the error names its peak.
    BudgetError
        If the budget cannot be understood.
    """
    return plan_fastest(chain, budget, "plain", lambda c: [("plain", plain_schedule(len(c)))])
