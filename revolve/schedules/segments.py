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

from collections.abc import Iterator
from itertools import pairwise

from .actions import Action, Backward, Drop, Forward, Load, Loss, Rebuild, Save, Store
from .exceptions import BudgetError
from .generated import Schedule, check_count

__all__ = ["schedule_from_cuts", "segment_starts", "sequential"]


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
