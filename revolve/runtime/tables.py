"""The parameters and buffers of some modules, by the tables that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.parameter import is_lazy

__all__ = ["NOWHERE", "Contents", "Place", "Table", "fill"]

Table = dict[str, Any]
Place = tuple[int, str]  # number of a table, and key in it
NOWHERE: frozenset[Place] = frozenset()


class Contents:
    """What some tables hold at one moment, to be compared with what they hold later.

    Parameters
    ----------
    tables
        Tables of tensors by name.

    Attributes
    ----------
    copies
        Copies of the tables.
    tensors
        The tensors in them.
    tracked
        Those that have a version counter; inference tensors have none.
    """

    __slots__ = ("copies", "identities", "others", "tables", "tensors", "tracked")

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = tables
        self.copies = [table.copy() for table in tables]
        self.identities = [id(entry) for table in tables for entry in table.values()]
        self.tensors = [entry for table in tables for entry in table.values() if entry is not None]
        self.tracked = [tensor for tensor in self.tensors if not is_lazy(tensor) and not tensor.is_inference()]
        self.others: dict[frozenset[Place], list[torch.Tensor]] = {NOWHERE: self.tracked}

    def intact(self) -> bool:
        """Whether the tables still hold the very tensors."""
        return [id(entry) for table in self.tables for entry in table.values()] == self.identities

    def trainable(self) -> list[bool]:
        """Return which of the tensors require a gradient now."""
        return [tensor.requires_grad for tensor in self.tracked]

    def steady(self, changing: frozenset[Place]) -> list[torch.Tensor]:
        """Return the tracked tensors but for those in some places."""
        if changing not in self.others:
            moving = {id(tensor) for place, tensor in self.items() if place in changing}
            self.others[changing] = [tensor for tensor in self.tracked if id(tensor) not in moving]
        return self.others[changing]

    def touched(self, tensors: Sequence[torch.Tensor], versions: Sequence[int]) -> frozenset[Place]:
        """Return the places of those tensors that have been changed in place since they had these versions."""
        changed = {id(t) for t, version in zip(tensors, versions, strict=True) if t._version != version}
        return frozenset(place for place, tensor in self.items() if id(tensor) in changed) if changed else NOWHERE

    def replaced(self) -> frozenset[Place]:
        """Return the places that hold another tensor now, or did not exist."""
        return frozenset(
            (number, key)
            for number, (table, copy) in enumerate(zip(self.tables, self.copies, strict=True))
            for key in table.keys() | copy.keys()
            if key not in table or key not in copy or table[key] is not copy[key]
        )

    def places(self) -> list[Place]:
        """Return every place of a tensor."""
        return [place for place, _ in self.items()]

    def tensor_at(self, place: Place) -> torch.Tensor | None:
        """Return the tensor at a place, None if there was none."""
        return self.copies[place[0]].get(place[1]) if place[0] < len(self.copies) else None

    def items(self) -> list[tuple[Place, torch.Tensor]]:
        """Return every place and its tensor."""
        return [
            ((number, key), tensor)
            for number, copy in enumerate(self.copies)
            for key, tensor in copy.items()
            if tensor is not None
        ]

    def put_back(self) -> list[Table]:
        """Fill the tables with what they held then; return what they held until now."""
        present = [table.copy() for table in self.tables]
        fill(self.tables, self.copies)
        return present


def fill(tables: Sequence[Table], contents: Sequence[Table]) -> None:
    """Set the contents of tables."""
    for table, content in zip(tables, contents, strict=True):
        table.clear()
        table.update(content)
