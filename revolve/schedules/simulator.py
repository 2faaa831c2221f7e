"""The judge: interprets a schedule on a chain and accounts for every byte and nanosecond.

Nobody else computes a peak or a makespan. Bytes held at any time, each storage once:

- ``x_j`` for 0 < j < L while it is the cursor, stored dense, or retained by a saved stage (``x_j`` by stage
  j with ``saves_input``, by stage j-1 with ``saves_output``); ``x_L`` from when it is produced to the end;
  ``x_0`` is the caller's; what a stage passes on is part of both its input and its output, and counts once
  while it runs forward;
- ``stored_bytes`` of ``x_j``'s form in each format in which it is stored, or retained by a stage saved in
  that format where ``Chain.encoded`` says so, then instead of the dense one. A form is made, which takes
  ``store_time``, when it gets its first holder; all its holders share it;
- ``saved_bytes`` of saved stages, those of the format a stage is saved in;
- after the loss, the gradient at the front of the backward sweep and ``grad_bytes`` of every stage reversed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from .actions import Action, Backward, Drop, Forward, Load, Loss, Rebuild, Save, Store, read_actions
from .chain import Chain, nanoseconds
from .exceptions import ScheduleError

__all__ = ["Simulation", "TimelineEntry", "simulate"]


class TimelineEntry(NamedTuple):
    """One action of a simulation.

    Attributes
    ----------
    action
        What was done.
    start, end
        Seconds since the step began.
    peak
        Largest number of bytes in use during the action.
    held
        Bytes in use after it.
    """

    action: Action
    start: float
    end: float
    peak: int
    held: int


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a schedule costs.

    Attributes
    ----------
    peak
        Largest number of bytes in use during any action.
    makespan
        Seconds of the whole step.
    timeline
        One entry an action.
    """

    peak: int
    makespan: float
    timeline: tuple[TimelineEntry, ...]


def simulate(chain: Chain, actions: Iterable[Any]) -> Simulation:
    """Run a schedule on a chain, in the accounting of the cost model.

    Parameters
    ----------
    chain
        The chain of stages.
    actions
        Actions, or their JSON lists, in order.

    Returns
    -------
    Simulation
        Peak in bytes, makespan in seconds, and the timeline.

    Raises
    ------
    ScheduleError
        If an action's precondition fails (it names the action and its position) or stages are left.

    Examples
    --------
    >>> simulate(Chain.uniform(1), [["save", 0], ["loss"], ["backward", 0]]).makespan
    2.0
    """
    state = State(chain)
    timeline: list[TimelineEntry] = []
    clock = 0
    for position, action in enumerate(read_actions(actions)):
        state.position = position
        time, peak = state.perform(action)
        timeline.append(TimelineEntry(action, clock / 1e9, (clock + time) / 1e9, peak, state.held))
        clock += time
    if not state.turned or state.front:
        left = "the loss is missing" if not state.turned else f"stages {state.front - 1}..0 are not reversed"
        raise ScheduleError(f"schedule of {len(timeline)} actions ends too early: {left}")
    return Simulation(max(entry.peak for entry in timeline), clock / 1e9, tuple(timeline))


