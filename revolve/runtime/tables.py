"""The parameters and buffers of some modules, by the tables that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

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

    __slots__ = ("copies", "identities", "tables", "tensors", "tracked")

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = tables
        self.copies = [table.copy() for table in tables]
        self.identities = [id(entry) for table in tables for entry in table.values()]
        self.tensors = [entry for table in tables for entry in table.values() if entry is not None]
        self.tracked = [tensor for tensor in self.tensors if not tensor.is_inference()]

    def intact(self) -> bool:
        """Whether the tables still hold the very tensors."""
        return [id(entry) for table in self.tables for entry in table.values()] == self.identities

    def trainable(self) -> list[bool]:
        """Return which of the tensors require a gradient now."""
        return [tensor.requires_grad for tensor in self.tracked]

    def versions(self) -> list[int]:
        """Return the version counters of now; in-place changes raise them."""
        return [tensor._version for tensor in self.tracked]

    def unchanged(self, versions: Sequence[int]) -> bool:
        """Whether the tables still hold the very tensors, at these versions."""
        return self.versions() == versions and self.intact()

    def touched(self, versions: Sequence[int]) -> frozenset[Place]:
        """Return the places whose tensor has been changed in place since it had these versions."""
        changed = {id(t) for t, version in zip(self.tracked, versions, strict=True) if t._version != version}
        return frozenset(place for place, tensor in self.items() if id(tensor) in changed)

    def replaced(self) -> frozenset[Place]:
        """Return the places that hold another tensor now, or did not exist."""
        return frozenset(
            (number, key)
            for number, (table, copy) in enumerate(zip(self.tables, self.copies, strict=True))
            for key in table.keys() | copy.keys()
            if key not in table or key not in copy or table[key] is not copy[key]
        )

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
