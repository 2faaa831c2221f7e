"""Revolve: optimal checkpointing of uniform chains by the binomial closed form.

Problem: reverse a chain of l equal stages with s slots for activations, the initial state occupying
one, in the fewest forward runs. With beta(s, r) = C(s + r, s), the number of stages that s slots
reverse when no stage is run forward more than r times, and r the least number with beta(s, r) >= l,

    t(l, s) = r l - beta(s + 1, r - 1)

forward runs beyond the l taped ones are needed and sufficient. A first split at stage k (store x_k,
reverse the l - k stages behind it with s - 1 slots, then the k before it with s) is optimal for all

    max(beta(s, r-2), l - beta(s-1, r)) <= k <= min(beta(s, r-1), l - beta(s-1, r-1));

the upper end is taken. The part behind it then has the same r where it is longer than beta(s-1, r-1)
and r - 1 elsewhere, the part before it has r - 1.

The closed forms take O(log l) operations on integers of any size. The schedule takes O(1) an action
besides the actions themselves, memory O(s): actions come from a generator, rows from a Numba kernel.

The taped run of a stage is the last one before its backward: a ``save`` at the turn-around, a
``rebuild`` elsewhere, so ``forward``, ``save`` and ``rebuild`` together number t(l, s) + l.

References
----------
Griewank, Walther: Algorithm 799: Revolve, ACM TOMS 26(1), 2000, doi:10.1145/347837.347846.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import comb, isqrt

import numpy as np

from .actions import Action, Backward, Drop, Forward, Load, Loss, Rebuild, Save, Store
from .exceptions import BudgetError
from .generated import CHUNK, Rows, Schedule, check_count, check_slots
from .kernels.binomial import DESCEND, STEP, fill_rows

__all__ = ["UniformSchedule", "count_forwards", "optimal_splits", "revolve"]

LONGEST = 2**40  # stages; longer chains overflow the kernel's integers
LONGEST_INT32 = 2**31 - 2  # the loss ends at length + 1


def repetition(length: int, slots: int) -> int:
    """Return the least r with C(slots + r, slots) >= length, in O(log length) operations."""
    r, reach = 0, 1
    while reach < length and r <= slots:
        r += 1
        reach = reach * (slots + r) // r
    if reach >= length:
        return r
    # C(2 slots, slots) < length: few slots, so the binomial is cheap and r may be huge.
    low, high = r, 2 * r
    while comb(slots + high, slots) < length:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if comb(slots + middle, slots) >= length else (middle, high)
    return high


def count_forwards(length: int, slots: int) -> int:
    """Return t(length, slots): forward runs beyond the taped ones.

    Parameters
    ----------
    length
        Number of stages, at least 1.
    slots
        Activations that may be held at once, the initial state included.

    Raises
    ------
    BudgetError
        If a number is not an int of 1 or more.

    Examples
    --------
    >>> count_forwards(1000, 10)
    3636
    """
    check_count("length", length)
    check_slots(slots)
    r = repetition(length, slots)
    return r * length - comb(slots + r, r - 1) if r else 0


def count_stores(length: int, slots: int) -> int:
    """Return how many stores the schedule has: one for every right part of more than one stage.

    Inside a segment of beta(s, r) stages they number beta(s-1, r) - 1. Along the splits of any other one,
    what remains of l stages is at last l - beta(s, r-1) with s - 1 slots; the stores passed add up to
    beta(s-1, r-1). Where r = 1, every activation inside but the last is stored.
    """
    stores = 0
    while slots > 1 and length > slots + 1:
        r = repetition(length, slots)
        stores += comb(slots + r - 2, r - 1)
        length -= comb(slots + r - 1, slots)
        slots -= 1
    if slots == 1 and length > 1:
        return stores
    return max(0, stores + length - 2)


def optimal_splits(length: int, slots: int) -> tuple[int, int]:
    """Return the lowest and the highest optimal first split; every split between them is optimal too.

    Splitting at k means: run the stages 0..k-1, hold x_k, reverse the stages behind it with one slot
    less, then those before it with all slots.

    Parameters
    ----------
    length
        Number of stages, at least 2.
    slots
        Activations that may be held at once, the initial state included. With 1 the only split is
        before the last stage, whose input is the cursor and needs no slot.

    Raises
    ------
    BudgetError
        If a number is not an int of 1 or more, or the chain has no split.

    References
    ----------
    Griewank, Walther: Algorithm 799: Revolve, ACM TOMS 26(1), 2000, doi:10.1145/347837.347846.

    Examples
    --------
    >>> optimal_splits(1000, 10)
    (285, 286)
    """
    check_count("length", length)
    check_slots(slots)
    if length == 1:
        raise BudgetError("length=1 is not possible; a chain of one stage has no split, give 2 stages or more")
    r = repetition(length, slots)
    lowest = max(1, comb(slots + r - 2, slots), length - comb(slots + r - 1, r))
    return lowest, min(comb(slots + r - 1, slots), length - comb(slots + r - 2, r - 1))


class UniformSchedule(Schedule):
    """Revolve's schedule: actions from a Python generator, rows from a Numba kernel.

    Attributes
    ----------
    length, slots
        Stages of the chain; slots, no more than ``length``.
    """

    def __init__(self, length: int, slots: int) -> None:
        self.length, self.slots = length, min(slots, length)
        super().__init__(partial(generate, length, self.slots))

    def __len__(self) -> int:
        return self.count_actions()

    def __repr__(self) -> str:
        return f"<Schedule of {self.count_actions()} actions>"

    def count_actions(self) -> int:
        """Return the number of actions, also one too large for ``len``."""
        return self.count_rows() + count_forwards(self.length, self.slots) - (self.length - 1)

    def count_rows(self) -> int:
        """Return the number of rows: l - 1 runs of forwards and loads, l tapes and backwards, the loss."""
        return 4 * self.length - 1 + 2 * count_stores(self.length, self.slots)

    def arrays(self) -> Rows:
        """Return the whole schedule as three arrays; see ``Schedule.arrays``.

        Raises
        ------
        BudgetError
            For more than 2**40 stages.
        """
        return next(self.chunks(self.count_rows()))

    def chunks(self, size: int = CHUNK) -> Iterator[Rows]:
        """Return an iterator over the rows, ``size`` at a time; see ``Schedule.chunks``.

        Raises
        ------
        BudgetError
            If the size is not an int of 1 or more, or for more than 2**40 stages.
        """
        check_count("size", size)
        if self.length > LONGEST:
            raise BudgetError(f"rows of length={self.length} are not possible; use at most 2**40 stages, or iterate")
        return fill_chunks(self.length, self.slots, min(size, self.count_rows()))


def fill_chunks(length: int, slots: int, size: int) -> Iterator[Rows]:
    """Yield rows by the kernel; what it writes beyond ``size`` begins the next chunk."""
    stages = np.int32 if length <= LONGEST_INT32 else np.int64
    stack = np.empty((min(slots, isqrt(2 * length)) + 4, 6), np.int64)
    stack[0] = DESCEND, 0, length, slots, repetition(length, slots), 0
    depth, beyond = 1, Rows.empty(0, stages)
    while depth or len(beyond.kind):
        rows, carried = Rows.empty(size + STEP - 1, stages), len(beyond.kind)
        rows.start[:carried], rows.stop[:carried], rows.kind[:carried] = beyond
        written, depth = fill_rows(stack, depth, length - 1, *rows, carried)
        beyond = rows.cut(size, written)
        yield rows.cut(0, min(size, written))


def revolve(length: int, slots: int) -> Schedule:
    """Return Revolve's optimal schedule for a uniform chain.

    Parameters
    ----------
    length
        Number of stages, at least 1; any length, no recursion.
    slots
        Activations that may be held at once, the initial state included: at most ``slots - 1`` are
        stored. More slots than ``length - 1`` change nothing.

    Returns
    -------
    Schedule
        Lazy: iterate over it for actions, or take rows from ``arrays`` and ``chunks``. Its forwards,
        saves and rebuilds number ``count_forwards(length, slots) + length``.

    Raises
    ------
    BudgetError
        If a number is not an int of 1 or more.

    References
    ----------
    Griewank, Walther: Algorithm 799: Revolve, ACM TOMS 26(1), 2000, doi:10.1145/347837.347846.

    Examples
    --------
    >>> [action.to_json() for action in revolve(2, 1)]
    [['forward', 0], ['save', 1], ['loss'], ['backward', 1], ['load', 0], ['rebuild', 0], ['backward', 0]]
    """
    check_count("length", length)
    check_slots(slots)
    return UniformSchedule(length, slots)


def generate(length: int, slots: int) -> Iterator[Action]:
    """Yield the schedule; the stack holds the segments still to be reversed, the next one on top.

    A segment (start, end, free, r) reverses stages end-1..start from ``x_start``, which occupies one of
    its ``free`` slots. A segment of one stage is reversed on the spot, so its input is not stored.
    """
    segments = [(0, length, slots, repetition(length, slots))]
    turned = False
    while segments:
        start, end, free, r = segments.pop()
        if turned:
            yield Load(start)
            if start and end - start == 1:
                yield Drop(start)
        while end - start > 1:
            behind = comb(free + r - 2, r - 1)
            middle = min(start + comb(free + r - 1, free), end - behind)
            yield from map(Forward, range(start, middle))
            if end - middle > 1:
                yield Store(middle)
            segments.append((start, middle, free, r - 1))
            start, free = middle, free - 1
            if end - middle <= behind:
                r -= 1
        if turned:
            yield Rebuild(start)
        else:
            yield Save(start)
            yield Loss()
            turned = True
        yield Backward(start)
