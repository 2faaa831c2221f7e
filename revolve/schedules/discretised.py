"""The optimal schedule with memory cut into slots: the way of the rotor paper, over a dense table.

The budget is divided into equal slots, every size is rounded up to whole ones, and the recurrence of the
exact solver (``kernels/frontier.py``, dense checkpoints only) is tabulated for 0, 1, ... slots of free
memory. So the schedule fits, and it is optimal for the rounded sizes; what rounding adds to every
stage, the budget pays for. Complexity: O(L^3) sums of arrays of ``slots`` values for one budget.

rotor's own recurrence has neither the transient bytes nor the dropping of checkpoints before their last
use; with them here, what is left of the difference to the exact solver is the rounding alone. With slots
of one byte there is none.

References
----------
Beaumont, Eyraud-Dubois, Herrmann, Joly, Shilova: Optimal checkpointing for heterogeneous chains: how to
train deep neural networks with limited memory (2019), arXiv:1911.13214, section 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chain import Chain, Stage
from .exceptions import BudgetError, InfeasibleBudget
from .families import read_budget
from .generated import check_count
from .kernels.frontier import INFINITE, P, Q, candidate, count_candidates
from .optimal import generate_optimal
from .plans import Plan, plain_schedule
from .problem import BYTES, check_extent, describe_chain
from .simulator import simulate
from .units import format_bytes

__all__ = ["plan_discretised"]

HALVINGS = 8  # of the interval in which the least feasible budget is searched


def plan_discretised(chain: Chain, budget: int | str, slots: int = 500) -> Plan:
    """Return the best plan for sizes rounded up to slots of ``budget / slots`` bytes.

    Parameters
    ----------
    chain
        The chain.
    budget
        Bytes, or a string such as ``"300MB"``; ``"80%"`` is of plain training's peak.
    slots
        Number of slots, at least 1; the published implementation uses 500.

    Raises
    ------
    InfeasibleBudget
        If nothing fits. The budget it names is the least one found by bisection, to less than 1 % of
        plain training's peak: rounding makes the least one expensive to find.
    BudgetError
        If the budget cannot be understood, ``slots`` is not an int of 1 or more, or too few for any budget.

    Examples
    --------
    >>> chain = Chain.uniform(5, output_bytes=10, saved_bytes=35)
    >>> plan_discretised(chain, 150, slots=6).makespan, plan_discretised(chain, 150).makespan
    (20.0, 13.0)
    """
    check_count("slots", slots)
    limit = read_budget(chain, budget)
    check_extent(chain)
    tables = SlotTables(chain, limit, slots)
    if not tables.feasible():
        smallest = least_budget(chain, limit, slots)
        raise InfeasibleBudget(
            f"with sizes rounded up to {slots} slots, budget {limit} bytes is below the least feasible "
            f"{smallest} bytes ({format_bytes(smallest)}); raise the budget or the number of slots",
            smallest,
            limit,
        )
    return Plan.from_actions(chain, generate_optimal(tables, slots), f"discretised({slots})", limit)


def least_budget(chain: Chain, infeasible: int, slots: int) -> int:
    """Return a feasible budget; within less than 1 % of plain training's peak none is known below it."""
    high = simulate(chain, plain_schedule(len(chain))).peak
    largest = max(chain.input_bytes, chain.loss_extra, *(getattr(s, name) for s in chain.stages for name in BYTES))
    if not SlotTables(chain, largest * slots, slots).feasible():  # then every size fits in a slot of its own
        raise BudgetError(f"slots={slots} are too few for {len(chain)} stages: every size takes one; use more")
    while not SlotTables(chain, high, slots).feasible():
        high *= 2  # rounding alone can make plain training's peak too little
    low = infeasible
    for _ in range(HALVINGS):
        middle = (low + high) // 2
        low, high = (low, middle) if SlotTables(chain, middle, slots).feasible() else (middle, high)
    return high


class SlotTables:
    """The recurrence, tabulated for 0 to ``slots`` slots of free memory.

    Attributes
    ----------
    values
        By (table, s, t): int64 (slots + 1,), nanoseconds, INFINITE where infeasible.
    formats, modes, length
        As the exact solver's tables have them.
    """

    def __init__(self, chain: Chain, budget: int, slots: int) -> None:
        self.length = len(chain)
        self.formats: tuple[str, ...] = ()
        self.modes = 0
        self.slots = slots
        self.problem = describe_chain(rounded(chain, budget, slots), ())
        self.values: dict[tuple[int, int, int], NDArray[np.int64]] = {}
        for width in range(self.length + 1):
            for s in range(self.length + 1 - width):
                if s == 0 or chain.stages[s - 1].saves_output:
                    self.values[P, s, s + width] = self.best(P, s, s + width)
                if s:
                    self.values[Q, s, s + width] = self.best(Q, s, s + width)

    def candidates(self, table: int, s: int, t: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Yield index and description of the valid candidates of a cell."""
        for index in range(count_candidates(table, s, t, 0, 0)):
            description = candidate(table, s, t, index, *self.problem)
            if description[0]:
                yield index, description

    def best(self, table: int, s: int, t: int) -> NDArray[np.int64]:
        """Return the least times of a cell for every number of free slots."""
        times = np.full(self.slots + 1, INFINITE)
        for _, (_, time, floor, at, a_s, a_t, a_shift, bt, b_s, b_t, b_shift) in self.candidates(table, s, t):
            begin = max(floor, a_shift, b_shift)
            if begin > self.slots:
                continue
            sums = np.full(self.slots + 1 - begin, time)
            if at >= 0:
                sums += self.values[at, a_s, a_t][begin - a_shift : self.slots + 1 - a_shift]
            if bt >= 0:
                sums += self.values[bt, b_s, b_t][begin - b_shift : self.slots + 1 - b_shift]
            np.minimum(times[begin:], sums, out=times[begin:])
        return times

    def value(self, table: int, s: int, t: int, free: int) -> int:
        """Return the least time of a cell, 0 for no cell."""
        if table < 0:
            return 0
        return int(self.values[table, s, t][free]) if free >= 0 else int(INFINITE)

    def feasible(self) -> bool:
        """Return whether anything fits."""
        return self.value(P, 0, self.length, self.slots) < int(INFINITE)

    def choice(self, table: int, s: int, t: int, free: int) -> tuple[int, tuple[Any, ...]]:
        """Return index and description of the best candidate of a cell with ``free`` slots."""

        def time_of(entry: tuple[int, tuple[Any, ...]]) -> int:
            _, time, floor, at, a_s, a_t, a_shift, bt, b_s, b_t, b_shift = entry[1]
            if free < floor:
                return int(INFINITE)
            return int(time + self.value(at, a_s, a_t, free - a_shift) + self.value(bt, b_s, b_t, free - b_shift))

        return min(self.candidates(table, s, t), key=time_of)


def rounded(chain: Chain, budget: int, slots: int) -> Chain:
    """Return the chain with all sizes in slots, rounded up; down, where they count less."""

    def in_slots(size: int) -> int:
        return -(-size * slots // budget) if budget else size * (slots + 1)

    def stage_in_slots(stage: Stage) -> Stage:
        sizes: dict[str, Any] = {name: in_slots(getattr(stage, name)) for name in BYTES}
        return replace(stage, **sizes, passed_bytes=-in_slots(-stage.passed_bytes))

    return replace(
        chain,
        stages=tuple(map(stage_in_slots, chain.stages)),
        input_bytes=in_slots(chain.input_bytes),
        loss_extra=in_slots(chain.loss_extra),
        formats={},
    )
