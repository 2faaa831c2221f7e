"""The host: CUDA tensors in pinned memory of the host, moved on a stream of their own beside the computation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from .exceptions import CodecError
from .forms import SMALLEST

__all__ = ["HostCodec"]


@cache
def stream_of(device: torch.device) -> torch.cuda.Stream:
    """Return the stream for the transfers of a device."""
    return torch.cuda.Stream(device)


class HostForm:
    """A copy in pinned memory; the stream that writes it also reads it, and so keeps the order.

    Pinned memory that is released while a transfer still uses it is not given out again by torch before that ends.
    """

    __slots__ = ("device", "pinned", "stream")

    def __init__(self, flat: torch.Tensor) -> None:
        self.device = flat.device
        self.pinned = torch.empty(len(flat), dtype=flat.dtype, device="cpu", pin_memory=True)
        self.stream = stream_of(flat.device)
        self.stream.wait_stream(torch.cuda.current_stream(flat.device))  # whoever computes the elements comes first
        with torch.cuda.stream(self.stream):
            self.pinned.copy_(flat, non_blocking=True)
        flat.record_stream(self.stream)  # its memory is not used again before it is copied

    @property
    def nbytes(self) -> int:
        """Nothing on the device."""
        return 0

    def decode(self) -> torch.Tensor:
        """Return the elements on the device; the current stream waits for them, the host does not."""
        flat = torch.empty(len(self.pinned), dtype=self.pinned.dtype, device=self.device)
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)  # whoever used this memory before comes first
        with torch.cuda.stream(self.stream):
            flat.copy_(self.pinned, non_blocking=True)
        current.wait_stream(self.stream)  # and so does whoever uses it next
        return flat


class HostCodec:
    """Pinned memory of the host, for tensors on a CUDA device."""

    name = "host"
    lossless = True
    varies = False
    waits = True

    def encode(self, flat: torch.Tensor, allow: Callable[[int], None]) -> HostForm | None:
        """Return the copy of a storage, None for a small one.

        Raises
        ------
        CodecError
            If it is not on a CUDA device.
        """
        if not flat.is_cuda:
            raise CodecError(
                f"the format 'host' moves CUDA tensors to the host's memory, but this one is on {flat.device}; "
                f"use 'disk', or a format that makes it smaller"
            )
        if flat.nbytes < SMALLEST:
            return None
        allow(0)
        return HostForm(flat)
