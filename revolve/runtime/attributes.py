"""Plain attributes of modules that a forward changes: counters, moving means outside of buffers, losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from revolve.storage.boundary import cut, tensors_of, version_of

from .replay import questions
from .tables import NOWHERE, Place, Table

__all__ = ["Attributes"]

MISSING = object()


class Change(NamedTuple):
    """An attribute that a stage changes, and how to make its old value."""

    table: Table
    key: str
    old: Callable[[], Any]


class Attributes:
    """The attributes of some modules before a run of a stage; entered, they are so again.

    Parameters
    ----------
    tables
        The modules' dictionaries.
    first
        Number of the first table in a place.
    changing
        Places of the attributes that the stage is known to change; None before the first run of all.

    Attributes
    ----------
    changes
        What the stage has changed, once it has run.
    """

    __slots__ = ("asked", "changes", "changing", "clones", "copies", "first", "present", "tables")

    def __init__(self, tables: Sequence[Table], first: int, changing: frozenset[Place] | None) -> None:
        self.tables = tables
        self.first = first
        self.asked = questions()
        self.changing = changing
        self.copies = [table.copy() for table in tables]
        self.clones = {
            (number, key): (value, version_of(value), value.detach().clone())
            for number, copy in enumerate(self.copies, first)
            for key, value in copy.items()
            if isinstance(value, torch.Tensor) and (changing is None or (number, key) in changing)
        }
        self.changes: list[Change] = []
        self.present: list[tuple[Table, str, Any]] = []

    def finish(self) -> frozenset[Place]:
        """Compare with what the attributes are after the run, and return the places of those that changed.

        A stage that asks whether it runs again looks after them itself: none.
        """
        if questions() != self.asked:
            return NOWHERE
        clones = {place: clone for place, (value, was, clone) in self.clones.items() if version_of(value) != was}
        places = set(clones)
        for number, (table, copy) in enumerate(zip(self.tables, self.copies, strict=True), self.first):
            for key in table.keys() | copy.keys():
                old = copy.get(key, MISSING)
                if table.get(key, MISSING) is not old and (number, key) not in clones:
                    places.add((number, key))
                    self.changes.append(Change(table, key, keeping(old)))
        for (number, key), clone in clones.items():
            self.changes.append(Change(self.tables[number - self.first], key, clone.clone))
        self.copies, self.clones = [], {}
        return frozenset(places)

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors that are kept."""
        return [tensor for change in self.changes for tensor in tensors_of(change.old())]

    def __enter__(self) -> None:
        self.present = [(change.table, change.key, change.table.get(change.key, MISSING)) for change in self.changes]
        for change in self.changes:
            put(change.table, change.key, change.old())

    def __exit__(self, *_: object) -> None:
        for entry in self.present:
            put(*entry)
        self.present = []


def keeping(value: Any) -> Callable[[], Any]:
    """Return a function that returns a value, whose tensors are cut from the graphs of earlier steps."""
    kept = cut(value) if any(tensor.grad_fn is not None for tensor in tensors_of(value)) else value
    return lambda: kept


def put(table: Table, key: str, value: Any) -> None:
    """Set an entry, or remove it."""
    if value is MISSING:
        table.pop(key, None)
    else:
        table[key] = value
