"""What a plan does to each stage, in words and numbers."""

from __future__ import annotations

from dataclasses import dataclass

from revolve.schedules import Forward, Plan, Rebuild, Save, Store

__all__ = ["Treatment", "describe_stages"]


@dataclass(frozen=True, slots=True)
class Treatment:
    """How one stage fares in a plan.

    Attributes
    ----------
    runs
        How often its forward runs, early-stopped runs included; 1 in plain training.
    stored
        Formats its input is stored in, one entry a store.
    extra_time
        Seconds its forward runs take beyond the first one.
    """

    runs: int
    stored: tuple[str, ...]
    extra_time: float

    @property
    def words(self) -> str:
        """Return ``"saved"`` or ``"recomputed n times"``."""
        if self.runs <= 1:
            return "saved"
        return "recomputed once" if self.runs == 2 else f"recomputed {self.runs - 1} times"

    @property
    def input_words(self) -> str:
        """Return how the stage's input is stored, or nothing where it is not."""
        if not self.stored:
            return ""
        formats = ", ".join(name for name in dict.fromkeys(self.stored) if name != "dense")
        times = "" if len(self.stored) == 1 else f" {len(self.stored)} times"
        return f"stored{times}" + (f" ({formats})" if formats else "")


def describe_stages(plan: Plan) -> list[Treatment]:
    """Return the treatment of each stage, in order.

    Parameters
    ----------
    plan
        The plan; its own simulation tells the times.
    """
    length = len(plan.chain)
    runs = [0] * length
    extra = [0.0] * length
    stored: list[list[str]] = [[] for _ in range(length)]
    for entry in plan.simulation.timeline:
        action = entry.action
        if isinstance(action, (Forward, Save, Rebuild)):
            if runs[action.index]:
                extra[action.index] += entry.end - entry.start
            runs[action.index] += 1
        elif isinstance(action, Store):
            stored[action.index].append(action.format)
    return [Treatment(*values) for values in zip(runs, map(tuple, stored), extra, strict=True)]
