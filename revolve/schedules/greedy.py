"""Chen's greedy: a segment ends as soon as its stages hold more than a limit of b bytes.

Problem: choose cuts by sizes. Walking through the chain, the bytes of the stages are added up; where the
sum exceeds b the stage's output is kept, a new segment begins, and the sum starts again at zero. A stage
counts its ``saved_bytes`` and ``output_bytes`` (in the paper a node is one operation and counts its
output). The last segment is saved at once, as in torch.

The paper searches a grid of six values between b / sqrt(2) and b sqrt(2) around an estimate of b. Cuts
change only where b reaches one of the sums at which a segment ended. So every set of cuts is found by
starting with b = 0 and raising b to the least of those sums until no cut is left, which covers any grid.
Each set takes O(n) time to find; random chains of n = 10 to 300 stages had between 2 n and 6 n of them.

References
----------
Chen, Xu, Zhang, Guestrin: Training Deep Nets with Sublinear Memory Cost (2016), arXiv:1604.06174,
Algorithm 3 (memory planning with budget) and, in the appendix, the search over its budget.
"""

from __future__ import annotations

from collections.abc import Iterator

from .actions import Action
from .chain import Chain
from .families import plan_fastest
from .plans import Plan
from .segments import schedule_from_cuts

__all__ = ["greedy_starts", "plan_greedy"]


def greedy_starts(chain: Chain, limit: int) -> tuple[list[int], list[int]]:
    """Cut a chain by Algorithm 3.

    Parameters
    ----------
    chain
        The chain.
    limit
        The bytes b; a segment ends with the first stage that makes it hold more.

    Returns
    -------
    starts, sums
        First stage of each segment, and the bytes of every segment but the last.

    Examples
    --------
    >>> greedy_starts(Chain.uniform(5, saved_bytes=2), 4)
    ([0, 2, 4], [6, 6])
    """
    starts, sums = [0], []
    total = 0
    for index, stage in enumerate(chain.stages[:-1], 1):
        total += stage.saved_bytes + stage.output_bytes
        if total > limit:
            starts.append(index)
            sums.append(total)
            total = 0
    return starts, sums


def list_members(chain: Chain) -> Iterator[tuple[str, list[Action]]]:
    """Yield name and schedule for every set of cuts that some b gives, from the finest to none."""
    limit = 0
    while True:
        starts, sums = greedy_starts(chain, limit)
        yield f"chen_greedy({limit})", list(schedule_from_cuts(starts, len(chain)))
        if not sums:
            return
        limit = min(sums)


def plan_greedy(chain: Chain, budget: int | str) -> Plan:
    """Return the fastest of Chen's greedy schedules, over all limits b, that fits a budget.

    Parameters
    ----------
    chain
        The chain.
    budget
        Bytes, or a string such as ``"300MB"`` or ``"80%"`` (of plain training's peak).

    Returns
    -------
    Plan
        Its strategy tells b in bytes, for example ``"chen_greedy(8)"``.

    Raises
    ------
    InfeasibleBudget
        If no limit b gives a schedule that fits; the error names the least budget of all of them.
    BudgetError
        If the budget cannot be understood.

    Examples
    --------
    >>> plan_greedy(Chain.uniform(6, saved_bytes=3), 16).strategy
    'chen_greedy(8)'
    """
    return plan_fastest(chain, budget, "chen_greedy", list_members)
