"""Revolve: optimal checkpointing of uniform chains by the binomial closed form.

Problem: reverse a chain of l equal stages with s slots for activations, the initial state occupying
one, in the fewest forward runs. With beta(s, r) = C(s + r, s), the number of stages that s slots
reverse when no stage is run forward more than r times, and r the least number with beta(s, r) >= l,

    t(l, s) = r l - beta(s + 1, r - 1)

forward runs beyond the l taped ones are needed and sufficient. A first split at stage k (store x_k,
reverse the l - k stages behind it with s - 1 slots, then the k before it with s) is optimal for all

    max(beta(s, r-2), l - beta(s-1, r)) <= k <= min(beta(s, r-1), l - beta(s-1, r-1));

the upper end is taken. Time is O(1) an action besides the actions themselves, memory O(s).

The taped run of a stage is the last one before its backward: a ``save`` at the turn-around, a
``rebuild`` elsewhere, so ``forward``, ``save`` and ``rebuild`` together number t(l, s) + l.

References
----------
Griewank, Walther: Algorithm 799: Revolve, ACM TOMS 26(1), 2000, doi:10.1145/347837.347846.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb

from .actions import Action, Backward, Drop, Forward, Load, Loss, Rebuild, Save, Store
from .generated import Schedule, check_count

__all__ = ["count_forwards", "revolve"]


def repetition(length: int, slots: int) -> int:
    """Return the least r with C(slots + r, slots) >= length."""
    r, reach = 0, 1
    while reach < length:
        r += 1
        reach = reach * (slots + r) // r
    return r


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
    check_count("slots", slots)
    r = repetition(length, slots)
    return r * length - comb(slots + r, r - 1) if r else 0


def split(length: int, slots: int) -> int:
    """Return the largest optimal first split of a chain."""
    if slots == 1:
        return length - 1
    r = repetition(length, slots)
    return min(comb(slots + r - 1, slots), length - comb(slots + r - 2, slots - 1))


def revolve(length: int, slots: int) -> Schedule:
    """Return Revolve's optimal schedule for a uniform chain.

    Parameters
    ----------
    length
        Number of stages, at least 1; any length, no recursion.
    slots
        Activations that may be held at once, the initial state included: at most ``slots - 1`` are
        stored. More slots than ``length`` change nothing.

    Returns
    -------
    Schedule
        Its forwards, saves and rebuilds number ``count_forwards(length, slots) + length``.

    Raises
    ------
    BudgetError
        If a number is not an int of 1 or more.

    Examples
    --------
    >>> [action.to_json() for action in revolve(2, 1)]
    [['forward', 0], ['save', 1], ['loss'], ['backward', 1], ['load', 0], ['rebuild', 0], ['backward', 0]]
    """
    check_count("length", length)
    check_count("slots", slots)
    return Schedule(lambda: generate(length, min(slots, length)))


def generate(length: int, slots: int) -> Iterator[Action]:
    """Yield the schedule; the stack holds the segments still to be reversed, the next one on top.

    A segment (start, end, free) reverses stages end-1..start from ``x_start``, which occupies one of
    its ``free`` slots. A segment of one stage is reversed on the spot, so its input is not stored.
    """
    segments = [(0, length, slots)]
    turned = False
    while segments:
        start, end, free = segments.pop()
        if turned:
            yield Load(start)
            if start and end - start == 1:
                yield Drop(start)
        while end - start > 1:
            middle = start + split(end - start, free)
            yield from map(Forward, range(start, middle))
            if end - middle > 1:
                yield Store(middle)
            segments.append((start, middle, free))
            start, free = middle, free - 1
        if turned:
            yield Rebuild(start)
        else:
            yield Save(start)
            yield Loss()
            turned = True
        yield Backward(start)
