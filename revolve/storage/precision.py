"""Lossy forms: bfloat16, and integers of 8 or 4 bits with a least value and a step for every 256 elements.

bfloat16 (the format ``bf16``) rounds float32 and float64 to the nearest, ties to even, float64 by way of float32:
|x - decoded| <= 2**-8 |x|, plus 2**-134 where x is subnormal. NaN and infinities stay what they are; a finite float32
that would become infinite, as the least one that masks of attention hold, becomes the largest bfloat16, which keeps
the bound. A tensor with a finite value beyond float32 stays dense.

``int8`` and ``int4`` keep low + q step with q in 0 .. 2**bits - 1 and step = (max - low) / (2**bits - 1) of the group:
|x - decoded| <= step / 2 plus rounding, which is a few units in the last place of the group's largest |x|. A group of
equal values comes back exactly, as does each group's least value, so the zeros behind a ReLU. The last group may be
shorter. Low and step are float32, float64 for float64 tensors. A tensor in which something is NaN or infinite, or a
group's range is, stays dense. The idea of Mesa (arXiv:2111.11124), which quantises per group of channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from .forms import SMALLEST

__all__ = ["Bfloat16Codec", "QuantisedCodec"]

GROUP = 256
CHUNK = 1 << 16  # elements at a time, whole groups: bounds temporary memory
ACCELERATED = 32  # as many times more on an accelerator, where every operation has to be launched
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Bfloat16Form:
    """Elements rounded to bfloat16."""

    __slots__ = ("dtype", "rounded")

    def __init__(self, rounded: torch.Tensor, dtype: torch.dtype) -> None:
        self.rounded = rounded
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        """Two bytes an element."""
        return self.rounded.nbytes

    def decode(self) -> torch.Tensor:
        """Return the rounded elements in the original dtype."""
        return self.rounded.to(self.dtype)


def saturate(flat: torch.Tensor, limit: float) -> torch.Tensor:
    """Return the bfloat16 of some elements, none of which becomes infinite that is finite."""
    rounded = torch.empty(len(flat), dtype=torch.bfloat16, device=flat.device)
    for part, target in zip(flat.split(CHUNK), rounded.split(CHUNK), strict=True):
        target.copy_(torch.where(part.isinf(), part, part.clamp(-limit, limit)))
    return rounded


def largest_finite(flat: torch.Tensor) -> float:
    """Return the largest absolute value that is finite, 0 without any."""
    parts = [torch.where(part.isfinite(), part, 0).abs().amax() for part in flat.split(CHUNK)]
    return float(torch.stack(parts).amax())


class Bfloat16Codec:
    """Rounding to bfloat16: half of float32's bytes."""

    name = "bf16"
    lossless = False
    varies = False
    waits = False

    def encode(self, flat: torch.Tensor, allow: Callable[[int], None]) -> Bfloat16Form | None:
        """Return the rounded elements of a float32 or float64 tensor, None for others and where they do not fit."""
        if flat.dtype not in (torch.float32, torch.float64) or flat.nbytes < SMALLEST:
            return None
        limit = torch.finfo(torch.bfloat16).max
        low, high = torch.stack(flat.aminmax()).tolist()
        if -limit <= low and high <= limit:
            allow(2 * len(flat))
            return Bfloat16Form(flat.to(torch.bfloat16), flat.dtype)
        if largest_finite(flat) > torch.finfo(torch.float32).max:
            return None
        allow(2 * len(flat))
        return Bfloat16Form(saturate(flat, limit), flat.dtype)


def chunk_of(flat: torch.Tensor) -> int:
    """Return how many elements are taken at a time."""
    return CHUNK if flat.is_cpu else CHUNK * ACCELERATED


