"""Strategies side by side: what each of them needs and takes within one budget, as the judge says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .chain import Chain
from .discretised import plan_discretised
from .exceptions import ChainError, InfeasibleBudget, ScheduleError
from .families import plan_plain, read_budget
from .frontier import Frontier, solve
from .greedy import plan_greedy
from .homogeneous import plan_revolve
from .periodic import plan_every_nth
from .plans import Plan
from .segments import plan_balanced, plan_sequential
from .sublinear import plan_sublinear
from .subsets import plan_single_level

__all__ = ["BASELINES", "Comparison", "check_strategies", "compare"]

BASELINES: dict[str, Callable[[Chain, int | str], Plan]] = {
    "plain": plan_plain,
    "every_nth": plan_every_nth,
    "chen_sqrt": plan_sublinear,
    "sequential": plan_sequential,
    "balanced": plan_balanced,
    "chen_greedy": plan_greedy,
    "revolve": plan_revolve,
    "single_level": plan_single_level,
    "discretised": plan_discretised,
}
"""Every strategy but the optimum, by name; each takes a chain and a budget."""

OPTIMAL = "optimal"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What one strategy makes of a chain and a budget.

    Attributes
    ----------
    strategy
        Its name.
    budget
        Bytes.
    plan
        Its fastest plan within the budget; None where none fits.
    smallest
        The least bytes the strategy has a plan for; None where one fits the budget.
    """

    strategy: str
    budget: int
    plan: Plan | None
    smallest: int | None = None

    @property
    def feasible(self) -> bool:
        """Whether the strategy has a plan that fits."""
        return self.plan is not None

    @property
    def recomputed(self) -> int | None:
        """Forward runs of stages beyond the first one of each, early-stopped ones included."""
        if self.plan is None:
            return None
        counts = self.plan.counts()
        return sum(counts[kind] for kind in ("forward", "save", "rebuild")) - len(self.plan.chain)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a ``revolve.compare/1`` document."""
        plan = self.plan
        return {
            "strategy": self.strategy,
            "feasible": self.feasible,
            "smallest": self.smallest,
            "member": None if plan is None else plan.strategy,
            "peak": None if plan is None else plan.peak,
            "makespan": None if plan is None else plan.makespan,
            "ratio": None if plan is None else plan.ratio,
            "recomputed": self.recomputed,
        }


def compare(
    chain: Chain,
    budget: int | str,
    *,
    strategies: Iterable[str] | None = None,
    frontier: Frontier | None = None,
) -> list[Comparison]:
    """Plan a chain within one budget by every strategy.

    Parameters
    ----------
    chain
        The chain.
    budget
        Bytes, or a string such as ``"300MB"`` or ``"80%"`` (of plain training's peak).
    strategies
        Names of the strategies wanted, of ``BASELINES`` and ``"optimal"``; all of them where it is None.
    frontier
        The solved chain, where it is at hand; it may use formats and a tolerance.

    Returns
    -------
    list of Comparison
        One a strategy: plain training, the baselines, and ``"optimal"`` at the end.

    Raises
    ------
    BudgetError
        If the budget cannot be understood. A budget too small for a strategy is no error: its
        entry tells what it needs.
    ScheduleError
        If there is no strategy of a wanted name.
    ChainError
        If the frontier is another chain's.

    Examples
    --------
    >>> [(c.strategy, c.smallest) for c in compare(Chain.uniform(6, saved_bytes=3), "50%") if not c.feasible]
    [('plain', 26), ('chen_sqrt', 15)]
    """
    wanted = check_strategies(strategies)
    limit = read_budget(chain, budget)
    found = [judge(name, chain, limit, plan) for name, plan in BASELINES.items() if name in wanted]
    if OPTIMAL in wanted:
        if frontier is not None and frontier.chain != chain:
            raise ChainError("the frontier is another chain's; pass the one of this chain, or none")
        solved = solve(chain) if frontier is None else frontier
        found.append(judge(OPTIMAL, chain, limit, lambda _, size: solved.plan(size)))
    return found


def check_strategies(strategies: Iterable[str] | None) -> set[str]:
    """Return the wanted strategies, all of them for None.

    Parameters
    ----------
    strategies
        Names.

    Raises
    ------
    ScheduleError
        If there is no strategy of that name.
    """
    known = [*BASELINES, OPTIMAL]
    wanted = known if strategies is None else [strategies] if isinstance(strategies, str) else list(strategies)
    for name in wanted:
        if name not in known:
            raise ScheduleError(f"strategy {name!r} is unknown; use some of {', '.join(known)}")
    return set(wanted)


def judge(name: str, chain: Chain, limit: int, strategy: Callable[[Chain, int | str], Plan]) -> Comparison:
    """Return what a strategy makes of a budget."""
    try:
        plan = strategy(chain, limit)
    except InfeasibleBudget as error:
        return Comparison(name, limit, None, error.smallest)
    return Comparison(name, limit, plan)
