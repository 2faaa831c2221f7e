"""Uniform segments: the schedule of ``torch.utils.checkpoint.checkpoint_sequential``.

The chain is cut into segments. Every segment but the last runs without saving and keeps only its
input; the last one is saved at once. In the backward, each segment is run again, saving, and
reversed. torch gives every segment floor(L / segments) stages and the last one the rest, so that 9
stages in 5 segments become 1, 1, 1, 1, 5; the balanced split makes the lengths differ by at most
one, the longer ones first.

References
----------
Chen, Xu, Zhang, Guestrin: Training Deep Nets with Sublinear Memory Cost (2016), arXiv:1604.06174.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from .actions import Action, Backward, Drop, Forward, Load, Loss, Rebuild, Save, Store
from .chain import Chain
from .exceptions import BudgetError
from .families import plan_fastest
from .generated import Schedule, check_count
from .plans import Plan

__all__ = [
    "plan_balanced",
    "plan_sequential",
    "schedule_from_cuts",
    "schedule_from_segments",
    "segment_starts",
    "sequential",
]


def segment_starts(length: int, segments: int, *, balanced: bool = False) -> list[int]:
    """Return the first stage of each segment.

    Parameters
    ----------
    length
        Number of stages.
    segments
        Number of segments, 1 to ``length``.
    balanced
        Let lengths differ by at most one, instead of torch's split.

    Raises
    ------
    BudgetError
        If a number is not an int in its range.

    Examples
    --------
    >>> segment_starts(9, 5), segment_starts(9, 5, balanced=True)
    ([0, 1, 2, 3, 4], [0, 2, 4, 6, 8])
    """
    check_count("length", length)
    check_count("segments", segments)
    if segments > length:
        raise BudgetError(f"segments={segments} is more than the {length} stages; use segments <= {length}")
    size, rest = divmod(length, segments)
    if balanced:
        return [index * size + min(index, rest) for index in range(segments)]
    return [index * size for index in range(segments)]


def sequential(length: int, segments: int, *, balanced: bool = False) -> Schedule:
    """Return the schedule of uniform segments.

    Parameters
    ----------
    length
        Number of stages.
    segments
        Number of segments, 1 to ``length``.
    balanced
        Let the lengths of segments differ by at most one, instead of torch's split, which gives the
        remainder to the last.

    Raises
    ------
    BudgetError
        If a number is not an int in its range.

    Examples
    --------
    >>> [action.to_json() for action in sequential(2, 2)][:4]
    [['forward', 0], ['store', 1, 'dense'], ['save', 1], ['loss']]
    """
    starts = segment_starts(length, segments, balanced=balanced)
    return Schedule(lambda: schedule_from_cuts(starts, length))


def schedule_from_cuts(starts: list[int], length: int) -> Iterator[Action]:
    """Yield the schedule that keeps the input of each segment and saves the last one at once.

    Parameters
    ----------
    starts
        First stage of each segment, ascending, starting with 0.
    length
        Number of stages.
    """
    *starts, last = starts
    for index in range(last):
        if index and index in starts:
            yield Store(index)
        yield Forward(index)
    if last:
        yield Store(last)
    yield from map(Save, range(last, length))
    yield Loss()
    yield from map(Backward, reversed(range(last, length)))
    if last:
        yield Drop(last)
    for start, end in reversed(list(pairwise([*starts, last]))):
        yield Load(start)
        yield from map(Save, range(start, end - 1))
        yield Rebuild(end - 1)
        yield from map(Backward, reversed(range(start, end)))
        if start:
            yield Drop(start)


def schedule_from_segments(segments: Sequence[tuple[int, int]], length: int, *, hold: bool = True) -> Iterator[Action]:
    """Yield the schedule that runs each segment again, once, and saves all other stages at once.

    Parameters
    ----------
    segments
        First stage of each segment and the one after its last, ascending, none overlapping another.
    length
        Number of stages.
    hold
        Keep the input of a segment until the segment is reversed, as torch's checkpoint does;
        otherwise only until its first stage runs again, which never takes more memory.
    """
    end = 0
    for start, following in segments:
        yield from map(Save, range(end, start))
        if start:
            yield Store(start)
        yield from map(Forward, range(start, following))
        end = following
    yield from map(Save, range(end, length))
    yield Loss()
    end = length
    for start, following in reversed(segments):
        yield from map(Backward, reversed(range(following, end)))
        yield Load(start)
        if start and not hold:
            yield Drop(start)
        yield from map(Save, range(start, following - 1))
        yield Rebuild(following - 1)
        yield from map(Backward, reversed(range(start, following)))
        if start and hold:
            yield Drop(start)
        end = start
    yield from map(Backward, reversed(range(end)))


def plan_sequential(chain: Chain, budget: int | str) -> Plan:
    """Return the fastest of torch's splits, over all numbers of segments, that fits a budget.

    Parameters
    ----------
    chain
        The chain.
    budget
        Bytes or a string, as for ``plan_fastest``.

    Returns
    -------
    Plan
        Its strategy tells the number of segments, for example ``"sequential(4)"``; one segment is
        plain training.

    Raises
    ------
    InfeasibleBudget
        If no number of segments fits; the error names the least budget of all of them.
    BudgetError
        If the budget cannot be understood.

    Examples
    --------
    >>> plan_sequential(Chain.uniform(6, saved_bytes=3), 16).strategy
    'sequential(2)'
    """
    return plan_fastest(chain, budget, "sequential", list_splits)


def plan_balanced(chain: Chain, budget: int | str) -> Plan:
    """Return the fastest split into segments of equal length (up to one stage) that fits a budget.

    Parameters
    ----------
    chain
        The chain.
    budget
        Bytes or a string, as for ``plan_fastest``.

    Returns
    -------
    Plan
        Its strategy tells the number of segments, for example ``"balanced(4)"``.

    Raises
    ------
    InfeasibleBudget
        If no number of segments fits; the error names the least budget of all of them.
    BudgetError
        If the budget cannot be understood.
    """
    return plan_fastest(chain, budget, "balanced", list_balanced_splits)


def list_splits(chain: Chain) -> Iterator[tuple[str, Schedule]]:
    """Yield name and schedule of torch's split into 1, 2, ... segments."""
    length = len(chain)
    return ((f"sequential({k})", sequential(length, k)) for k in range(1, length + 1))


def list_balanced_splits(chain: Chain) -> Iterator[tuple[str, Schedule]]:
    """Yield name and schedule of the balanced split into 1, 2, ... segments."""
    length = len(chain)
    return ((f"balanced({k})", sequential(length, k, balanced=True)) for k in range(1, length + 1))
