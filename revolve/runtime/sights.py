"""What the modules of a stage are at one moment, in a form that is quickly compared with what they are later."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from types import BuiltinFunctionType
from typing import Any

import torch
from torch import nn

from revolve.storage.boundary import ATOMS

from .attributes import Spots
from .generators import sources_of
from .likeness import forwarding
from .tables import Contents

__all__ = ["Sight"]

SCALARS = ATOMS | {torch.Size}
CONTAINERS = (list, tuple, dict, set, frozenset)
FIXED = (type, nn.Module, BuiltinFunctionType)


class Sight:
    """Parameters, buffers, attributes and training flags of some modules; never changed, so that runs can share it.

    Parameters
    ----------
    modules
        The modules.
    contents
        What their tables of parameters and buffers hold now.
    spots, values
        Where their attributes are now, and what.

    Attributes
    ----------
    training, trainable
        The modules' flags, and which of the tensors require a gradient.
    shared
        Whether runs may share it: it keeps nothing alive that may hold tensors of a step. Then of each attribute that
        may, it has a weak reference (``opaque``), and of the others the values.
    sources
        The random number generators among the attributes.
    volatile
        Whether others may come and go in them: in containers and functions.
    """

    __slots__ = (
        "contents",
        "count",
        "entries",
        "leaves",
        "modules",
        "opaque",
        "shared",
        "sources",
        "spots",
        "tables",
        "trainable",
        "training",
        "values",
        "volatile",
    )

    def __init__(self, modules: Sequence[nn.Module], contents: Contents, spots: Spots, values: list[Any]) -> None:
        self.contents = contents
        self.spots = spots
        others = {number: value for number, value in enumerate(values) if not is_simple(value)}
        self.shared = all(map(is_opaque, others.values()))
        self.values = [None if number in others else value for number, value in enumerate(values)]
        self.opaque = [(*spots.entries[n], weakref.ref(value), n) for n, value in others.items()] if self.shared else []
        self.sources = sources_of(others.values())
        self.volatile = any(map(is_volatile, others.values()))
        self.training = [module.training for module in modules]
        self.trainable = contents.trainable()
        self.modules = list(zip(modules, self.training, strict=True))
        self.leaves = list(zip(contents.tracked, self.trainable, strict=True))
        self.tables = [*spots.tables, *contents.tables]
        self.count = sum(map(len, self.tables))
        copies = zip(contents.tables, contents.copies, strict=True)
        self.entries = [(table, *item) for table, copy in copies for item in copy.items()]
        simple = [(*entry, values[number]) for number, entry in enumerate(spots.entries) if number not in others]
        self.entries += simple if self.shared else []

    def holds(self) -> bool:
        """Whether all of it is still so; in-place changes apart, and attributes where it is not shared."""
        return self.intact() and self.flagged()

    def flagged(self) -> bool:
        """Whether modules are still in training mode, and tensors require a gradient, that were."""
        for module, training in self.modules:
            if module.training is not training:
                return False
        for tensor, trainable in self.leaves:  # noqa: SIM110 - a call more costs as much as all of this
            if tensor.requires_grad is not trainable:
                return False
        return True

    def intact(self) -> bool:
        """Whether parameters, buffers and attributes are still the very objects, where it has these."""
        if sum(map(len, self.tables)) != self.count:
            return False
        try:
            for table, key, value in self.entries:
                if table[key] is not value:
                    return False
            for table, key, reference, _ in self.opaque:
                if table[key] is not reference():
                    return False
        except KeyError:
            return False
        return True

    def hold(self) -> list[Any]:
        """Return the attributes that it only has weak references to, for a run to keep."""
        return [reference() for _, _, reference, _ in self.opaque]

    def read(self) -> list[Any]:
        """Return the attributes as they were, where it is shared and somebody holds them; else as they are."""
        if not self.shared:
            return self.spots.read() or []
        values = self.values.copy()
        for _, _, reference, number in self.opaque:
            values[number] = reference()
        return values


def is_simple(value: Any) -> bool:
    """Whether a value surely holds no tensors; an empty list may be filled with some."""
    kind = type(value)
    if kind is tuple or (kind is list and value):
        return SCALARS.issuperset(map(type, value))
    return kind in SCALARS


def is_volatile(value: Any) -> bool:
    """Whether a value that is not simple may hold other generators later."""
    if isinstance(value, CONTAINERS):
        return True
    return callable(value) and not isinstance(value, FIXED) and forwarding(value) is None


def is_opaque(value: Any) -> bool:
    """Whether a value can be referred to weakly, and is no tensor, whose version would matter."""
    return type(value).__weakrefoffset__ != 0 and not isinstance(value, torch.Tensor)