def groups_of(flat: torch.Tensor) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Yield places of groups, places of elements, and these as one row a group; the last part is a shorter group."""
    whole, chunk = len(flat) // GROUP * GROUP, chunk_of(flat)
    for start in range(0, whole, chunk):
        stop = min(start + chunk, whole)
        yield slice(start // GROUP, stop // GROUP), slice(start, stop), flat[start:stop].view(-1, GROUP)
    if whole < len(flat):
        yield slice(whole // GROUP, None), slice(whole, len(flat)), flat[whole:].view(1, -1)


class QuantisedForm:
    """Integers, and the least value and the step of each group.

    Attributes
    ----------
    codes
        One uint8 for each element; with 4 bits for every two, the first in the lower half.
    low, step
        One of each for every group.
    """

    __slots__ = ("bits", "codes", "dtype", "length", "low", "step")

    def __init__(self, flat: torch.Tensor, bits: int, low: torch.Tensor, step: torch.Tensor) -> None:
        self.bits, self.length, self.dtype = bits, len(flat), flat.dtype
        self.low, self.step = low, step
        self.codes = torch.empty((len(flat) * bits + 7) // 8, dtype=torch.uint8, device=flat.device)
        divisor = torch.where(step == 0, 1, step)
        for groups, places, rows in groups_of(flat):
            levels = (rows.to(low.dtype) - low[groups, None]).div_(divisor[groups, None])
            codes = levels.round_().clamp_(0, 2**bits - 1).int().byte().view(-1)  # 3 times faster than at once
            self.codes[self.bytes_of(places)] = codes if bits == 8 else pair(codes)
            del levels, codes  # before the next part's

    def bytes_of(self, places: slice) -> slice:
        """Return where the codes of some elements are; a part begins at a multiple of GROUP."""
        return slice(places.start * self.bits // 8, (places.stop * self.bits + 7) // 8)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, least values and steps."""
        return self.codes.nbytes + self.low.nbytes + self.step.nbytes

    def decode(self) -> torch.Tensor:
        """Return the elements, each within half a step of its group."""
        flat = torch.empty(self.length, dtype=self.dtype, device=self.codes.device)
        limit = torch.finfo(self.low.dtype).max
        for groups, places, rows in groups_of(flat):
            codes = self.codes[self.bytes_of(places)]
            codes = (codes if self.bits == 8 else unpair(codes)[: rows.numel()]).view(rows.shape)
            values = rows.copy_(codes) if self.low.dtype is self.dtype else codes.to(self.low.dtype)
            values.mul_(self.step[groups, None]).add_(self.low[groups, None]).clamp_(-limit, limit)
            if values is not rows:
                rows.copy_(values)
        return flat


def pair(codes: torch.Tensor) -> torch.Tensor:
    """Return two codes of 4 bits in each byte."""
    codes = torch.nn.functional.pad(codes, (0, len(codes) % 2)).view(-1, 2)
    return codes[:, 0] | codes[:, 1] << 4


def unpair(codes: torch.Tensor) -> torch.Tensor:
    """Return the codes of 4 bits, two for each byte."""
    return torch.stack((codes & 15, codes >> 4), 1).view(-1)


class QuantisedCodec:
    """Integers of 8 or 4 bits, with a least value and a step for every 256 elements.

    Parameters
    ----------
    bits
        8 or 4.
    """

    lossless = False
    varies = False
    waits = False

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.name = f"int{bits}"

    def encode(self, flat: torch.Tensor, allow: Callable[[int], None]) -> QuantisedForm | None:
        """Return the quantised elements of a tensor of floats, None for others and where a range is not finite."""
        if flat.dtype not in FLOATS or flat.nbytes < SMALLEST:
            return None
        low, high = self.ranges_of(flat)
        if not bool((high - low).isfinite().all()):
            return None
        step = (high - low) / (2**self.bits - 1)
        allow((len(flat) * self.bits + 7) // 8 + low.nbytes + step.nbytes)
        return QuantisedForm(flat, self.bits, low, step)

    def ranges_of(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the least and the largest value of each group."""
        kept = torch.float64 if flat.dtype is torch.float64 else torch.float32
        pairs = [(rows.amin(1), rows.amax(1)) for _, _, rows in groups_of(flat)]  # 20 times faster than aminmax
        lows, highs = zip(*pairs, strict=True)
        return torch.cat(lows).to(kept), torch.cat(highs).to(kept)
