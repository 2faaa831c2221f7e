"""The bitmap format: one bit an element, and the elements whose bits are not all zero. Lossless, self-describing.

A buffer is a one-dimensional uint8 tensor on the tensor's device, everything in it little-endian. Its parts follow
each other, each padded with zero bytes to a multiple of 16:

    header    0   4 bytes   magic: "RVBM"
              4   uint8     version: 1
              5   uint8     0: dense, 1: bitmap
              6   uint8     dtype, a row of ``DTYPES``
              7   uint8     d, the number of dimensions
              8   uint64    checksum
              16  uint64    m, the number of values
              24  d uint64  shape; n is their product, 1 without dimensions
    bitmap    ceil(n / 8) bytes: bit i % 8, counted from the least significant, of byte i // 8 says whether element i
              is stored, row-major; unused bits are zero. A dense buffer has no bitmap
    values    m elements in order, bit for bit; those with a bit, or all of them (m = n) in a dense buffer

An element is stored unless all its bits are zero, so -0.0 and every NaN come back as they were. A tensor is written
dense where a bitmap would not make the buffer smaller. The checksum is the sum of (2 k + 1) times word k over the
32-bit words of the whole buffer, its own two taken as zero, modulo 2**64: a change inside one aligned word changes
it for certain, since 2 k + 1 is odd. Sizes are checked first, and the bits are counted before values are read.

Numba kernels do the work on a CPU, torch operations elsewhere and for elements of 16 bytes, with the same bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch

from .exceptions import BitmapError, CodecError

__all__ = ["DTYPES", "decode", "encode", "encode_smaller", "size_of"]

MAGIC, VERSION = b"RVBM", 1
DENSE, BITMAP = 0, 1
DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32),
    *(torch.uint64, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex32, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
)
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
START = struct.Struct("<4sBBBBQQ")
DIMENSIONS = 64  # torch allows no more
ALIGNMENT = 16


def padded(size: int) -> int:
    """Return bytes rounded up to where the next part may begin."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class Layout:
    """What a header says, and where the parts lie.

    Attributes
    ----------
    dtype, shape
        Those of the tensor.
    values
        Number of elements that are stored.
    dense
        Whether they are stored without a bitmap.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    values: int
    dense: bool

    @property
    def length(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bitmap_start(self) -> int:
        """Bytes before the bitmap."""
        return padded(START.size + 8 * len(self.shape))

    @property
    def values_start(self) -> int:
        """Bytes before the values."""
        return self.bitmap_start + (0 if self.dense else padded((self.length + 7) // 8))

    @property
    def values_stop(self) -> int:
        """Bytes up to the last value."""
        return self.values_start + self.values * self.dtype.itemsize

    @property
    def size(self) -> int:
        """Bytes of the buffer."""
        return padded(self.values_stop)

    def header(self, checksum: int = 0) -> bytes:
        """Return the bytes before the bitmap."""
        form = DENSE if self.dense else BITMAP
        start = START.pack(MAGIC, VERSION, form, DTYPES.index(self.dtype), len(self.shape), checksum, self.values)
        return (start + struct.pack(f"<{len(self.shape)}Q", *self.shape)).ljust(self.bitmap_start, b"\0")


def size_of(dtype: torch.dtype, shape: Sequence[int], values: int) -> int:
    """Return the bytes of the buffer of a tensor of which so many elements are not zero."""
    return min(Layout(dtype, tuple(shape), values, False).size, dense_layout(dtype, shape).size)


def dense_layout(dtype: torch.dtype, shape: Sequence[int]) -> Layout:
    """Return how a tensor is kept without a bitmap."""
    return Layout(dtype, tuple(shape), math.prod(shape), True)


def engine_for(tensor: torch.Tensor, dtype: torch.dtype) -> ModuleType:
    """Return the module that runs the loops; Numba is imported when a tensor is first encoded on a CPU."""
    if tensor.is_cpu and dtype.itemsize in INTEGERS:
        from . import bitmap_compiled

        return bitmap_compiled
    from . import bitmap_portable

    return bitmap_portable


def integers_of(flat: torch.Tensor) -> torch.Tensor:
    """Return a one-dimensional contiguous tensor's elements as integers, those of 16 bytes as rows of two."""
    if flat.is_complex() and flat.itemsize == 16:
        return torch.view_as_real(flat).view(torch.int64)
    return flat.view(INTEGERS[flat.itemsize])


