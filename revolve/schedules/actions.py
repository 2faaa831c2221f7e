"""The schedule language: eight small actions, comparable, hashable, and lists in JSON.

``x_i`` is the input of stage i, the *cursor* is the activation that the next stage would run from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from .exceptions import ScheduleError

__all__ = [
    "Action",
    "Backward",
    "Drop",
    "Forward",
    "Load",
    "Loss",
    "Rebuild",
    "Save",
    "Store",
    "read_actions",
]


@dataclass(frozen=True, slots=True)
class Action:
    """One step of a schedule; use its subclasses."""

    kind: ClassVar[str] = ""

    def to_json(self) -> list[Any]:
        """Return the action as a JSON list, for example ``["forward", 3]``."""
        return [self.kind]

    @staticmethod
    def from_json(entry: Any, position: int | None = None) -> Action:
        """Read one action from its JSON list.

        Raises
        ------
        ScheduleError
            If the entry is no action; ``position`` is repeated in the message.
        """
        if isinstance(entry, Action):
            return entry
        where = "" if position is None else f" at position {position}"
        if isinstance(entry, (list, tuple)) and entry and isinstance(entry[0], str) and entry[0] in KINDS:
            kind, arguments = KINDS[entry[0]], list(entry[1:])
            wanted = (int, str)[: len(fields(kind))]
            if len(wanted) == 2 and len(arguments) == 1:
                arguments.append("dense")
            fits = len(arguments) == len(wanted) and all(
                isinstance(value, type_) and not isinstance(value, bool)
                for value, type_ in zip(arguments, wanted, strict=True)
            )
            if fits:
                return kind(*arguments)
        raise ScheduleError(
            f"{entry!r}{where} is no action; write a list such as ['forward', 3], ['store', 3, 'dense'] or ['loss']",
            entry,
            position,
        )


@dataclass(frozen=True, slots=True)
class Indexed(Action):
    """An action on one stage or one activation.

    Attributes
    ----------
    index
        The stage (forward, save, rebuild, backward) or activation (store, load, drop) it works on.
    """

    index: int

    def to_json(self) -> list[Any]:
        """Return ``[kind, index]``."""
        return [self.kind, self.index]


@dataclass(frozen=True, slots=True)
class Store(Indexed):
    """Keep the cursor ``x_index`` in storage, in the named format."""

    format: str = "dense"
    kind: ClassVar[str] = "store"

    def to_json(self) -> list[Any]:
        """Return ``["store", index, format]``."""
        return [self.kind, self.index, self.format]


@dataclass(frozen=True, slots=True)
class Load(Indexed):
    """Make ``x_index`` the cursor, from storage; ``x_0`` is always available."""

    kind: ClassVar[str] = "load"


@dataclass(frozen=True, slots=True)
class Drop(Indexed):
    """Free the stored ``x_index``."""

    kind: ClassVar[str] = "drop"


@dataclass(frozen=True, slots=True)
class Forward(Indexed):
    """Run stage ``index`` without saving; the cursor moves to ``x_{index+1}``."""

    kind: ClassVar[str] = "forward"


@dataclass(frozen=True, slots=True)
class Save(Indexed):
    """Run stage ``index`` and keep its saved tensors in the named format; the cursor moves to ``x_{index+1}``."""

    format: str = "dense"
    kind: ClassVar[str] = "save"

    def to_json(self) -> list[Any]:
        """Return ``["save", index]``, or ``["save", index, format]`` where it is not dense."""
        return [self.kind, self.index] if self.format == "dense" else [self.kind, self.index, self.format]


@dataclass(frozen=True, slots=True)
class Rebuild(Indexed):
    """Run stage ``index`` only to rebuild its saved tensors; leaves no cursor."""

    kind: ClassVar[str] = "rebuild"


@dataclass(frozen=True, slots=True)
class Loss(Action):
    """Turn around: needs the cursor ``x_L``, leaves none."""

    kind: ClassVar[str] = "loss"


@dataclass(frozen=True, slots=True)
class Backward(Indexed):
    """Consume the saved tensors of stage ``index``; clears the cursor first."""

    kind: ClassVar[str] = "backward"


KINDS: dict[str, type[Action]] = {
    kind.kind: kind for kind in (Store, Load, Drop, Forward, Save, Rebuild, Loss, Backward)
}


def read_actions(actions: Iterable[Any]) -> Iterator[Action]:
    """Yield actions from action objects or their JSON lists, in order."""
    for position, entry in enumerate(actions):
        yield entry if isinstance(entry, Action) else Action.from_json(entry, position)
