"""Errors of tables and pictures."""

from __future__ import annotations

from revolve.schedules.exceptions import RevolveError

__all__ = ["ReportError"]


class ReportError(RevolveError, ValueError):
    """A picture or a file that cannot be made as asked."""
