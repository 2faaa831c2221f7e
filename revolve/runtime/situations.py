"""What a plan depends on besides the model: shapes and modes of a call."""

from __future__ import annotations

import reprlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from revolve.storage.boundary import tensors_of

from .generators import devices_of
from .modes import Modes
from .stages import StageModule

__all__ = ["Situation", "describe_input"]


@dataclass(frozen=True, slots=True)
class Situation:
    """What one call of a model looks like.

    Attributes
    ----------
    shapes
        Of the input's tensors.
    kind
        All the rest: dtypes, devices, who requires a gradient, training flags, modes.
    """

    shapes: tuple[torch.Size, ...]
    kind: Hashable

    @classmethod
    def current(cls, stages: Sequence[StageModule], input: Any) -> Situation:
        """Look at a call of some stages."""
        tensors = tensors_of(input)
        tables = [module._parameters for stage in stages for module in stage.modules]
        own = [t for stage in stages for t in stage.loose]
        own += [t for table in tables for t in table.values() if t is not None]  # buffers may come with the first call
        kind = (
            tuple([(t.dtype, t.device, t.requires_grad) for t in tensors]),
            tuple([module.training for stage in stages for module in stage.modules]),
            tuple([(t.dtype, t.requires_grad) for t in own]),
            Modes.current(devices_of([*tensors, *own])),
        )
        return cls(tuple([t.shape for t in tensors]), kind)

    def covers(self, other: Situation) -> bool:
        """Whether the other call is the same but for inputs that are no larger in any dimension."""
        return self.kind == other.kind and all(
            len(large) == len(small) and all(a >= b for a, b in zip(large, small, strict=True))
            for large, small in zip(self.shapes, other.shapes, strict=True)
        )


def describe_input(value: Any) -> str:
    """Write an input for an error message: its tensors, or all of it where it has none."""
    parts = [describe_array(tensor) for tensor in tensors_of(value)]
    return ", ".join(parts) or describe_values(value)


def describe_array(array: Any) -> str:
    """Write type and shape of a tensor or array."""
    return f"{str(array.dtype).removeprefix('torch.')}{list(array.shape)}"


def describe_values(value: Any) -> str:
    """Write an input without tensors, or the arguments of a call."""
    match value:
        case (tuple() as args, dict() as kwargs):
            named = [describe_values(kwargs)] if kwargs else []
            return ", ".join([*map(describe_values, args), *named]) or "no arguments"
        case dict() if value:
            return ", ".join(f"{name}={describe_values(entry)}" for name, entry in value.items())
        case [first, *rest]:
            return f"{type(value).__name__} of {describe_values(first)}{', ...' if rest else ''}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} {describe_array(value)}"
    return reprlib.repr(value)
