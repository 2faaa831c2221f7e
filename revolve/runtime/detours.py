"""What a surveyed step has in place of the graphs and the saved tensors of its stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

__all__ = ["Detour", "Lost", "is_dense"]


class Reversible(Protocol):
    """Gives the gradients of a call that did not keep anything."""

    def reverse(self, gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Return zeros for the inputs."""


class Lost:
    """A tensor that a stage saves and does not keep; zeros for tensors that leave the stage beside its output."""

    __slots__ = ("__weakref__", "device", "dtype", "kept", "nbytes", "shape")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device
        self.nbytes = tensor.numel() * tensor.element_size()
        self.kept: torch.Tensor | None = None

    def zeros(self) -> torch.Tensor:
        """Return zeros in its place, or the tensor where it is kept after all."""
        if self.kept is not None:
            return self.kept
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)


def is_dense(gradient: torch.Tensor) -> bool:
    """Whether a gradient lies in memory without gaps and overlaps."""
    return torch.empty_like(gradient, device="meta").stride() == gradient.stride()


class Detour(torch.autograd.Function):
    """A node of the graph in place of a call's own."""

    @staticmethod
    def forward(
        ctx: Any, turn: Reversible | None, outputs: list[torch.Tensor], token: torch.Tensor, *inputs: torch.Tensor
    ) -> Any:
        """Return the outputs."""
        ctx.turn = turn
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        """Return zeros, allocated as the call's own gradients are."""
        return None, None, None, *(ctx.turn.reverse(gradients) if ctx.turn else ())
