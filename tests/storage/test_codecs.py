"""What every codec promises, and the registry."""

import subprocess
import sys
from threading import Thread

import pytest
import torch

from revolve.runtime.allocations import trace_allocations
from revolve.schedules.exceptions import RevolveError
from revolve.storage import bitmap
from revolve.storage.codecs import CODECS, codec_named
from revolve.storage.exceptions import CodecError

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support")


def sparse(length, dtype=torch.float32):
    return torch.where(torch.arange(length) % 2 == 0, torch.arange(length) % 100 + 1, 0).to(dtype)


def test_names():
    for name in CODECS:
        assert codec_named(name).name == name
        assert codec_named(name) is codec_named(name)


def test_an_unknown_name_is_refused_with_those_that_are_known():
    known = "there are 'bitmap', 'bf16', 'int8', 'int4', 'disk', 'host'"
    with pytest.raises(CodecError, match=f"no format is named 'zip'; {known}") as raised:
        codec_named("zip")
    assert isinstance(raised.value, RevolveError)


def test_bitmap_form():
    x, allowed = sparse(1000), []
    form = codec_named("bitmap").encode(x, allowed.append)
    assert allowed == [form.nbytes] == [32 + 128 + 2000]
    assert torch.equal(form.decode(), x)
    assert form.decode().data_ptr() != form.decode().data_ptr()
    assert codec_named("bitmap").lossless


@pytest.mark.parametrize("dtype", bitmap.DTYPES, ids=str)
def test_bitmap_of_every_dtype(dtype):
    x = torch.zeros(1 << 16, dtype=torch.uint8)
    x[::64] = 1
    x = x.view(dtype)
    form = codec_named("bitmap").encode(x, lambda _: None)
    assert form.nbytes < x.nbytes
    back = form.decode()
    assert back.dtype is dtype
    assert torch.equal(back.view(torch.uint8), x.view(torch.uint8))


@pytest.mark.parametrize(
    "x", [torch.ones(1000), sparse(255), sparse(0), torch.zeros(2000, dtype=torch.float4_e2m1fn_x2)]
)
def test_bitmap_leaves_dense_what_would_not_gain(x):
    """Also where the buffer would be exactly as large, and without asking for its bytes."""
    assert codec_named("bitmap").encode(x, lambda size: pytest.fail(f"asked for {size} bytes")) is None


def test_a_bitmap_as_large_as_the_tensor_is_none():
    x = torch.ones(1024)
    x[: 32 + 8] = 0  # 128 bytes of bitmap and 32 of header
    assert codec_named("bitmap").encode(x, lambda _: None) is None
    x[: 32 + 12] = 0
    assert codec_named("bitmap").encode(x, lambda _: None).nbytes == x.nbytes - 16


def test_what_allow_raises_passes_through_before_anything_is_allocated(monkeypatch):
    def refuse(size):
        raise MemoryError(size)

    monkeypatch.setattr(bitmap, "write_buffer", lambda *_: pytest.fail("written"))
    with pytest.raises(MemoryError):
        codec_named("bitmap").encode(sparse(1000), refuse)


def test_forms_decode_in_any_thread():
    x = sparse(100_000)
    form, results = codec_named("bitmap").encode(x, lambda _: None), []
    threads = [Thread(target=lambda: results.append(form.decode())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(result, x) for result in results)


@pytest.mark.parametrize("name", [name for name in CODECS if name != "host"])
@pytest.mark.parametrize("length", [256, 1000, 4097, 600_001])
def test_every_form_is_as_large_as_it_was_announced(name, length):
    x, allowed = sparse(length), []
    form = codec_named(name).encode(x, allowed.append)
    assert allowed == [form.nbytes]
    first, second = form.decode(), form.decode()
    assert (first.dtype, first.shape, first.device) == (x.dtype, x.shape, x.device)
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, x) or not codec_named(name).lossless
    first.zero_()
    assert torch.equal(form.decode(), second)


@pytest.mark.parametrize("name", [name for name in CODECS if name != "host"])
def test_small_storages_stay_dense(name):
    for length in (0, 1, 255):
        assert codec_named(name).encode(sparse(length), lambda size: pytest.fail(f"asked for {size} bytes")) is None


@pytest.mark.parametrize("name", [name for name in CODECS if name != "host"])
def test_encoding_and_decoding_need_little_besides_the_form(name):
    x = sparse(1 << 22)
    for dtype in (torch.float32, torch.float64):
        codec, x = codec_named(name), x.to(dtype)
        codec.encode(x, lambda _: None).decode()  # compiled
        with trace_allocations(x.device) as tracer:
            form = codec.encode(x, lambda _: None)
            tracer.mark()
            form.decode()
            tracer.mark()
        encoding, decoding = tracer.phases[:2]
        assert form.nbytes <= encoding.end <= form.nbytes + 4096
        assert encoding.peak <= form.nbytes + 0.1 * x.nbytes
        assert decoding.peak <= form.nbytes + 1.1 * x.nbytes


def test_kernels_are_imported_when_a_tensor_is_encoded():
    code = """if True:
        import sys, revolve.storage.codecs as codecs, torch
        assert "revolve.storage.kernels.bitmap" not in sys.modules
        codecs.codec_named("bitmap").encode(torch.zeros(1000), lambda size: None)
        assert "revolve.storage.kernels.bitmap" in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
