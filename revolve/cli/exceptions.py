"""What the command line makes of errors."""

from __future__ import annotations

from revolve.schedules.exceptions import InfeasibleBudget, RevolveError

__all__ = ["FAILED_CHECK", "INFEASIBLE", "INTERRUPTED", "PIPE_CLOSED", "WRONG_INPUT", "CommandError", "exit_code"]

FAILED_CHECK = 1  # verify only: not bit-identical, or over the budget
WRONG_INPUT = 2
INFEASIBLE = 3
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
PIPE_CLOSED = 141  # 128 + SIGPIPE


class CommandError(RevolveError, ValueError):
    """Arguments of a command that cannot be used."""


def exit_code(error: RevolveError) -> int:
    """Return the exit code that stands for an error."""
    return INFEASIBLE if isinstance(error, InfeasibleBudget) else WRONG_INPUT
