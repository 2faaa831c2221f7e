"""What stands between two stages: a tensor, or tuples, lists, dicts and dataclasses of tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = [
    "ATOMS",
    "bytes_of",
    "cut",
    "map_tensors",
    "storage_keys",
    "storages_by_key",
    "storages_of",
    "tensors_of",
    "version_of",
    "versions_of",
]

STRIDED = torch.strided
ATOMS = frozenset((bool, int, float, str, type(None), torch.dtype, torch.device))
COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def map_tensors(function: Callable[[Any], Any], value: Any, kind: type | tuple[type, ...] = torch.Tensor) -> Any:
    """Return a boundary with every tensor, or leaf of another kind, replaced; other values are kept as they are."""
    if isinstance(value, kind):
        return function(value)
    if type(value) in ATOMS:
        return value
    if type(value) is tuple:  # here and in dicts the leaves are not left to another call: arguments have mostly these
        return tuple([function(c) if isinstance(c, kind) else map_tensors(function, c, kind) for c in value])
    if type(value) is dict:
        items = value.items()
        return {k: function(c) if isinstance(c, kind) else map_tensors(function, c, kind) for k, c in items}
    node = pytree.SUPPORTED_NODES.get(pytree._get_node_type(value))
    if node is not None:  # level by level, since a tree map leaves reference cycles behind that hold the tensors
        children, context = node.flatten_fn(value)
        return node.unflatten_fn([map_tensors(function, child, kind) for child in children], context)
    if is_dataclass(value) and not isinstance(value, type):
        twin = copy.copy(value)
        for field in fields(value):
            if hasattr(value, field.name):
                object.__setattr__(twin, field.name, map_tensors(function, getattr(value, field.name), kind))
        return twin
    return value


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Return the tensors of a boundary, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    kind = type(value)
    if kind in ATOMS:
        return []
    children: Iterable[Any]
    if kind is tuple or kind is list:
        children = value
    elif kind is dict:
        children = value.values()
    elif (node := pytree.SUPPORTED_NODES.get(pytree._get_node_type(value))) is not None:
        children, _ = node.flatten_fn(value)
    elif is_dataclass(value) and not isinstance(value, type):
        children = [getattr(value, field.name) for field in fields(value) if hasattr(value, field.name)]
    else:
        return []
    return [tensor for child in children for tensor in tensors_of(child)]


def cut(value: Any) -> Any:
    """Return the same values outside any graph, each requiring a gradient where the original does."""
    if isinstance(value, torch.Tensor):
        return value.detach().requires_grad_() if value.requires_grad else value.detach()
    return map_tensors(cut, value)


def storages_of(tensor: torch.Tensor) -> list[torch.UntypedStorage]:
    """Return the storages of a tensor: one, or those of a sparse tensor's indices and values, these last."""
    if tensor.layout is STRIDED:
        return [tensor.untyped_storage()]
    if tensor.is_sparse:
        return [part.untyped_storage() for part in (tensor._indices(), tensor._values())]
    return [getattr(tensor.detach(), name)().untyped_storage() for name in COMPRESSED[tensor.layout]]


def storages_by_key(tensors: Iterable[torch.Tensor]) -> dict[int, torch.UntypedStorage]:
    """Return the storages of some tensors by their identity."""
    found: list[torch.UntypedStorage] = []
    for tensor in tensors:
        try:
            found.append(tensor.untyped_storage())
        except NotImplementedError:  # sparse
            found += storages_of(tensor)
    return {storage._cdata: storage for storage in found}


def storage_keys(value: Any) -> set[int]:
    """Return the identities of the storages of a boundary; valid while they live."""
    return {storage._cdata for tensor in tensors_of(value) for storage in storages_of(tensor)}


def bytes_of(value: Any, without: Container[int] = ()) -> int:
    """Return the bytes of a boundary, each storage once, and those of some identities not at all."""
    sizes = {s._cdata: s.nbytes() for tensor in tensors_of(value) for s in storages_of(tensor)}
    return sum(size for key, size in sizes.items() if key not in without)


def version_of(tensor: torch.Tensor) -> int:
    """Return the version counter of a tensor; in-place changes raise it. Inference tensors have none."""
    try:
        return tensor._version
    except RuntimeError:
        if not tensor.is_inference():  # asked last: it takes ten times longer
            raise
        return 0


def versions_of(value: Any) -> tuple[int, ...]:
    """Return the version counters of a boundary."""
    if isinstance(value, torch.Tensor):
        return (version_of(value),)
    return tuple([version_of(tensor) for tensor in tensors_of(value)])
