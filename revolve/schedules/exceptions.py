"""Errors that people can act on: what was passed, why it cannot work, what to change."""

from __future__ import annotations

from typing import Any

__all__ = ["BudgetError", "ChainError", "InfeasibleBudget", "RevolveError", "ScheduleError", "SolverMemoryError"]


class RevolveError(Exception):
    """Base class of every error that revolve raises on purpose."""


class ChainError(RevolveError, ValueError):
    """A chain, or a file that describes one, is incomplete or inconsistent."""


class BudgetError(RevolveError, ValueError):
    """A budget or a number of slots that cannot be understood."""


class ScheduleError(RevolveError, ValueError):
    """An action whose precondition fails, or a schedule that does not reverse every stage.

    Attributes
    ----------
    action
        The offending action, or None where the schedule as a whole is at fault.
    position
        Its position in the schedule, counted from 0; None where ``action`` is None.
    """

    def __init__(self, message: str, action: Any = None, position: int | None = None) -> None:
        super().__init__(message)
        self.action = action
        self.position = position


class InfeasibleBudget(RevolveError, ValueError):  # noqa: N818 - the public name is fixed
    """No schedule fits the budget.

    Attributes
    ----------
    smallest
        The least feasible budget in bytes.
    budget
        The budget that was asked for, in bytes.
    """

    def __init__(self, message: str, smallest: int, budget: int) -> None:
        super().__init__(message)
        self.smallest = smallest
        self.budget = budget

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.smallest, self.budget)


class SolverMemoryError(RevolveError, MemoryError):
    """The solver's tables would need more memory than they may have."""
