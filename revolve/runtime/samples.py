"""How a model is called with a sample, and which arguments a stage can be called with again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any, NamedTuple

import torch
from torch import nn

from revolve.storage.boundary import tensors_of

from .exceptions import MeasurementError
from .stages import is_plain_sequential

__all__ = ["Arguments", "GivenCall", "arguments_of", "check_layouts", "opaque_leaves"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

CONTAINERS = (tuple, list, dict, OrderedDict)
CONSTANT = (
    *(NoneType, bool, int, float, complex, str, bytes, slice, range, type, Enum, FunctionType, BuiltinFunctionType),
    *(torch.Tensor, torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
)
SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


class GivenCall(NamedTuple):
    """A sample that is the positional and the keyword arguments of a call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def arguments_of(model: nn.Module, sample: Any) -> Arguments:
    """Return the positional and keyword arguments that a sample stands for.

    An nn.Sequential takes the sample as it is. Any other model takes a tuple as its positional arguments, a mapping
    as its keyword arguments, and anything else as its only argument.

    Raises
    ------
    MeasurementError
        If it has tensors of a layout whose bytes cannot be counted.
    """
    check_layouts(sample)
    if isinstance(sample, GivenCall):
        return sample.args, sample.kwargs
    if not is_plain_sequential(model):
        if type(sample) is tuple:
            return sample, {}
        if isinstance(sample, Mapping):
            return (), {**sample}
    return (sample,), {}


def check_layouts(sample: Any) -> None:
    """Refuse nested tensors and others whose bytes cannot be counted."""
    for tensor in tensors_of(sample):
        if tensor.is_nested or tensor.layout not in (torch.strided, *SPARSE):
            layout = f"{'nested, ' if tensor.is_nested else ''}{tensor.layout}"
            raise MeasurementError(
                f"the sample has a tensor of layout {layout}, whose bytes cannot be counted; pass dense tensors (for "
                "instance padded ones with a mask), or sparse ones"
            )


def opaque_leaves(value: Any) -> Iterator[Any]:
    """Yield what a call might change unnoticed: all that is no tensor, no constant and no container of them."""
    if type(value) in CONTAINERS or (isinstance(value, tuple) and hasattr(value, "_fields")):
        children = value.values() if isinstance(value, dict) else value
    elif is_dataclass(value) and not isinstance(value, type):
        children = [getattr(value, field.name) for field in fields(value) if hasattr(value, field.name)]
    else:
        children = ()
        if not isinstance(value, CONSTANT):
            yield value
    for child in children:
        yield from opaque_leaves(child)
