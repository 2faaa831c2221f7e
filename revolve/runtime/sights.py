"""What the modules of a stage are at one moment, in a form that is quickly compared with what they are later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .attributes import Spots
from .tables import Contents

__all__ = ["Sight"]

SCALARS = frozenset((int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size))


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
    simple
        Whether the attributes surely hold no tensors, so that it does not matter how long they live.
    """

    __slots__ = (
        "contents",
        "count",
        "entries",
        "leaves",
        "modules",
        "simple",
        "spots",
        "tables",
        "trainable",
        "training",
        "values",
    )

    def __init__(self, modules: Sequence[nn.Module], contents: Contents, spots: Spots, values: list[Any]) -> None:
        self.contents = contents
        self.spots = spots
        self.simple = all(map(is_simple, values))
        self.values = values if self.simple else []  # others must not outlive their step
        self.training = [module.training for module in modules]
        self.trainable = contents.trainable()
        self.modules = list(zip(modules, self.training, strict=True))
        self.leaves = list(zip(contents.tracked, self.trainable, strict=True))
        self.tables = [*spots.tables, *contents.tables]
        self.count = sum(map(len, self.tables))
        copies = zip(contents.tables, contents.copies, strict=True)
        self.entries = [(table, *item) for table, copy in copies for item in copy.items()]
        self.entries += [(*entry, value) for entry, value in zip(spots.entries, self.values, strict=False)]

    def holds(self) -> bool:
        """Whether all of it is still so; in-place changes apart."""
        if sum(map(len, self.tables)) != self.count:
            return False
        try:
            for table, key, value in self.entries:
                if table[key] is not value:
                    return False
        except KeyError:
            return False
        for module, training in self.modules:
            if module.training is not training:
                return False
        for tensor, trainable in self.leaves:  # noqa: SIM110 - a call more costs as much as all of this
            if tensor.requires_grad is not trainable:
                return False
        return True


def is_simple(value: Any) -> bool:
    """Whether a value surely holds no tensors."""
    kind = type(value)
    return kind in SCALARS or (kind is tuple and SCALARS.issuperset(map(type, value)))
