"""The modules, tensors and generators that a plain function uses, as far as they can be seen from outside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any, TypeVar

import torch
from torch import nn

from .generators import KINDS

__all__ = ["reach", "referents"]

LEAVES = (nn.Module, torch.Tensor, *KINDS)
LARGE = 1000  # items of a container that is not looked into: data
Found = TypeVar("Found")


def reach(function: Any, kind: type[Found] | tuple[type[Found], ...]) -> Iterator[Found]:
    """Yield what of some kind a function or container refers to, each once; a module is not looked into.

    Seen are closures, default arguments, bound and partial arguments, attributes of callable objects,
    and the modules, tensors and generators among the global names that the function mentions.
    """
    seen: set[int] = set()
    waiting: list[Any] = [function]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, kind):
            yield value
        elif not isinstance(value, LEAVES):
            waiting.extend(referents(value))


def referents(value: Any) -> Iterable[Any]:
    """Return what a function, a container or a callable object refers to directly."""
    if isinstance(value, FunctionType):
        return [
            *cells_of(value),
            *(value.__defaults__ or ()),
            *(value.__kwdefaults__ or {}).values(),
            *globals_of(value),
        ]
    if isinstance(value, MethodType):
        owner = value.__self__
        return (value.__func__, *([owner] if isinstance(owner, nn.Module) else getattr(owner, "__dict__", {}).values()))
    if isinstance(value, partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return value if len(value) < LARGE else ()
    if isinstance(value, dict):
        return value.values() if len(value) < LARGE else ()
    if callable(value) and not isinstance(value, type):
        slots = [name for kind in type(value).__mro__ for name in slots_of(kind)]
        kept = [getattr(value, name) for name in slots if hasattr(value, name)]
        return [*getattr(value, "__dict__", {}).values(), *kept]
    return ()


def slots_of(kind: type) -> tuple[str, ...]:
    """Return the names of the slots that a class itself adds."""
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if not name.startswith("__"))


def cells_of(function: FunctionType) -> Iterator[Any]:
    """Yield what the closure of a function holds."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue


def globals_of(function: FunctionType) -> Iterator[Any]:
    """Yield modules, tensors, generators, containers and the file's functions among a function's global names."""
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        neighbour = isinstance(value, FunctionType) and value.__globals__ is function.__globals__
        if neighbour or isinstance(value, (*LEAVES, list, tuple, dict)):
            yield value
