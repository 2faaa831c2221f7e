"""The bitmap format's loops on a CPU, by Numba kernels in the calling thread; the tensor is one chunk.

More threads were tried: on two cores they gained nothing in most runs, and waited milliseconds for a core as long as
torch's OpenMP threads were spinning on it, which these do after every operation of a training step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .kernels import bitmap as kernels

__all__ = ["checksum", "count_bits", "count_values", "pack", "unpack"]


def used_words(bitmap: torch.Tensor, length: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Return the words of a bitmap that hold bits of so many elements."""
    return bitmap.numpy().view(np.uint64)[: (length + 63) // 64]


def count_values(elements: torch.Tensor) -> list[int]:
    """Return how many elements are not zero."""
    return [int(kernels.count_values(elements.numpy()))]


def count_bits(bitmap: torch.Tensor, length: int) -> list[int]:
    """Return how many bits are one, of a bitmap for so many elements."""
    return [int(kernels.count_bits(used_words(bitmap, length)))]


def pack(elements: torch.Tensor, counts: Sequence[int], bitmap: torch.Tensor, values: torch.Tensor) -> None:
    """Write the bitmap and the values."""
    kernels.pack(elements.numpy(), used_words(bitmap, len(elements)), values.numpy())


def unpack(bitmap: torch.Tensor, counts: Sequence[int], values: torch.Tensor, elements: torch.Tensor) -> None:
    """Write the elements."""
    kernels.unpack(used_words(bitmap, len(elements)), values.numpy(), elements.numpy())


def checksum(buffer: torch.Tensor) -> int:
    """Return the sum of (2 k + 1) times the k-th 32-bit word of a buffer modulo 2**64."""
    return int(kernels.sum_weighted(buffer.numpy().view(np.uint32)))
