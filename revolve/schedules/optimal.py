"""The optimal schedule of a heterogeneous chain, read back from the solved tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from .actions import Action, Backward, Drop, Forward, Load, Loss, Rebuild, Save, Store
from .kernels.frontier import E, P, Q

__all__ = ["generate_optimal"]


class Solved(Protocol):
    """What a schedule is read back from."""

    @property
    def length(self) -> int:
        """Number of stages."""

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the non-dense formats, in the order of the tables."""

    def choice(self, table: int, s: int, t: int, free: int) -> tuple[int, tuple[Any, ...]]:
        """Return index and description of the best candidate of a cell."""


def generate_optimal(tables: Solved, free: int) -> Iterator[Action]:
    """Yield the schedule that the tables hold for a budget.

    The stack holds what is still to be done, the next on top: actions, and cells (table, s, t, free
    bytes, whether x_s is stored).
    """
    todo: list[Any] = [(P, 0, tables.length, free, False)]
    while todo:
        item = todo.pop()
        if isinstance(item, Action):
            yield item
            continue
        table, s, t, free, stored = item
        if table > P and table % 2:  # loaded from a format; keep it or drop it
            _, (_, _, _, target, *_) = tables.choice(table, s, t, free)
            if target == Q:
                yield Drop(s)
            todo.append((target, s, t, free, target != Q))
            continue
        index, (_, _, _, first, a_s, a_t, a_shift, second, b_s, b_t, b_shift) = tables.choice(table, s, t, free)
        advances = second >= 0
        if stored and not advances:
            yield Drop(s)
        if advances:
            if s and not stored:
                yield Store(s)
            todo += [(second, b_s, b_t, free - b_shift, s > 0), Load(s), (first, a_s, a_t, free - a_shift, False)]
            yield from map(Forward, range(s, a_s))
        elif first >= E:
            yield Store(s, tables.formats[(first - E) // 2])
            todo.append((first, a_s, a_t, free - a_shift, True))
        elif index == 1:
            yield Save(s)
            todo.append(Backward(s))
            if first >= 0:
                todo.append((first, a_s, a_t, free - a_shift, False))
        elif s == tables.length:
            yield Loss()
        else:
            yield Rebuild(s)
            yield Backward(s)
