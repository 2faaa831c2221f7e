"""The bitmap format: bytes, sizes, round trips."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from revolve.storage import bitmap, bitmap_compiled, bitmap_portable
from revolve.storage.exceptions import CodecError

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support")

GOLDEN_BITMAP = (
    b"RVBM\x01\x01\x0b\x02"  # magic, version 1, with a bitmap, float32, two dimensions
    + (0x2C7B3FDA40).to_bytes(8, "little")  # checksum
    + bytes([3, 0, 0, 0, 0, 0, 0, 0])  # three values
    + bytes([3, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0])  # 3 x 7
    + bytes(8)  # up to 48
    + bytes([0b00000010, 0b10000000, 0b00010000])  # elements 1, 15, 20
    + bytes(13)  # up to 64
    + b"\x00\x00\x80\x3f\x00\x00\x00\x80\x00\x00\xc0\x7f"  # 1, -0.0, NaN
    + bytes(4)  # up to 80
)
GOLDEN_DENSE = (
    b"RVBM\x01\x00\x02\x01"  # dense, int8, one dimension
    + (0x613778A8).to_bytes(8, "little")
    + bytes([3, 0, 0, 0, 0, 0, 0, 0])
    + bytes([3, 0, 0, 0, 0, 0, 0, 0])
    + bytes([1, 2, 255])
    + bytes(13)
)


def bits_of(tensor):
    """Return the bytes of a tensor, row-major."""
    flat = tensor.resolve_conj().resolve_neg().contiguous()
    return flat.as_strided((flat.numel(),), (1,)).view(
        torch.uint8
    )  # a contiguous tensor's strides may be any for sizes 0, 1


def naive_checksum(buffer):
    data = bytes(buffer.tolist())
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    return sum((2 * k + 1) * word for k, word in enumerate(words) if k not in (2, 3)) % 2**64


def naive_buffer(tensor):
    """Return what the format's description says, element by element."""
    size, data = tensor.itemsize, bytes(bits_of(tensor).tolist())
    elements = [data[i : i + size] for i in range(0, len(data), size)]
    stored = [element for element in elements if any(element)]
    ones = sum(1 << i for i, element in enumerate(elements) if any(element))
    bits = ones.to_bytes((len(elements) + 7) // 8, "little")

    def parts(form, values, bits):
        start = b"RVBM\x01" + bytes([form, bitmap.DTYPES.index(tensor.dtype), tensor.dim()]) + bytes(8)
        head = start + b"".join(n.to_bytes(8, "little") for n in (len(values), *tensor.shape))
        joined = b""
        for part in (head, bits, b"".join(values)):
            joined += part + bytes(-len(part) % 16)
        return joined

    buffer = bytearray(min(parts(0, elements, b""), parts(1, stored, bits), key=len))
    buffer[8:16] = naive_checksum(torch.tensor(list(buffer))).to_bytes(8, "little")
    return torch.tensor(list(buffer), dtype=torch.uint8)


def tensor_of(dtype, shape, density, generator):
    """Return a tensor of random bit patterns, NaN payloads and infinities among them."""
    length = math.prod(shape)
    data = torch.randint(0, 256, (length, dtype.itemsize), generator=generator, dtype=torch.uint8)
    if dtype is torch.bool:
        data %= 2
    data *= torch.rand(length, 1, generator=generator) < density
    return data.view(-1).view(dtype).view(shape)


@st.composite
def tensors(draw):
    """Draw a tensor of any dtype, shape, density and stride."""
    shape = draw(st.lists(st.integers(0, 12), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    tensor = tensor_of(draw(st.sampled_from(bitmap.DTYPES)), shape, draw(st.floats(0, 1)), generator)
    if shape:
        tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
        tensor = tensor[draw(st.integers(0, 2)) :: draw(st.integers(1, 3))]
    return tensor


def test_golden_bytes():
    x = torch.zeros(3, 7)
    x.view(-1)[[1, 15]] = torch.tensor([1.0, -0.0])
    x.view(-1).view(torch.int32)[20] = 0x7FC00000
    assert bytes(bitmap.encode(x).tolist()) == GOLDEN_BITMAP
    assert bytes(bitmap.encode(torch.tensor([1, 2, -1], dtype=torch.int8)).tolist()) == GOLDEN_DENSE


def test_codes_are_fixed():
    names = " ".join(str(dtype).removeprefix("torch.") for dtype in bitmap.DTYPES)
    assert names == (
        "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 bfloat16 float32 float64 complex32 complex64 "
        "complex128 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
    )
    for code, dtype in enumerate(bitmap.DTYPES):
        assert bitmap.encode(torch.zeros(16, dtype=torch.uint8).view(dtype))[6] == code


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tensor=tensors())
def test_every_bit_comes_back(tensor):
    buffer = bitmap.encode(tensor)
    assert torch.equal(buffer, naive_buffer(tensor))
    values = int(bits_of(tensor).view(-1, tensor.itemsize).any(1).sum())
    assert buffer.nbytes == bitmap.size_of(tensor.dtype, tensor.shape, values)
    back = bitmap.decode(buffer)
    assert (back.dtype, back.shape, back.is_contiguous()) == (tensor.dtype, tensor.shape, True)
    assert torch.equal(bits_of(back), bits_of(tensor))


@settings(max_examples=100, deadline=None)
@given(
    dtype=st.sampled_from([torch.int8, torch.bfloat16, torch.float32, torch.float64, torch.complex128]),
    length=st.integers(0, 5000),
    density=st.sampled_from([0.0, 0.02, 0.5, 0.9]),
    seed=st.integers(0, 2**32),
    chunk=st.sampled_from([8, 64, 1 << 18]),
)
def test_torch_operations_write_the_same_bytes(dtype, length, density, seed, chunk):
    tensor = tensor_of(dtype, (length,), density, torch.Generator().manual_seed(seed))
    buffer = bitmap.encode(tensor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bitmap_portable, "CHUNK", chunk)
        patch.setattr(bitmap, "engine_for", lambda *_: bitmap_portable)
        assert torch.equal(bitmap.encode(tensor), buffer)
        assert torch.equal(bits_of(bitmap.decode(buffer)), bits_of(tensor))
    assert torch.equal(bits_of(bitmap.decode(buffer)), bits_of(tensor))


def test_numba_runs_on_a_cpu_and_torch_for_sixteen_bytes():
    x = torch.zeros(4)
    assert bitmap.engine_for(x, torch.bfloat16) is bitmap_compiled
    assert bitmap.engine_for(x, torch.complex128) is bitmap_portable
    assert bitmap.engine_for(torch.zeros(4, device="meta"), torch.float32) is bitmap_portable


@pytest.mark.parametrize("length", [63, 64, 65, 4095, 4096, 4097, 3 * 4096 * 16 + 5])
def test_checksums_agree_beyond_a_block(length):
    buffer = torch.randint(0, 256, (4 * length,), dtype=torch.uint8)
    weighted = (buffer.view(torch.int32).long() & 0xFFFFFFFF) * torch.arange(1, 2 * length, 2)
    expected = int(weighted.sum()) % 2**64
    assert bitmap_compiled.checksum(buffer) == bitmap_portable.checksum(buffer) == expected
    full = torch.full((4 * length,), 255, dtype=torch.uint8)  # the largest sums
    assert bitmap_compiled.checksum(full) == (2**32 - 1) * length**2 % 2**64


@pytest.mark.parametrize("length", [64, 200, 640])
@pytest.mark.parametrize("density", [0.1, 0.6, 1.0])
def test_packing_writes_nothing_behind_the_values(length, density):
    x = tensor_of(torch.int32, (length,), density, torch.Generator().manual_seed(0))
    count = bitmap_compiled.count_values(x)
    room = torch.full((sum(count) + 64,), 77, dtype=torch.int32)
    bitmap_compiled.pack(x, count, torch.empty(128, dtype=torch.uint8), room[: sum(count)])
    assert torch.equal(room[: sum(count)], x[x != 0])
    assert bool((room[sum(count) :] == 77).all())


def test_half_of_the_values_take_half_of_the_bytes():
    x = torch.ones(1024, 1024).triu(1)
    values = 1024 * 1023 // 2
    assert bitmap.encode(x).nbytes == 48 + 1024 * 1024 // 8 + 4 * values


def test_dense_where_a_bitmap_would_not_be_smaller():
    x = torch.zeros(1024)
    x[: 1024 - 32] = 1  # 128 bytes of zeros pay for 128 bytes of bitmap
    assert bitmap.encode(x)[5] == bitmap.DENSE
    x[1024 - 36 :] = 0
    assert bitmap.encode(x)[5] == bitmap.BITMAP


def test_views_come_back_as_the_tensors_they_show():
    x = torch.randn(6, 5, dtype=torch.complex64)
    for view in (x.conj(), x.real, x.imag, x.conj().imag, x.T, x[::2, 1:], torch.ones(1).expand(3, 4)):
        assert torch.equal(bitmap.decode(bitmap.encode(view)), view)


def test_no_graph_goes_along():
    x = torch.randn(100, requires_grad=True)
    back = bitmap.decode(bitmap.encode(x.relu()))
    assert not back.requires_grad
    assert torch.equal(back, x.relu())


def test_a_buffer_may_lie_anywhere():
    x = torch.randn(1000).relu()
    buffer = bitmap.encode(x)
    for first in (1, 4, 16):
        moved = torch.empty(len(buffer) + first, dtype=torch.uint8)[first:].copy_(buffer)
        assert torch.equal(bitmap.decode(moved), x)
    spaced = torch.empty(len(buffer), 2, dtype=torch.uint8)[:, 0].copy_(buffer)
    assert torch.equal(bitmap.decode(spaced), x)


@pytest.mark.parametrize(
    "x", [torch.eye(3).to_sparse(), torch.empty(3, dtype=torch.float4_e2m1fn_x2), torch.empty(3, device="meta")]
)
def test_what_cannot_be_kept_is_refused(x):
    with pytest.raises(CodecError, match="keep this tensor dense"):
        bitmap.encode(x)
