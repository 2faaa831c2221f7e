"""Chen's sqrt(n): about the square root of the number of stages as segments, all of equal length.

Problem: train n equal stages in sublinear memory with one extra forward. With k segments, the inputs of
k segments and the saved tensors of one, n / k stages, are held at a time; k = sqrt(n) makes
O(n / k) + O(k) least, 2 sqrt(n) in units of one stage. Nothing here looks at the sizes or times of
stages, and nothing is searched: the schedule fits a budget or it does not.

k is the square root rounded to the nearest whole number, and the lengths differ by at most one. The
paper's Algorithm 1 runs every segment again; here the last one is saved at once, as in torch, since its
turn comes first.

References
----------
Chen, Xu, Zhang, Guestrin: Training Deep Nets with Sublinear Memory Cost (2016), arXiv:1604.06174,
Algorithm 1 and the O(sqrt(n)) choice of its segments.
"""

from __future__ import annotations

from math import isqrt

from .chain import Chain
from .families import plan_fastest
from .generated import Schedule
from .plans import Plan
from .segments import sequential

__all__ = ["plan_sublinear", "root_segments"]


def root_segments(length: int) -> int:
    """Return the number of segments: the square root of the number of stages, rounded to the nearest.

    Parameters
    ----------
    length
        Number of stages.

    Examples
    --------
    >>> [root_segments(length) for length in (1, 2, 3, 6, 7, 50)]
    [1, 1, 2, 2, 3, 7]
    """
    root = isqrt(length)
    return root + (length - root * root > root)


def plan_sublinear(chain: Chain, budget: int | str) -> Plan:
    """Return Chen's sqrt(n) schedule, if it fits a budget.

    Parameters
    ----------
    chain
        The chain.
    budget
        Bytes, or a string such as ``"300MB"`` or ``"80%"`` (of plain training's peak).

    Returns
    -------
    Plan
        Its strategy tells the number of segments, for example ``"chen_sqrt(7)"``.

    Raises
    ------
    InfeasibleBudget
        If it does not fit; the error names its peak.
    BudgetError
        If the budget cannot be understood.

    Examples
    --------
    >>> plan_sublinear(Chain.uniform(9, saved_bytes=3), 27).strategy
    'chen_sqrt(3)'
    """
    return plan_fastest(chain, budget, "chen_sqrt", list_members)


def list_members(chain: Chain) -> list[tuple[str, Schedule]]:
    """Return name and schedule of the only member."""
    segments = root_segments(len(chain))
    return [(f"chen_sqrt({segments})", sequential(len(chain), segments, balanced=True))]
