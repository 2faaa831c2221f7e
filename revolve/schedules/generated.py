"""Schedules that are generated on the fly: as many actions as wanted, none kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .actions import Action
from .exceptions import BudgetError

__all__ = ["Schedule", "check_count"]


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


def check_count(name: str, value: Any) -> None:
    """Check a number of stages, segments or slots.

    Raises
    ------
    BudgetError
        Unless it is an int of 1 or more.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BudgetError(f"{name}={value!r} is not possible; {name} must be an int of 1 or more")
