"""Lossy forms: their error bounds, exact groups, and what stays dense."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revolve.storage import precision
from revolve.storage.codecs import codec_named

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INFINITE = float("inf")


def encode(name, x):
    return codec_named(name).encode(x, lambda _: None)


def random_values(length, dtype, seed, spread):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.empty(length, dtype=torch.float64).uniform_(-spread, spread, generator=generator).exp2()
    return (torch.randn(length, dtype=torch.float64, generator=generator) * scale).to(dtype)


def assert_quantised(name, x, form):
    """The stated bound, evaluated in float64 from the form's own steps."""
    error = (form.decode().double() - x.double()).abs()
    bits = int(name[3:])
    for group, low, step in zip(range(0, len(x), 256), form.low.double(), form.step.double(), strict=True):
        exact = x[group : group + 256].double()
        assert low == exact.min()
        assert step == pytest.approx(float(exact.max() - low) / (2**bits - 1), rel=1e-6, abs=1e-44)
        rounding = 4 * torch.finfo(x.dtype).eps * exact.abs().max() + 2.0**-140
        assert error[group : group + 256].max() <= step / 2 + rounding


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["int8", "int4"]),
    dtype=st.sampled_from(FLOATS),
    length=st.integers(1024, 3000),
    seed=st.integers(0, 2**32),
    spread=st.sampled_from([0, 3, 7]),
    offset=st.sampled_from([0, 1000, -3]),
)
def test_integers_keep_their_bound(name, dtype, length, seed, spread, offset):
    x = random_values(length, dtype, seed, spread) + offset
    form, kept = encode(name, x), 8 if dtype is torch.float64 else 4
    assert form.nbytes == -(-length * int(name[3:]) // 8) + 2 * kept * -(-length // 256)
    assert form.decode().dtype is dtype
    assert_quantised(name, x, form)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_parts_fit_together(monkeypatch, name):
    monkeypatch.setattr(precision, "CHUNK", 512)
    x = random_values(512 * 3 + 256 + 31, torch.float32, 0, 3)
    whole = encode(name, x)
    monkeypatch.setattr(precision, "CHUNK", 1 << 16)
    assert torch.equal(encode(name, x).codes, whole.codes)
    assert torch.equal(encode(name, x).decode(), whole.decode())
    assert_quantised(name, x, whole)


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_constant_groups_and_least_values_are_exact(name, dtype):
    x = random_values(1500, dtype, 1, 2)
    x[256:512] = 0.1
    x[768:1024].relu_()
    x[1280:] = -1e-7
    back = encode(name, x).decode()
    assert torch.equal(back[256:512], x[256:512])
    assert torch.equal(back[1280:], x[1280:])
    assert bool((back[768:1024][x[768:1024] == 0] == 0).all())
    assert torch.equal(back[:256].min(), x[:256].min())


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_ends_of_the_range(name, dtype):
    largest, least = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x = torch.zeros(1024, dtype=dtype)
    x[::3] = largest
    assert_quantised(name, x, encode(name, x))
    assert encode(name, x).decode().isfinite().all()
    x[::3] = 3 * least  # the step vanishes
    assert not encode(name, x).codes.any()
    assert float((encode(name, x).decode() - x).abs().max()) <= 2.0**-140
    x[::3], x[1::3] = largest, -largest  # the range is not finite
    assert encode(name, x) is None


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("odd", [float("nan"), INFINITE, -INFINITE])
def test_what_is_not_finite_stays_dense(name, odd):
    x = torch.randn(2000)
    x[1999] = odd
    assert encode(name, x) is None


@pytest.mark.parametrize("name", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e5m2], ids=str)
def test_other_dtypes_stay_dense(name, dtype):
    assert encode(name, torch.zeros(4096, dtype=torch.uint8).view(dtype)) is None


def test_bfloat16_is_not_rounded_to_bfloat16():
    assert encode("bf16", torch.zeros(4096, dtype=torch.bfloat16)) is None
    assert encode("bf16", torch.zeros(4096, dtype=torch.float16)) is None


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**-120), 2.0**-120, width=32) | st.floats(width=32), min_size=1, max_size=20),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_bfloat16_keeps_its_bound(values, dtype):
    x = torch.tensor(values, dtype=dtype).repeat(1024)
    form = encode("bf16", x)
    assert form.nbytes == 2 * len(x)
    back, finite = form.decode(), x.isfinite()
    assert torch.equal(back.isnan(), x.isnan())
    assert torch.equal(back[x.isinf()], x[x.isinf()])
    error = (back[finite].double() - x[finite].double()).abs()
    assert bool((error <= 2.0**-8 * x[finite].double().abs() + 2.0**-134).all())
    assert bool(back[finite].isfinite().all())


def test_bfloat16_rounds_to_the_nearest_and_ties_to_even():
    pairs = {1 + 2**-8: 1, 1 + 3 * 2**-8: 1 + 2**-6, 1 + 2**-8 + 2**-20: 1 + 2**-7, -1 - 2**-8: -1}
    x = torch.tensor(list(pairs), dtype=torch.float32).repeat(256)
    assert encode("bf16", x).decode()[:4].tolist() == list(pairs.values())


def test_bfloat16_has_no_room_for_large_doubles():
    x = torch.ones(1000, dtype=torch.float64)
    x[999] = -1e39
    assert encode("bf16", x) is None
    x[999] = -INFINITE
    assert torch.equal(encode("bf16", x).decode(), x)
