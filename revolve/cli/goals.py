"""What a plan is asked for: a budget, a share of plain training's peak, or an overhead."""

from __future__ import annotations

import math
from dataclasses import dataclass

from revolve.schedules import Frontier, parse_bytes
from revolve.schedules.overheads import parse_overhead

from .exceptions import CommandError

__all__ = ["Goal"]


@dataclass(frozen=True, slots=True)
class Goal:
    """One of three ways to choose a point of a frontier, or none.

    Attributes
    ----------
    budget
        Bytes as typed: ``"300MB"``, or ``"80%"`` of what a model's device has free.
    fraction
        Share of plain training's peak.
    overhead
        Share of plain training's time that a step may take longer, as typed: ``"10%"``.
    """

    budget: str | None = None
    fraction: float | None = None
    overhead: str | None = None

    @property
    def given(self) -> list[str]:
        """The options that were given."""
        values = {"--budget": self.budget, "--fraction": self.fraction, "--overhead": self.overhead}
        return [option for option, value in values.items() if value is not None]

    @property
    def of_device(self) -> bool:
        """Whether the budget is a share of what a device has free."""
        return self.budget is not None and self.budget.strip().endswith("%")

    def check(self, *, device: bool) -> None:
        """Check what needs neither chain nor model, before anything is measured or solved.

        Parameters
        ----------
        device
            Whether there will be a device to ask for its free memory.

        Raises
        ------
        CommandError, BudgetError
            If more than one was given, or one that cannot be used.
        """
        if len(self.given) > 1:
            raise CommandError(f"{' and '.join(self.given)} each choose the budget; give one of them")
        if self.fraction is not None and not (math.isfinite(self.fraction) and self.fraction > 0):
            raise CommandError(f"--fraction {self.fraction} is no share; write a number above 0, for example 0.4")
        if self.overhead is not None:
            parse_overhead(self.overhead)
        if self.budget is not None:
            parse_bytes(self.budget, 0)
        if self.of_device and not device:
            raise CommandError(
                f"--budget {self.budget} is a share of a device's free memory, but a chain file knows no device; "
                "write bytes (--budget 300MB), or --fraction 0.8 for a share of plain training's peak"
            )

    def resolve(self, frontier: Frontier, available: int | None = None) -> int:
        """Return the budget in bytes.

        Parameters
        ----------
        frontier
            The solved chain.
        available
            Bytes that the device has free.
        """
        if self.overhead is not None:
            return frontier.budget_for(self.overhead)
        if self.fraction is not None:
            return int(self.fraction * frontier.plain)
        assert self.budget is not None
        return parse_bytes(self.budget, available)
