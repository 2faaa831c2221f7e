"""The judge: interprets a schedule on a chain and accounts for every byte and nanosecond.

Nobody else computes a peak or a makespan. Bytes held at any time, each storage once: ``x_j`` for
0 < j < L while it is the cursor, stored dense, or retained by a saved stage (``x_j`` by stage j with
``saves_input``, by stage j-1 with ``saves_output``); ``x_L`` from when it is produced to the end;
``saved_bytes`` of saved stages; ``stored_bytes`` of non-dense checkpoints; after the loss, the gradient
at the front of the backward sweep and ``grad_bytes`` of every stage reversed. ``x_0`` is the caller's.
"""

from __future__ import annotations

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
        self.saved: set[int] = set()
        self.holders = [0] * (self.length + 1)
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

    def retain(self, index: int) -> int:
        """Add a holder to an activation; return the bytes this newly holds."""
        self.holders[index] += 1
        if index == 0 or self.holders[index] > 1:
            return 0
        if index == self.length:  # the caller keeps the output to the end
            self.holders[index] += 1
        self.held += self.chain.activation_bytes(index)
        return self.chain.activation_bytes(index)

    def release(self, index: int) -> None:
        """Remove a holder from an activation."""
        self.holders[index] -= 1
        if index and not self.holders[index]:
            self.held -= self.chain.activation_bytes(index)

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
        if action.format == "dense":
            self.retain(i)
            time = 0
        else:
            known = ", ".join(["dense", *self.chain.formats])
            self.require(action.format in self.chain.formats, action, f"the chain's formats are {known}")
            costs = self.chain.formats[action.format]
            self.held += costs.stored_bytes[i]
            time = nanoseconds(costs.store_time[i])
        self.stored[i] = action.format
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
        format_ = self.stored.pop(i)
        if format_ == "dense":
            self.release(i)
        else:
            self.held -= self.chain.formats[format_].stored_bytes[i]
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
        peak = self.held + stage.forward_extra
        self.move_cursor(action.index + 1)
        return nanoseconds(stage.forward), peak

    def keep(self, index: int) -> None:
        """Hold the saved tensors of a stage."""
        stage = self.chain.stages[index]
        self.saved.add(index)
        self.held += stage.saved_bytes
        if stage.saves_input:
            self.retain(index)
        if stage.saves_output:
            self.retain(index + 1)

    def save(self, action: Save) -> tuple[int, int]:
        self.start(action)
        stage = self.chain.stages[action.index]
        self.retain(action.index + 1)
        self.keep(action.index)
        peak = self.held + stage.save_extra
        self.move_cursor(action.index + 1)
        return nanoseconds(stage.forward), peak

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
        stage = self.chain.stages[i]
        peak = self.held + stage.backward_extra
        self.saved.remove(i)
        self.held -= stage.saved_bytes
        if stage.saves_input:
            self.release(i)
        if stage.saves_output:
            self.release(i + 1)
        self.held += stage.grad_bytes + self.chain.gradient_bytes(i) - self.chain.gradient_bytes(i + 1)
        self.front = i
        return nanoseconds(stage.backward), peak


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
