"""Errors of measuring and executing."""

from __future__ import annotations

from revolve.schedules.exceptions import RevolveError

__all__ = ["BudgetWarning", "MeasurementError", "ModelError", "PlanMismatch", "RecomputeError"]


class ModelError(RevolveError, TypeError):
    """The model is not one that can be planned."""


class MeasurementError(RevolveError, RuntimeError):
    """A stage cannot be run or measured."""


class PlanMismatch(RevolveError, ValueError):  # noqa: N818 - reads as what it is
    """A plan was made for another model, or needs what is not available."""


class RecomputeError(RevolveError, RuntimeError):
    """A stage did not do the same thing when it was run again."""


class BudgetWarning(UserWarning):
    """Something left the plan; gradients are right, but the budget may not hold."""
