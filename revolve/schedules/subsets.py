"""The single-level optimum: each stage is saved in the first forward or run again once, exactly solved.

Problem: cut a chain into stages that are saved in the first forward, and segments that keep only their
input then and are run again, once, when the backward reaches them (their last stage as a ``rebuild``;
the input is dropped as soon as the segment's first stage runs again). Of these schedules, at most 3^L,
find the fastest within a budget. Torch's splits, Chen's and every n-th stage are all of this kind.

Everything that is held while stage i or a segment from i on is run or reversed was either kept by the
stages before i (K bytes) or belongs to the segment itself. So walk through the boundaries j of the chain
with m = budget - K free bytes and let W(j, m) be the least time that the stages from j on add,
told apart by whether stage j-1 holds x_j because it was saved and saves its output:

    W(L, m) = loss                                        for m >= x_L + grad x_L + loss_extra
    W(i, m) = min( f_i + b_i + W(i+1, m - kept_i)         for m >= need_i                 [save i]
                   min_j time_ij + W(j, m - x_i)          for m >= need_ij                [segment i..j-1] )

with kept_i the bytes that saving stage i adds, x_i only where nobody holds it, time_ij two forwards and
one backward of each stage (the last one's second forward stops early), and need the largest peak of
the simulator while that stage or segment is run and reversed, less K.

W is kept as the breakpoints of a step function, as in ``kernels.frontier``: (bytes, nanoseconds) labels
none of which is beaten in both. There are O(L^2) moves, and a merge sorts the labels that they lead to.
The problem contains the knapsack problem, so no polynomial bounds the number of labels: random chains
with real-valued times had up to 200 at L = 20, 3,000 at L = 150 (1.4 s on one core) and 18,000 at L = 300.

References
----------
Segments that are run again once are Algorithm 1 of Chen, Xu, Zhang, Guestrin: Training Deep Nets with
Sublinear Memory Cost (2016), arXiv:1604.06174; here any stages may be kept out of them, and the choice is
exact. The recurrence is this project's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .chain import Chain, nanoseconds
from .families import read_budget, refuse
from .plans import Plan
from .segments import schedule_from_segments

__all__ = ["SubsetTables", "plan_single_level"]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Steps = tuple[Ints, Ints]  # bytes ascending, nanoseconds descending


class Costs(NamedTuple):
    """A chain as arrays, one entry a stage unless said otherwise; bytes and nanoseconds.

    Attributes
    ----------
    activation
        x_0 .. x_L (L + 1 entries), x_0 as 0 since it is the caller's.
    cursor
        x_i where stage i-1, saved, does not hold it; else 0.
    held_output
        What a saved stage holds of its output: x_{i+1} with saves_output, 0 for x_L (the caller's).
    behind
        L + 1 entries: bytes held at boundary j of the backward whatever the schedule: x_L, the
        gradient of x_j, and the parameter gradients of the stages from j on.
    forward, again, backward
        Times of a forward, a rebuild, a backward.
    saved, forward_extra, save_extra, rebuild_extra, backward_extra, saves_input, saves_output
        The stages' fields.
    """

    activation: Ints
    cursor: Ints
    held_output: Ints
    behind: Ints
    forward: Ints
    again: Ints
    backward: Ints
    saved: Ints
    forward_extra: Ints
    save_extra: Ints
    rebuild_extra: Ints
    backward_extra: Ints
    saves_input: Bools
    saves_output: Bools


class Moves(NamedTuple):
    """What can be done at one boundary: entry 0 saves the stage, entry n >= 1 is the segment of n stages.

    Attributes
    ----------
    need
        Least free bytes.
    shift
        Bytes that are kept from then on.
    time
        Nanoseconds.
    """

    need: Ints
    shift: Ints
    time: Ints


def read_costs(chain: Chain) -> Costs:
    """Return a chain as arrays."""
    stages = chain.stages

    def sizes(name: str) -> Ints:
        return np.array([getattr(stage, name) for stage in stages], np.int64)

    def times(name: str) -> Ints:
        return np.array([nanoseconds(getattr(stage, name)) for stage in stages], np.int64)

    activation = np.concatenate(([0], sizes("output_bytes")))
    saves_output = sizes("saves_output").astype(bool)
    held_output = np.where(saves_output, activation[1:], 0)
    held_output[-1] = 0
    cursor = activation[:-1].copy()
    cursor[1:][saves_output[:-1]] = 0
    gradients = np.array([chain.gradient_bytes(j) for j in range(len(chain) + 1)], np.int64)
    left = np.concatenate((np.cumsum(sizes("grad_bytes")[::-1])[::-1], [0]))
    return Costs(
        activation=activation,
        cursor=cursor,
        held_output=held_output,
        behind=activation[-1] + gradients + left,
        forward=times("forward"),
        again=times("rebuild"),
        backward=times("backward"),
        saved=sizes("saved_bytes"),
        forward_extra=sizes("forward_extra") - sizes("passed_bytes"),
        save_extra=sizes("save_extra") - sizes("passed_bytes"),
        rebuild_extra=sizes("rebuild_extra"),
        backward_extra=sizes("backward_extra"),
        saves_input=sizes("saves_input").astype(bool),
        saves_output=saves_output,
    )


def list_moves(costs: Costs, i: int, held: bool) -> Moves:
    """Return what can be done at boundary i.

    Parameters
    ----------
    costs
        The chain.
    i
        The next stage.
    held
        Whether stage i-1 or the caller holds x_i; else it is only the cursor.
    """
    c = Costs._make(array[i:] for array in costs)  # from here on index 0 is stage i
    pay = 0 if held else c.activation[0]
    cursor = c.cursor.copy()
    cursor[0] = pay
    kept = c.saved + np.where(c.saves_input, cursor, 0) + c.held_output
    total = np.cumsum(kept)
    inside = total - kept + cursor + c.saved  # held before and by a run of the stage in the second forward
    advance = pay + c.activation[1:] + c.forward_extra
    advance[1:] += c.activation[1:-1]
    save = inside + c.activation[1:] + c.save_extra
    rebuild = inside + c.held_output + c.rebuild_extra
    reverse = c.behind[1:] + total + c.backward_extra
    before = np.concatenate(([0], np.maximum.accumulate(save)[:-1]))
    need = np.maximum(np.maximum.accumulate(advance), np.maximum.accumulate(reverse))
    need = np.maximum(need, c.behind[1:] + np.maximum(before, rebuild))
    time = np.cumsum(2 * c.forward + c.backward) - c.forward + c.again
    at_once = max(save[0], reverse[0])
    return Moves(
        np.concatenate(([at_once], need)),
        np.concatenate(([kept[0]], np.full(len(need), pay))),
        np.concatenate(([c.forward[0] + c.backward[0]], time)),
    )


class SubsetTables:
    """W of every boundary, for all budgets up to one.

    Attributes
    ----------
    least
        Bytes of the least feasible budget.

    Parameters
    ----------
    chain
        The chain.
    limit
        Largest budget of interest in bytes.
    """

    def __init__(self, chain: Chain, limit: int) -> None:
        self.costs = read_costs(chain)
        self.length = len(chain)
        floor = int(self.costs.behind[-1]) + chain.loss_extra
        end = (np.array([floor], np.int64), np.array([nanoseconds(chain.loss_time)], np.int64))
        self.steps: dict[tuple[int, bool], Steps] = {(self.length, True): end}
        floors = {(self.length, True): floor}
        for i in reversed(range(self.length)):
            for held in (False, True):
                moves = list_moves(self.costs, i, held)
                below = np.array([floors[target] for target in self.targets(i)])
                floors[i, held] = int(np.maximum(moves.need, moves.shift + below).min())
                self.steps[i, held] = self.merge(i, moves, limit)
        self.least = floors[0, True]

    def targets(self, i: int) -> list[tuple[int, bool]]:
        """Return the state that each move at boundary i leads to."""
        ends = [(j, j == self.length) for j in range(i + 1, self.length + 1)]
        return [(i + 1, bool(self.costs.saves_output[i]) or i + 1 == self.length), *ends]

    def merge(self, i: int, moves: Moves, limit: int) -> Steps:
        """Return the lower envelope of all moves at boundary i, up to a number of bytes."""
        sizes, times = [], []
        for target, need, shift, time in zip(self.targets(i), *moves, strict=True):
            steps, rest = self.steps[target]
            begin = np.maximum(steps + shift, need)
            fits = np.searchsorted(begin, limit, side="right")
            sizes.append(begin[:fits])
            times.append(rest[:fits] + time)
        all_sizes, all_times = np.concatenate(sizes), np.concatenate(times)
        order = np.lexsort((all_times, all_sizes))
        lowest = np.minimum.accumulate(all_times[order])
        falls = np.concatenate(([True], lowest[1:] < lowest[:-1]))[: len(order)]
        return all_sizes[order][falls], lowest[falls]

    def segments(self, budget: int) -> list[tuple[int, int]]:
        """Return the segments of the fastest schedule within a budget that is feasible and in range.

        Parameters
        ----------
        budget
            Bytes, from ``least`` to the limit of the tables.
        """
        sizes, _ = self.steps[0, True]
        # The least bytes that give this time, so that of equally fast schedules none has a lower peak.
        free = int(sizes[np.searchsorted(sizes, budget, side="right") - 1])
        found: list[tuple[int, int]] = []
        i, held = 0, True
        while i < self.length:
            moves = list_moves(self.costs, i, held)
            targets = self.targets(i)
            chosen = min(range(len(targets)), key=lambda n: self.time_of(targets[n], moves, n, free))
            if chosen:
                found.append((i, i + chosen))
            free -= int(moves.shift[chosen])
            i, held = targets[chosen]
        return found

    def time_of(self, target: tuple[int, bool], moves: Moves, n: int, free: int) -> float:
        """Return the time of move n and all that follows with ``free`` bytes; infinite where it does not fit."""
        sizes, times = self.steps[target]
        position = np.searchsorted(sizes, free - moves.shift[n], side="right") - 1
        if free < moves.need[n] or position < 0:
            return float("inf")
        return float(moves.time[n] + times[position])


def plan_single_level(chain: Chain, budget: int | str) -> Plan:
    """Return the fastest schedule within a budget that runs no stage forward more than twice.

    Stages are saved in the first forward or belong to a segment that is run again once, from its stored
    input, when the backward reaches it.

    Parameters
    ----------
    chain
        The chain.
    budget
        Bytes, or a string such as ``"300MB"`` or ``"80%"`` (of plain training's peak).

    Raises
    ------
    InfeasibleBudget
        If no such schedule fits; the error names the least budget of all of them.
    BudgetError
        If the budget cannot be understood.

    Examples
    --------
    >>> plan = plan_single_level(Chain.uniform(6, saved_bytes=3), 20)
    >>> plan.makespan, plan.peak
    (14.0, 19)
    """
    limit = read_budget(chain, budget)
    tables = SubsetTables(chain, limit)
    if limit < tables.least:
        raise refuse("single_level", limit, tables.least)
    segments = tables.segments(limit)
    return Plan.from_actions(chain, schedule_from_segments(segments, len(chain), hold=False), "single_level", limit)