def split_buffer(buffer: torch.Tensor, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bitmap, with its padding, and the values as integers."""
    values = buffer[layout.values_start : layout.values_stop]
    if layout.dtype.itemsize > 8:
        return buffer[layout.bitmap_start : layout.values_start], values.view(torch.int64).view(-1, 2)
    return buffer[layout.bitmap_start : layout.values_start], values.view(INTEGERS[layout.dtype.itemsize])


def write_header(buffer: torch.Tensor, header: bytes) -> None:
    """Put a header in front."""
    buffer[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8).to(buffer.device)


def write_buffer(flat: torch.Tensor, layout: Layout, counts: Sequence[int]) -> torch.Tensor:
    """Return the buffer of a one-dimensional contiguous tensor."""
    engine = engine_for(flat, flat.dtype)
    buffer = torch.empty(layout.size, dtype=torch.uint8, device=flat.device)
    buffer[layout.values_stop :] = 0
    write_header(buffer, layout.header())
    bitmap, values = split_buffer(buffer, layout)
    if layout.dense:
        values.copy_(integers_of(flat))
    else:
        bitmap[(layout.length + 7) // 8 :] = 0
        engine.pack(integers_of(flat), counts, bitmap, values)
    write_header(buffer, layout.header(engine.checksum(buffer)))
    return buffer


def flatten(tensor: torch.Tensor) -> torch.Tensor:
    """Return the elements of a tensor, row-major and contiguous, outside any graph."""
    if tensor.layout is not torch.strided or tensor.dtype not in DTYPES or tensor.is_meta:
        raise CodecError(
            f"the bitmap format keeps strided tensors of plain dtypes, not {tensor.layout} of {tensor.dtype} on "
            f"{tensor.device}; keep this tensor dense"
        )
    return tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1)


def encode(tensor: torch.Tensor) -> torch.Tensor:
    """Return the buffer of a tensor: a one-dimensional uint8 tensor on the same device.

    Parameters
    ----------
    tensor
        Any strided tensor: every shape and stride, every dtype of ``DTYPES``.

    Raises
    ------
    CodecError
        For a tensor that is sparse, of another dtype, or without data (meta).

    References
    ----------
    BitTrain, arXiv:2110.15362, keeps activations as a bitmap and the non-zero values, too.

    Examples
    --------
    >>> import torch
    >>> activations = torch.randn(100, 100).relu()
    >>> buffer = encode(activations)
    >>> bool(buffer.nbytes < 0.6 * activations.nbytes), torch.equal(decode(buffer), activations)
    (True, True)
    """
    flat = flatten(tensor)
    counts = engine_for(flat, flat.dtype).count_values(integers_of(flat))
    layout = Layout(flat.dtype, tuple(tensor.shape), sum(counts), False)
    dense = dense_layout(flat.dtype, tensor.shape)
    return write_buffer(flat, layout if layout.size < dense.size else dense, counts)


def encode_smaller(flat: torch.Tensor, allow: Callable[[int], None]) -> torch.Tensor | None:
    """Return the buffer of a one-dimensional tensor, None where that takes no fewer bytes than the tensor itself.

    ``allow`` is called with the bytes of the buffer before it is allocated.
    """
    flat = flatten(flat)
    counts = engine_for(flat, flat.dtype).count_values(integers_of(flat))
    layout = Layout(flat.dtype, tuple(flat.shape), sum(counts), False)
    if layout.size >= flat.nbytes:
        return None
    allow(layout.size)
    return write_buffer(flat, layout, counts)


def read_header(buffer: torch.Tensor) -> tuple[Layout, int]:
    """Return what the header says, and the checksum; the buffer has as many bytes as that takes."""
    if buffer.dtype is not torch.uint8 or buffer.dim() != 1:
        raise BitmapError(f"a buffer is a one-dimensional uint8 tensor, not {buffer.dtype} of {tuple(buffer.shape)}")
    head = buffer[: START.size + 8 * DIMENSIONS].cpu().numpy().tobytes()
    if len(head) < START.size:
        raise BitmapError(f"a buffer of {len(head)} bytes is shorter than a header; was it cut off?")
    magic, version, form, code, dimensions, checksum, values = START.unpack_from(head)
    if magic != MAGIC or version != VERSION:
        raise BitmapError(f"not a buffer of this format: it begins with {head[:5]!r}, not {MAGIC + bytes([VERSION])!r}")
    if form not in (DENSE, BITMAP) or code >= len(DTYPES) or len(head) < START.size + 8 * dimensions:
        raise BitmapError(f"damaged header: form {form}, dtype {code}, {dimensions} dimensions")
    shape = struct.unpack_from(f"<{dimensions}Q", head, START.size)
    if math.prod(max(size, 1) for size in shape) >= 2**60:  # torch counts so far, also where another size is zero
        raise BitmapError(f"damaged header: no tensor has the shape {shape}")
    layout = Layout(DTYPES[code], shape, values, form == DENSE)
    if layout.size != len(buffer) or (layout.dense and values != layout.length):
        raise BitmapError(
            f"a buffer of {len(buffer)} bytes is damaged: its header says {layout.size} bytes, {values} values "
            f"of a tensor of shape {shape}"
        )
    return layout, checksum


def decode(buffer: torch.Tensor) -> torch.Tensor:
    """Return the tensor of a buffer: contiguous, of its shape and dtype, on the buffer's device, bit for bit.

    Parameters
    ----------
    buffer
        What ``encode`` returned; it is not changed.

    Raises
    ------
    BitmapError
        If the buffer was damaged, shortened or made longer.
    """
    layout, checksum = read_header(buffer)
    if not buffer.is_contiguous() or buffer.storage_offset() % ALIGNMENT or buffer.data_ptr() % ALIGNMENT:
        buffer = buffer.clone(memory_format=torch.contiguous_format)
    engine = engine_for(buffer, layout.dtype)
    own = 5 * (checksum % 2**32) + 7 * (checksum >> 32)  # words 2 and 3
    if (engine.checksum(buffer) - own) % 2**64 != checksum:
        raise BitmapError(f"a buffer of {len(buffer)} bytes is damaged: its checksum does not fit")
    return read_values(buffer, layout, engine)


def read_values(buffer: torch.Tensor, layout: Layout, engine: ModuleType) -> torch.Tensor:
    """Return the tensor of a buffer whose checksum fits."""
    bitmap, values = split_buffer(buffer, layout)
    tensor = torch.empty(layout.shape, dtype=layout.dtype, device=buffer.device)
    elements = integers_of(tensor.view(-1))
    if layout.dense:
        elements.copy_(values)
        return tensor
    counts = engine.count_bits(bitmap, layout.length)
    unused = int.from_bytes(bitmap[layout.length // 8 :].cpu().numpy().tobytes(), "little") >> layout.length % 8
    if sum(counts) != layout.values or unused:
        raise BitmapError(f"a damaged buffer: {sum(counts)} ones in the bitmap for {layout.values} values")
    engine.unpack(bitmap, counts, values, elements)
    return tensor
