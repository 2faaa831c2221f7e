"""The bitmap format's loops by torch operations: the same bytes on any device, and for elements of 16 bytes.

Elements are integers, those of 16 bytes rows of two. They are taken in chunks, so that temporary memory stays small
whatever the tensor's size; on an accelerator the counts of all chunks cross to the host at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch

__all__ = ["checksum", "count_bits", "count_values", "pack", "unpack"]

CHUNK = 1 << 18  # elements, a multiple of 8


def chunks_of(length: int, chunk: int) -> Iterator[slice]:
    """Yield the parts of a sequence."""
    for start in range(0, length, chunk):
        yield slice(start, min(start + chunk, length))


def mask_of(elements: torch.Tensor) -> torch.Tensor:
    """Return which elements are not zero."""
    return (elements != 0).any(1) if elements.dim() == 2 else elements != 0


def places_of(device: torch.device) -> torch.Tensor:
    """Return the places of the bits of a byte."""
    return torch.arange(8, dtype=torch.uint8, device=device)


def bits_of(part: torch.Tensor) -> torch.Tensor:
    """Return the bits of some bytes of a bitmap, in order, as bools."""
    return (part.unsqueeze(1) >> places_of(part.device) & 1).bool().flatten()


def count_values(elements: torch.Tensor) -> list[int]:
    """Return how many elements of each chunk are not zero."""
    counts = [mask_of(elements[chunk]).sum() for chunk in chunks_of(len(elements), CHUNK)]
    return [int(count) for count in torch.stack(counts).tolist()] if counts else [0]


def count_bits(bitmap: torch.Tensor, length: int) -> list[int]:
    """Return how many bits of each chunk are one, of a bitmap for so many elements."""
    counts = [bits_of(bitmap[chunk]).sum() for chunk in chunks_of((length + 7) // 8, CHUNK // 8)]
    return [int(count) for count in torch.stack(counts).tolist()] if counts else [0]


def pack(elements: torch.Tensor, counts: Sequence[int], bitmap: torch.Tensor, values: torch.Tensor) -> None:
    """Write the bitmap and the values; ``counts`` are those of the chunks."""
    bitmap.zero_()
    places = places_of(elements.device)
    starts = accumulate(counts, initial=0)
    for chunk, start, count in zip(chunks_of(len(elements), CHUNK), starts, counts, strict=False):
        mask = mask_of(elements[chunk])
        values[start : start + count] = elements[chunk][mask]
        mask = torch.nn.functional.pad(mask, (0, -len(mask) % 8)).view(-1, 8)
        first = chunk.start // 8
        bitmap[first : first + len(mask)] = (mask.to(torch.uint8) << places).sum(1, dtype=torch.uint8)


def unpack(bitmap: torch.Tensor, counts: Sequence[int], values: torch.Tensor, elements: torch.Tensor) -> None:
    """Write the elements; ``counts`` are those of the chunks."""
    elements.zero_()
    starts = accumulate(counts, initial=0)
    for chunk, start, count in zip(chunks_of(len(elements), CHUNK), starts, counts, strict=False):
        part = elements[chunk]
        mask = bits_of(bitmap[chunk.start // 8 : (chunk.stop + 7) // 8])[: len(part)]
        part[mask] = values[start : start + count]


def checksum(buffer: torch.Tensor) -> int:
    """Return the sum of (2 k + 1) times the k-th 32-bit word of a buffer modulo 2**64."""
    words = buffer.view(torch.int32)
    total = torch.zeros((), dtype=torch.int64, device=buffer.device)  # wraps around, as the definition wants
    for chunk in chunks_of(len(words), CHUNK):
        weights = torch.arange(2 * chunk.start + 1, 2 * chunk.stop, 2, device=buffer.device)
        total += ((words[chunk].long() & 0xFFFFFFFF) * weights).sum()
    return int(total) % 2**64
