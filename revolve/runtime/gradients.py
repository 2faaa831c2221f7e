"""How the gradients lie in memory that a call's backward gives for its inputs: views of one storage, or their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from revolve.storage.boundary import tensors_of

__all__ = ["GradientLayout"]


class Spot(NamedTuple):
    """Where one gradient lies.

    Attributes
    ----------
    number
        Of its storage.
    dtype, offset, shape, stride
        Of the view.
    """

    number: int
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]


class GradientLayout:
    """The gradients of some inputs, without their values.

    What a backward returns for its inputs may lie in one storage, as behind ``torch.cat``: it lives as long as any of
    them, and none can be added to in place.

    Parameters
    ----------
    gradients
        The gradients; None for an input that has none.
    """

    def __init__(self, gradients: Sequence[torch.Tensor | None]) -> None:
        self.storages: dict[int, tuple[int, int, torch.device]] = {}  # number, bytes and device by identity
        self.spots = [gradient if gradient is None else self.place(gradient) for gradient in gradients]

    @classmethod
    def probe(cls, output: Any, inputs: Sequence[torch.Tensor]) -> GradientLayout:
        """Find the gradients of a call's inputs by running its backward, for those inputs alone."""
        outputs = [tensor for tensor in tensors_of(output) if tensor.grad_fn is not None]
        if not outputs or not inputs:
            return cls([None] * len(inputs))
        seeds = [torch.zeros_like(tensor) for tensor in outputs]
        return cls(torch.autograd.grad(outputs, inputs, seeds, retain_graph=True, allow_unused=True))

    def place(self, gradient: torch.Tensor) -> Spot:
        """Note where a gradient lies."""
        if gradient.layout is not torch.strided:
            gradient = torch.empty(gradient.shape, dtype=gradient.dtype, device=gradient.device)
        storage = gradient.untyped_storage()
        number, _, _ = self.storages.setdefault(storage._cdata, (len(self.storages), storage.nbytes(), gradient.device))
        return Spot(number, gradient.dtype, int(gradient.storage_offset()), gradient.shape, gradient.stride())

    def make(self) -> list[torch.Tensor | None]:
        """Return zeros that lie as the gradients did."""
        storages = [
            (torch.zeros(size, dtype=torch.uint8, device=device).untyped_storage(), device)
            for _, size, device in self.storages.values()
        ]
        return [
            spot
            if spot is None
            else torch.empty(0, dtype=spot.dtype, device=storages[spot.number][1]).set_(
                storages[spot.number][0], spot.offset, spot.shape, spot.stride
            )
            for spot in self.spots
        ]
