"""The optimal schedule of a heterogeneous chain, read back from the solved tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from .actions import Action, Backward, Drop, Forward, Load, Loss, Rebuild, Save, Store
from .kernels.frontier import E, P, saved_in, stored_in

__all__ = ["generate_optimal"]


class Solved(Protocol):
    """What a schedule is read back from."""

    @property
    def length(self) -> int:
        """Number of stages."""

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the non-dense formats, in the order of the tables."""

    @property
    def modes(self) -> int:
        """How many of the formats can save stages: the first ones."""

    def choice(self, table: int, s: int, t: int, free: int) -> tuple[int, tuple[Any, ...]]:
        """Return index and description of the best candidate of a cell."""


class Cell(NamedTuple):
    """A part of the chain that is still to be reversed, within some free bytes.

    ``stored`` is the format that x_s is stored in by the schedule itself, or nothing.
    """

    table: int
    s: int
    t: int
    free: int
    stored: str = ""


def generate_optimal(tables: Solved, free: int) -> Iterator[Action]:
    """Yield the schedule that the tables hold for a budget."""
    todo: list[Action | Cell] = [Cell(P, 0, tables.length, free)]
    while todo:
        item = todo.pop()
        if isinstance(item, Cell):
            todo += reversed([*expand(tables, item)])
        else:
            yield item


def expand(tables: Solved, cell: Cell) -> Iterator[Action | Cell]:
    """Yield what the best candidate of a cell consists of, in order."""
    table, s, t, free, stored = cell
    counts = len(tables.formats), tables.modes
    index, (_, _, _, first, a_s, a_t, a_shift, second, b_s, b_t, b_shift) = tables.choice(table, s, t, free)
    names = (*tables.formats, "dense")  # kernels write -1 for dense
    following = Cell(first, a_s, a_t, free - a_shift)
    if second >= 0:
        kept = names[stored_in(table, s, t, index, *counts)] if s else ""
        if stored not in ("", kept):
            yield Drop(s)
        if stored != kept:
            yield Store(s, kept)
        yield from map(Forward, range(s, a_s))
        yield from (following, Load(s), Cell(second, b_s, b_t, free - b_shift, kept))
        return
    loaded = E <= table < E + 2 * counts[0]
    saved = saved_in(table, index, *counts)
    if loaded and first == table - 1:  # it stays stored
        yield following._replace(stored=stored)
        return
    if stored and not (loaded and saved >= 0):
        yield Drop(s)
    if saved >= -1:
        yield Save(s, names[saved])
        if stored and loaded:  # the saved stage holds it now
            yield Drop(s)
        if first >= 0:
            yield following
        yield Backward(s)
    elif first >= E:
        yield from (Store(s, names[(first - E) // 2]), following._replace(stored=names[(first - E) // 2]))
    elif first >= 0:
        yield following
    elif s == tables.length:
        yield Loss()
    else:
        yield from (Rebuild(s), Backward(s))