class State:
    """What a schedule holds between two actions."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.length = len(chain)
        self.position = 0
        self.cursor: int | None = 0
        self.stored: dict[int, str] = {}
        self.saved: dict[int, str] = {}
        self.holders: Counter[tuple[int, str]] = Counter()
        self.held = 0
        self.turned = False
        self.front = self.length

    def perform(self, action: Action) -> tuple[int, int]:
        """Perform one action; return its nanoseconds and its peak in bytes."""
        index = getattr(action, "index", None)
        if index is not None:
            last = self.length if isinstance(action, (Store, Load, Drop)) else self.length - 1
            self.require(0 <= index <= last, action, f"there are stages 0..{self.length - 1}")
        return PERFORM[type(action)](self, action)

    def require(self, fulfilled: bool, action: Action, reason: str) -> None:
        """Raise a ScheduleError that names the action unless ``fulfilled``."""
        if not fulfilled:
            where = f"action {action.to_json()} at position {self.position}"
            raise ScheduleError(f"{where} is not possible: {reason}", action, self.position)

    def size(self, index: int, format_: str) -> int:
        """Return the bytes of an activation in a format, none for what the caller holds anyway."""
        if format_ != "dense":
            return self.chain.formats[format_].stored_bytes[index]
        return self.chain.activation_bytes(index) if index else 0

    def retain(self, index: int, format_: str = "dense") -> int:
        """Add a holder to an activation in a format; return the nanoseconds that making it takes."""
        self.holders[index, format_] += 1
        if self.holders[index, format_] > 1:
            return 0
        if index == self.length:  # the caller keeps the output to the end
            self.holders[index, format_] += 1
        self.held += self.size(index, format_)
        return 0 if format_ == "dense" else nanoseconds(self.chain.formats[format_].store_time[index])

    def release(self, index: int, format_: str = "dense") -> None:
        """Remove a holder from an activation in a format."""
        self.holders[index, format_] -= 1
        if not self.holders[index, format_]:
            self.held -= self.size(index, format_)

    def retained(self, index: int, format_: str) -> list[tuple[int, str]]:
        """Return the activations, each with its format, that stage ``index`` retains when saved in a format."""
        stage = self.chain.stages[index]
        kept = [j for j, saves in ((index, stage.saves_input), (index + 1, stage.saves_output)) if saves]
        return [(j, format_ if self.chain.encoded(format_, j) else "dense") for j in kept]

    def move_cursor(self, index: int | None) -> None:
        """Clear the cursor, or move it to an activation that has a holder already."""
        if self.cursor is not None:
            self.release(self.cursor)
        self.cursor = index

    def store(self, action: Store) -> tuple[int, int]:
        i = action.index
        self.require(self.cursor == i, action, f"the cursor is {describe(self.cursor)}, not x_{i}")
        self.require(0 < i < self.length, action, "x_0 and the output belong to the caller and are never stored")
        self.require(i not in self.stored, action, f"x_{i} is stored already")
        if action.format != "dense":
            known = ", ".join(["dense", *self.chain.formats])
            self.require(action.format in self.chain.formats, action, f"the chain's formats are {known}")
        self.stored[i] = action.format
        time = self.retain(i, action.format)
        return time, self.held

    def load(self, action: Load) -> tuple[int, int]:
        i = action.index
        self.require(i == 0 or i in self.stored, action, f"x_{i} is not stored")
        self.move_cursor(None)
        self.retain(i)
        self.cursor = i
        format_ = self.stored.get(i, "dense")
        time = 0 if format_ == "dense" else nanoseconds(self.chain.formats[format_].load_time[i])
        return time, self.held

    def drop(self, action: Drop) -> tuple[int, int]:
        i = action.index
        self.require(i in self.stored, action, f"x_{i} is not stored")
        peak = self.held
        self.release(i, self.stored.pop(i))
        return 0, peak

    def start(self, action: Forward | Save | Rebuild) -> None:
        """Check what every run of a stage needs."""
        i = action.index
        self.require(self.cursor == i, action, f"the cursor is {describe(self.cursor)}, not x_{i}")
        again = i in self.saved and not isinstance(action, Forward)
        self.require(not again, action, f"stage {i} is saved already")
        self.require(i < self.front, action, f"stage {i} is reversed already")

    def forward(self, action: Forward) -> tuple[int, int]:
        self.start(action)
        stage = self.chain.stages[action.index]
        self.retain(action.index + 1)
        peak = self.held + stage.forward_extra - stage.passed_bytes
        self.move_cursor(action.index + 1)
        return nanoseconds(stage.forward), peak

    def keep(self, index: int, format_: str = "dense") -> int:
        """Hold the saved tensors of a stage; return the nanoseconds that making forms takes."""
        self.saved[index] = format_
        self.held += self.chain.save_mode(format_, index).saved_bytes
        return sum(self.retain(j, kept_in) for j, kept_in in self.retained(index, format_))

    def save(self, action: Save) -> tuple[int, int]:
        i = action.index
        if action.format != "dense":
            modes = ["dense", *(name for name, costs in self.chain.formats.items() if costs.saves)]
            self.require(action.format in modes, action, f"stages can be saved in {', '.join(modes)}")
        self.start(action)
        mode = self.chain.save_mode(action.format, i)
        self.retain(i + 1)
        encoding = nanoseconds(mode.encode_time) + self.keep(i, action.format)
        peak = self.held + mode.save_extra
        self.move_cursor(i + 1)
        return nanoseconds(self.chain.stages[i].forward) + encoding, peak

    def rebuild(self, action: Rebuild) -> tuple[int, int]:
        self.start(action)
        stage = self.chain.stages[action.index]
        self.keep(action.index)
        peak = self.held + stage.rebuild_extra
        self.move_cursor(None)
        return nanoseconds(stage.rebuild), peak

    def loss(self, action: Loss) -> tuple[int, int]:
        reason = "it runs once" if self.turned else f"the cursor is {describe(self.cursor)}, not the output"
        self.require(self.cursor == self.length and not self.turned, action, reason)
        self.held += self.chain.gradient_bytes(self.length)
        peak = self.held + self.chain.loss_extra
        self.move_cursor(None)
        self.turned = True
        return nanoseconds(self.chain.loss_time), peak

    def backward(self, action: Backward) -> tuple[int, int]:
        i = action.index
        self.require(self.turned, action, "the loss has not run")
        self.require(i == self.front - 1, action, f"the next stage to reverse is {self.front - 1}")
        self.require(i in self.saved, action, f"stage {i} is not saved")
        self.move_cursor(None)
        stage, format_ = self.chain.stages[i], self.saved.pop(i)
        mode = self.chain.save_mode(format_, i)
        peak = self.held + mode.backward_extra
        self.held -= mode.saved_bytes
        for j, kept_in in self.retained(i, format_):
            self.release(j, kept_in)
        self.held += stage.grad_bytes + self.chain.gradient_bytes(i) - self.chain.gradient_bytes(i + 1)
        self.front = i
        return nanoseconds(stage.backward) + nanoseconds(mode.decode_time), peak


def describe(cursor: int | None) -> str:
    """Name the cursor for an error message."""
    return "empty" if cursor is None else f"x_{cursor}"


PERFORM: dict[type[Action], Callable[[State, Any], tuple[int, int]]] = {
    Store: State.store,
    Load: State.load,
    Drop: State.drop,
    Forward: State.forward,
    Save: State.save,
    Rebuild: State.rebuild,
    Loss: State.loss,
    Backward: State.backward,
}
