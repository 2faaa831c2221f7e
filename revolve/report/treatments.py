"""What a plan does to each stage, in words and numbers."""

from __future__ import annotations

from dataclasses import dataclass

from revolve.schedules import Backward, Forward, Plan, Rebuild, Save, Store
from revolve.schedules.actions import Indexed
from revolve.schedules.chain import nanoseconds

__all__ = ["Treatment", "describe_stages"]


@dataclass(frozen=True, slots=True)
class Treatment:
    """How one stage fares in a plan.

    Attributes
    ----------
    runs
        How often its forward runs, early-stopped runs included; 1 in plain training.
    saved
        Format its saved tensors are kept in, for its backward.
    stored
        Formats its input is stored in, one entry a store.
    extra_time
        Seconds beyond its forward and backward in plain training: running it again, and storing, loading,
        encoding and decoding.
    """

    runs: int
    saved: str
    stored: tuple[str, ...]
    extra_time: float

    @property
    def words(self) -> str:
        """Return ``"saved"`` or ``"recomputed n times"``, and the format unless it is dense."""
        words = "saved" if self.runs <= 1 else "recomputed" + count_words(self.runs - 1)
        return words if self.saved == "dense" else f"{words} ({self.saved})"

    @property
    def input_words(self) -> str:
        """Return how the stage's input is stored, or nothing where it is not."""
        if not self.stored:
            return ""
        formats = ", ".join(name for name in dict.fromkeys(self.stored) if name != "dense")
        times = "" if len(self.stored) == 1 else count_words(len(self.stored))
        return f"stored{times}" + (f" ({formats})" if formats else "")


def count_words(times: int) -> str:
    """Return ``" once"`` or ``" n times"``."""
    return " once" if times == 1 else f" {times} times"


def describe_stages(plan: Plan) -> list[Treatment]:
    """Return the treatment of each stage, in order.

    Parameters
    ----------
    plan
        The plan; its own simulation tells the times.
    """
    length = len(plan.chain)
    runs = [0] * length
    extra = [0] * length
    saved = ["dense"] * length
    stored: list[list[str]] = [[] for _ in range(length)]
    for entry in plan.simulation.timeline:
        action = entry.action
        if not isinstance(action, Indexed):
            continue
        stage, plain = plan.chain.stages[action.index], 0.0
        if isinstance(action, (Forward, Save, Rebuild)):
            plain = 0.0 if runs[action.index] else stage.forward
            runs[action.index] += 1
        elif isinstance(action, Backward):
            plain = stage.backward
        elif isinstance(action, Store):
            stored[action.index].append(action.format)
        if isinstance(action, Save):
            saved[action.index] = action.format
        # The first run of a stage may be a rebuild, which is shorter.
        extra[action.index] += max(0, nanoseconds(entry.end - entry.start) - nanoseconds(plain))
    times = (time / 1e9 for time in extra)
    return [Treatment(*values) for values in zip(runs, saved, map(tuple, stored), times, strict=True)]
