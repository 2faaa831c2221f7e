"""What stands between two stages: a tensor, or tuples, lists and dicts of tensors (a pytree)."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["bytes_of", "cut", "storage_keys", "storages_of", "tensors_of", "versions_of"]


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Return the tensors of a boundary, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def cut(value: Any) -> Any:
    """Return the same values outside any graph, each requiring a gradient where the original does."""
    if isinstance(value, torch.Tensor):  # a tree map would leave reference cycles behind
        return value.detach().requires_grad_(value.requires_grad)
    return tree_map_only(torch.Tensor, lambda t: t.detach().requires_grad_(t.requires_grad), value)


def storages_of(tensor: torch.Tensor) -> list[torch.UntypedStorage]:
    """Return the storages of a tensor: one, or those of a sparse tensor's indices and values."""
    parts = [tensor._indices(), tensor._values()] if tensor.is_sparse else [tensor]
    return [part.untyped_storage() for part in parts]


def storage_keys(value: Any) -> set[int]:
    """Return the identities of the storages of a boundary; valid while they live."""
    return {storage._cdata for tensor in tensors_of(value) for storage in storages_of(tensor)}


def bytes_of(value: Any) -> int:
    """Return the bytes of a boundary, each storage once."""
    return sum({s._cdata: s.nbytes() for tensor in tensors_of(value) for s in storages_of(tensor)}.values())


def versions_of(value: Any) -> tuple[int, ...]:
    """Return the version counters of a boundary; in-place changes raise them."""
    return tuple(0 if t.is_inference() else t._version for t in tensors_of(value))
