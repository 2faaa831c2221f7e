"""The dense format: an activation kept as it is, or as the hooks around the model keep saved tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .boundary import cut, map_tensors, versions_of

__all__ = ["DenseSnapshot", "Enclosing"]


@dataclass(frozen=True, slots=True)
class Enclosing:
    """Saved-tensor hooks of somebody else that are active around the model: torch's checkpoint, save_on_cpu.

    Attributes
    ----------
    pack, unpack
        The hooks.
    """

    pack: Callable[[torch.Tensor], Any]
    unpack: Callable[[Any], torch.Tensor]

    @classmethod
    def current(cls) -> Enclosing | None:
        """Return the innermost active hooks, None if there are none."""
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
        return cls(*hooks) if hooks else None


class Elsewhere:
    """A tensor that enclosing hooks keep."""

    __slots__ = ("packed", "requires_grad", "unpack")

    def __init__(self, tensor: torch.Tensor, enclosing: Enclosing) -> None:
        self.packed = enclosing.pack(tensor.detach())
        self.unpack = enclosing.unpack
        self.requires_grad = tensor.requires_grad

    def get(self) -> torch.Tensor:
        """Return the tensor."""
        tensor = self.unpack(self.packed).detach()
        return tensor.requires_grad_() if self.requires_grad else tensor


class DenseSnapshot:
    """A stored activation: the very storage, so storing and loading cost no time.

    Parameters
    ----------
    value
        The boundary to keep; the snapshot holds no graph.
    enclosing
        The hooks that keep its tensors instead, until the activation is loaded for the first time.
    """

    __slots__ = ("elsewhere", "value", "versions")

    def __init__(self, value: Any, enclosing: Enclosing | None = None) -> None:
        self.elsewhere = enclosing is not None
        if enclosing is None:
            self.value = cut(value)
            self.versions = versions_of(self.value)
        else:
            self.value = map_tensors(lambda tensor: Elsewhere(tensor, enclosing), value)

    def add(self, tensor: torch.Tensor, enclosing: Enclosing | None = None) -> None:
        """Keep one more tensor, behind those of the boundary; by the hooks, if these keep the others."""
        before = self.value if isinstance(self.value, tuple) else (self.value,)
        if self.elsewhere:
            assert enclosing is not None
            self.value = (*before, Elsewhere(tensor, enclosing))
        else:
            self.value = (*before, cut(tensor))
            self.versions = versions_of(self.value)

    def load(self) -> Any:
        """Return the activation as a fresh leaf.

        Raises
        ------
        RuntimeError
            If somebody changed it in place since it was stored.
        """
        if self.elsewhere:
            self.elsewhere = False
            self.value = map_tensors(Elsewhere.get, self.value, Elsewhere)
            self.versions = versions_of(self.value)
        elif versions_of(self.value) != self.versions:
            raise RuntimeError(
                "an activation that backward needs to run stages again has been changed in place since the "
                "forward pass; change a copy of it instead (x.clone(), or inplace=False)"
            )
        return cut(self.value)
