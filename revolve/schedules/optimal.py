"""The optimal schedule of a heterogeneous chain: prepares the kernels and reads schedules back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .actions import Action, Backward, Drop, Forward, Load, Loss, Rebuild, Save, Store
from .chain import Chain, nanoseconds
from .exceptions import BudgetError, ChainError
from .kernels.frontier import E, P, Q, candidate, choose, fill_tables
from .plans import plain_schedule
from .simulator import simulate

__all__ = ["Tables", "generate_optimal", "solve_tables"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tables:
    """The solved recurrence of one chain.

    Attributes
    ----------
    problem
        Arguments that describe the chain to the kernels.
    solution
        Pool of step functions and where each cell's lies in it.
    formats
        Names of the non-dense formats, in the order of the tables.
    length
        Number of stages.
    """

    problem: tuple[Any, ...]
    solution: tuple[Ints, Ints, Ints, Ints]
    formats: tuple[str, ...]
    length: int

    def root(self) -> tuple[Ints, Ints]:
        """Return bytes and nanoseconds of the whole chain's frontier."""
        pool_bytes, pool_times, first, count = self.solution
        start = first[P, 0, self.length]
        steps = slice(start, start + count[P, 0, self.length])
        return pool_bytes[steps].copy(), pool_times[steps].copy()

    def choice(self, table: int, s: int, t: int, free: int) -> tuple[int, tuple[Any, ...]]:
        """Return index and candidate that are best in a cell with ``free`` bytes."""
        index = choose(table, s, t, free, *self.solution, *self.problem)
        return index, candidate(table, s, t, index, *self.problem)


def solve_tables(chain: Chain, formats: Any, tolerance: float) -> Tables:
    """Check the arguments and fill the tables."""
    if not isinstance(chain, Chain):
        raise ChainError(f"the chain is a {type(chain).__name__}; pass a revolve.Chain (Chain.load(path) reads a file)")
    if isinstance(formats, str):
        formats = (formats,)
    names = tuple(dict.fromkeys(name for name in formats if name != "dense"))
    for name in names:
        if name not in chain.formats:
            known = ", ".join(["dense", *chain.formats])
            raise ChainError(f"format {name!r} is not among the chain's ({known}); measure with it, or leave it out")
    if not (isinstance(tolerance, (int, float)) and 0 <= tolerance < float("inf")):
        raise BudgetError(f"tolerance={tolerance!r} is not possible; it must be a number of 0 or more")
    length = len(chain)
    problem = describe_chain(chain, names)
    cap = simulate(chain, plain_schedule(length)).peak
    delta = (1.0 + tolerance) ** (1.0 / (length + 1)) - 1.0
    return Tables(problem, fill_tables(*problem, np.int64(cap), float(delta)), names, length)


def describe_chain(chain: Chain, formats: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the chain as the arrays that the kernels read (see ``kernels.frontier.candidate``)."""
    length = len(chain)
    stages = chain.stages
    sizes = np.zeros((9, length + 1), np.int64)
    sizes[0, 1:] = [stage.output_bytes for stage in stages]
    sizes[1] = [chain.gradient_bytes(j) for j in range(length + 1)]
    for row, name in enumerate(("saved_bytes", "forward_extra", "save_extra", "rebuild_extra", "backward_extra"), 2):
        sizes[row, :-1] = [getattr(stage, name) for stage in stages]
    sizes[7, 1:] = np.cumsum([stage.grad_bytes for stage in stages])
    sizes[8, 0] = chain.loss_extra
    times = np.zeros((4, length + 1), np.int64)
    for row, name in enumerate(("forward", "rebuild", "backward"), 1):
        times[row, :-1] = [nanoseconds(getattr(stage, name)) for stage in stages]
    times[0, 1:] = np.cumsum(times[1, :-1])
    times[2, length] = nanoseconds(chain.loss_time)
    flags = np.zeros((2, length + 1), np.bool_)
    flags[0, :-1] = [stage.saves_input for stage in stages]
    flags[1, :-1] = [stage.saves_output for stage in stages]
    inner = np.zeros((length + 1, length + 1), np.int64)
    steps = sizes[0, :-1] + sizes[0, 1:] + sizes[3, :-1]
    for s in range(length):
        inner[s, s + 2 :] = np.maximum.accumulate(steps[s + 1 :])
    costs = [chain.formats[name] for name in formats]
    formats_bytes = np.array([cost.stored_bytes for cost in costs], np.int64).reshape(len(costs), length + 1)
    seconds = np.array([(c.store_time, c.load_time) for c in costs], np.float64).reshape(len(costs), 2, length + 1)
    return sizes, times, flags, inner, formats_bytes, np.rint(seconds * 1e9).astype(np.int64)


def generate_optimal(tables: Tables, free: int) -> Iterator[Action]:
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
