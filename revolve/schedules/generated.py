"""Schedules that are generated on the fly: as many actions as wanted, none kept in memory.

Consumers that want speed read rows instead of actions. A row (start, stop, kind) stands for actions of
one kind on the stages start..stop-1, in this order: a run of forwards is one row, every other action a
row of its own. Reading the rows gives exactly the actions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .actions import KINDS, Action, Drop, Forward, Loss, Save, Store, read_actions
from .exceptions import BudgetError, ScheduleError

__all__ = ["ROW_KINDS", "Rows", "Schedule", "check_count", "check_slots", "count_slots"]

ROW_KINDS = ("forward", "store", "load", "drop", "save", "rebuild", "loss", "backward")
"""Name of the action of each kind code, 0 to 7."""

FORWARD = ROW_KINDS.index("forward")
CHUNK = 2**16  # rows: few enough to stay in the cache of a core


class Rows(NamedTuple):
    """Part of a schedule, as three arrays of equal length.

    Attributes
    ----------
    start, stop
        The row stands for one action on each of the stages ``start`` to ``stop - 1``, ascending. Store,
        load and drop name an activation instead, and the loss counts as the stage behind the last one.
        int64, or int32 where the generator knows that every stage fits: convert them before arithmetic
        on anything larger than numbers of stages.
    kind
        int8: index into ``ROW_KINDS``.

    Examples
    --------
    >>> from revolve.schedules import revolve
    >>> start, stop, kind = revolve(3, 1).arrays()
    >>> [(ROW_KINDS[k], int(i), int(j)) for i, j, k in zip(start, stop, kind)][:3]
    [('forward', 0, 2), ('save', 2, 3), ('loss', 3, 4)]
    """

    start: NDArray[np.signedinteger]
    stop: NDArray[np.signedinteger]
    kind: NDArray[np.int8]

    @classmethod
    def empty(cls, size: int, stages: type[np.signedinteger]) -> Rows:
        """Return rows still to be written, with stages of the given type."""
        return cls(np.empty(size, stages), np.empty(size, stages), np.empty(size, np.int8))

    def cut(self, first: int, end: int) -> Rows:
        """Return the rows ``first`` to ``end - 1``; they share memory with these."""
        return Rows(self.start[first:end], self.stop[first:end], self.kind[first:end])

    def actions(self) -> Iterator[Action]:
        """Yield the actions that the rows stand for."""
        types = [KINDS[name] for name in ROW_KINDS]
        for start, stop, code in zip(self.start.tolist(), self.stop.tolist(), self.kind.tolist(), strict=True):
            if types[code] is Loss:
                yield Loss()
            else:
                yield from map(types[code], range(start, stop))

    def count_actions(self) -> int:
        """Return how many actions the rows stand for."""
        return int((self.stop - self.start).sum(dtype=np.int64))


class Schedule:
    """A schedule that makes its actions anew each time somebody iterates over it.

    Parameters
    ----------
    generate
        Returns a fresh iterator over the actions.
    """

    def __init__(self, generate: Callable[[], Iterator[Action]]) -> None:
        self.generate = generate

    def __iter__(self) -> Iterator[Action]:
        return self.generate()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __eq__(self, other: Any) -> bool:
        return list(self) == list(other) if isinstance(other, (Schedule, list, tuple)) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Schedule of {len(self)} actions>"

    def arrays(self) -> Rows:
        """Return the whole schedule as three arrays.

        Returns
        -------
        Rows
            ``start``, ``stop`` and ``kind``, 9 or 17 bytes a row; ``chunks`` needs less memory at a time.

        Raises
        ------
        ScheduleError
            If an activation is stored in a format other than dense: rows have no column for it.

        Examples
        --------
        >>> from revolve.schedules import revolve
        >>> rows = revolve(1000, 10).arrays()
        >>> len(rows.kind), rows.count_actions(), int(rows.stop[0])
        (5427, 8064, 286)
        """
        return pack(list(run_lengths(self)))

    def chunks(self, size: int = CHUNK) -> Iterator[Rows]:
        """Return an iterator over the rows of ``arrays``, ``size`` at a time: memory does not grow with the length.

        Parameters
        ----------
        size
            Rows of each chunk, at least 1; the last one may have fewer.

        Raises
        ------
        BudgetError
            If the size is not an int of 1 or more.
        ScheduleError
            On reaching an activation that is stored in a format other than dense.

        Examples
        --------
        >>> from revolve.schedules import revolve
        >>> [len(rows.kind) for rows in revolve(1000, 10).chunks(2000)]
        [2000, 2000, 1427]
        """
        check_count("size", size)
        rows = run_lengths(self)
        return map(pack, iter(lambda: list(islice(rows, size)), []))


def run_lengths(actions: Iterable[Action]) -> Iterator[tuple[int, int, int]]:
    """Yield rows (start, stop, kind): each run of ascending forwards as one, other actions singly."""
    start = stop = behind = 0  # a run of forwards start..stop-1 is pending where start < stop
    for position, action in enumerate(actions):
        if isinstance(action, Store) and action.format != "dense":
            raise ScheduleError(
                f"{action.to_json()} at position {position} has no row, since rows name no formats; "
                "iterate over the schedule instead",
                action,
                position,
            )
        index = getattr(action, "index", behind)
        if isinstance(action, (Forward, Save)):
            behind = index + 1
        if start < stop and not (isinstance(action, Forward) and index == stop):
            yield start, stop, FORWARD
            start = stop
        if not isinstance(action, Forward):
            yield index, index + 1, ROW_KINDS.index(action.kind)
        elif start == stop:
            start, stop = index, index + 1
        else:
            stop += 1
    if start < stop:
        yield start, stop, FORWARD


def pack(rows: list[tuple[int, int, int]]) -> Rows:
    """Return rows as arrays."""
    start, stop, kind = np.array(rows, np.int64).reshape(-1, 3).T
    return Rows(start.copy(), stop.copy(), kind.astype(np.int8))


def check_count(name: str, value: Any) -> None:
    """Check a number of stages, segments or slots.

    Raises
    ------
    BudgetError
        Unless it is an int of 1 or more.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BudgetError(f"{name}={value!r} is not possible; {name} must be an int of 1 or more")


def check_slots(slots: Any) -> None:
    """Check a number of slots.

    A slot holds one activation at a time. It counts as in Griewank and Walther: the initial state x_0
    occupies one for as long as the chain is reversed, so a schedule of s slots stores at most s - 1
    activations at a time. The cursor, the output x_L and what a taped stage saves take no slots.
    Every function with a parameter ``slots`` checks it here, and ``count_slots`` counts by this rule.

    Raises
    ------
    BudgetError
        Unless it is an int of 1 or more.
    """
    check_count("slots", slots)


def count_slots(actions: Iterable[Any]) -> int:
    """Return how many slots a schedule occupies: the initial state's and those of stored activations.

    Parameters
    ----------
    actions
        Actions, or their JSON lists.

    Examples
    --------
    >>> from revolve.schedules import revolve, sequential
    >>> count_slots(revolve(1000, 10)), count_slots(sequential(1000, 10))
    (10, 10)
    """
    held = most = 1
    for action in read_actions(actions):
        held += isinstance(action, Store) - isinstance(action, Drop)
        most = max(most, held)
    return most
