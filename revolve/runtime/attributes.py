"""Plain attributes of modules: hyperparameters, counters, moving means outside of buffers, losses left behind."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
from torch import nn

from revolve.storage.boundary import cut, tensors_of, version_of

from .tables import NOWHERE, Place, Table

__all__ = ["Attributes", "Spots"]

MISSING = object()
SIMPLE = frozenset((int, float, bool, str, tuple, type(None)))  # surely no tensors
STANDARD = frozenset(vars(nn.Module()))  # what every module has: hooks, and tables that are looked at elsewhere


class Spots:
    """Where the attributes of some modules are, for as long as none of them is added or removed.

    Parameters
    ----------
    tables
        The modules' dictionaries.
    first
        Number of the first one in places.
    """

    __slots__ = ("count", "entries", "first", "tables")

    def __init__(self, tables: Sequence[Table], first: int) -> None:
        self.tables = tables
        self.first = first
        self.count = sum(map(len, tables))
        self.entries = [(table, key) for table in tables for key in table if key not in STANDARD]

    def read(self) -> list[Any] | None:
        """Return the values of the attributes; None if some were added or removed."""
        if sum(map(len, self.tables)) != self.count:
            return None
        try:
            return [table[key] for table, key in self.entries]
        except KeyError:
            return None

    def places(self) -> list[Place]:
        """Return the places of the attributes."""
        numbers = {id(table): number for number, table in enumerate(self.tables, self.first)}
        return [(numbers[id(table)], key) for table, key in self.entries]


class Attributes:
    """The attributes of some modules before a run of a stage; from :meth:`enter` to :meth:`leave` they are so again.

    Parameters
    ----------
    spots
        Where they are.
    values
        What is there.
    changing
        Places of those that the stage may change in place; None before the first run of all.
    """

    __slots__ = ("clones", "left", "present", "spots", "values", "versions")

    def __init__(self, spots: Spots, values: list[Any], changing: frozenset[Place] | None) -> None:
        self.spots = spots
        self.values = values
        self.left = False  # to the stage, which looks after them itself
        self.present: list[tuple[Table, str, Any]] = []
        self.clones: dict[Place, torch.Tensor] = {}
        self.versions: dict[Place, int] = {}
        if not SIMPLE.issuperset(map(type, values)):
            for place, value in self.before().items():
                if isinstance(value, torch.Tensor):
                    self.versions[place] = version_of(value)
                    if changing is None or place in changing:
                        self.clones[place] = value.detach().clone()

    def before(self) -> dict[Place, Any]:
        """Return what the attributes were."""
        return dict(zip(self.spots.places(), self.values, strict=True))

    def now(self) -> dict[Place, Any]:
        """Return what they are."""
        tables = enumerate(self.spots.tables, self.spots.first)
        return {(n, key): value for n, table in tables for key, value in table.items() if key not in STANDARD}

    def intact(self) -> bool:
        """Whether they are the very objects."""
        values = self.spots.read()
        return values is not None and all(map(is_, values, self.values))

    def changed(self) -> frozenset[Place]:
        """Return the places where another object is than was, or nothing."""
        before, now = self.before(), self.now()
        return frozenset(p for p in before.keys() | now.keys() if before.get(p, MISSING) is not now.get(p, MISSING))

    def touched(self) -> frozenset[Place]:
        """Return the places whose tensor has been changed in place, and its old value is not kept."""
        if not self.versions:
            return NOWHERE
        before = self.before()
        lost = self.versions.keys() - self.clones.keys()
        return frozenset(place for place in lost if version_of(before[place]) != self.versions[place])

    def finish(self, *, left: bool) -> frozenset[Place]:
        """Compare with what they are after the run; return the places of those that the stage may change in place.

        A stage that asks whether it runs again looks after them itself: they are ``left`` to it.
        """
        self.left = left
        if self.left:
            self.values, self.versions, self.clones = [], {}, {}
        if self.left or (not self.versions and self.intact()):
            return NOWHERE
        before, changed, now = self.before(), self.changed(), self.now()
        self.clones = {p: c for p, c in self.clones.items() if version_of(before[p]) != self.versions[p]}
        self.values = [without_graph(value) if p in changed else value for p, value in before.items()]
        return frozenset(self.clones) | {p for p in changed if is_plain_tensor(now.get(p))}

    def kept(self) -> list[torch.Tensor]:
        """Return the tensors that are kept although the stage has others now."""
        if self.left:
            return []
        before = self.before()
        return [*self.clones.values(), *(t for p in self.changed() for t in tensors_of(before.get(p)))]

    def enter(self) -> None:
        """Let them be those of before."""
        if not self.left and (self.clones or not self.intact()):
            before = self.before()
            for place in self.changed() | self.clones.keys():
                table, key = self.spots.tables[place[0] - self.spots.first], place[1]
                self.present.append((table, key, table.get(key, MISSING)))
                put(table, key, self.clones[place].clone() if place in self.clones else before.get(place, MISSING))

    def put_back(self) -> None:
        """Let them be those of before, for good."""
        if not self.left:
            before = self.before()
            for place in self.changed():
                put(self.spots.tables[place[0] - self.spots.first], place[1], before.get(place, MISSING))

    def leave(self) -> None:
        """Let them be those of now."""
        for entry in self.present:
            put(*entry)
        self.present = []


def without_graph(value: Any) -> Any:
    """Return a value whose tensors do not hold the graph of an earlier step."""
    return cut(value) if any(tensor.grad_fn is not None for tensor in tensors_of(value)) else value


def is_plain_tensor(value: Any) -> bool:
    """Whether a value is a tensor outside of any graph."""
    return isinstance(value, torch.Tensor) and value.grad_fn is None


def put(table: Table, key: str, value: Any) -> None:
    """Set an entry, or remove it."""
    if value is MISSING:
        table.pop(key, None)
    else:
        table[key] = value
