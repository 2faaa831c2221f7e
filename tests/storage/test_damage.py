"""A damaged buffer of the bitmap format is an error, never another tensor."""

import random
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revolve.schedules.exceptions import RevolveError
from revolve.storage import bitmap, bitmap_compiled, bitmap_portable
from revolve.storage.exceptions import BitmapError

SPARSE = torch.where(torch.arange(315) % 3 == 0, torch.arange(315), 0).to(torch.bfloat16).view(5, 63)
DENSE = torch.arange(1, 60, dtype=torch.int16)
WIDE = torch.eye(5, dtype=torch.complex128)


def refused(buffer):
    with pytest.raises(BitmapError):
        bitmap.decode(buffer)
    return True


@pytest.mark.parametrize("tensor", [SPARSE, DENSE, WIDE], ids=["sparse", "dense", "wide"])
def test_every_changed_byte_is_noticed(tensor):
    buffer, rng = bitmap.encode(tensor), random.Random(0)
    for place in range(len(buffer)):
        for flip in (1, 128, rng.randrange(1, 256)):
            damaged = buffer.clone()
            damaged[place] ^= flip
            assert refused(damaged), (place, flip)


@pytest.mark.parametrize("tensor", [SPARSE, DENSE, WIDE], ids=["sparse", "dense", "wide"])
def test_every_cut_and_every_addition_is_noticed(tensor):
    buffer = bitmap.encode(tensor)
    for length in range(len(buffer)):
        assert refused(buffer[:length])
        assert refused(buffer[len(buffer) - length :])
    for more in (1, 4, 16, 64):
        assert refused(torch.cat([buffer, torch.zeros(more, dtype=torch.uint8)]))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_noise_is_refused(data):
    noise = torch.tensor(list(data), dtype=torch.uint8)
    assert refused(noise)
    assert refused(torch.cat([torch.tensor(list(b"RVBM\x01"), dtype=torch.uint8), noise]))


def signed(buffer):
    """Return a buffer with a checksum that fits."""
    buffer = buffer.clone()
    buffer[8:16] = 0
    checksum = struct.pack("<Q", bitmap_compiled.checksum(buffer))
    buffer[8:16] = torch.tensor(list(checksum), dtype=torch.uint8)
    return buffer


@pytest.mark.parametrize("engine", [bitmap_compiled, bitmap_portable], ids=["compiled", "portable"])
@pytest.mark.parametrize(("place", "bit"), [(0, 0), (39, 7), (40, 0), (47, 7)])
def test_a_bitmap_that_does_not_fit_its_values_is_refused(monkeypatch, engine, place, bit):
    """Also with a checksum that fits: nothing is read or written outside the tensors. 315 elements, 39.4 bytes."""
    monkeypatch.setattr(bitmap, "engine_for", lambda *_: engine)
    more = bitmap.encode(SPARSE)
    assert torch.equal(bitmap.decode(signed(more)), SPARSE)
    more[48 + place] |= 1 << bit
    assert refused(signed(more))
    if place:  # beyond the last element, and one that is stored less: as many ones as values again
        more[48] &= 0b11110111
        assert refused(signed(more))


def test_a_buffer_of_another_kind_is_refused():
    with pytest.raises(BitmapError, match=r"one-dimensional uint8 tensor, not torch.float32 of \(3,\)"):
        bitmap.decode(torch.zeros(3))
    with pytest.raises(BitmapError, match="begins with"):
        bitmap.decode(torch.zeros(64, dtype=torch.uint8))
    newer = bitmap.encode(DENSE)
    newer[4] = 2
    with pytest.raises(BitmapError, match="begins with"):
        bitmap.decode(signed(newer))


def test_a_header_that_asks_for_more_than_there_is_allocates_nothing():
    header = bitmap.Layout(torch.float32, (2**40, 2**20), 5, False).header()
    assert refused(torch.tensor(list(header), dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(2**63, 0), (0, 2**64 - 1), (2**32, 2**32, 0), (0, 2**60)])
@pytest.mark.parametrize("dense", [True, False])
def test_a_shape_that_no_tensor_has_is_refused(shape, dense):
    """A zero makes the product small, but torch multiplies the others."""
    header = bitmap.Layout(torch.float32, shape, 0, dense).header()
    assert refused(signed(torch.tensor(list(header), dtype=torch.uint8)))


def test_empty_tensors_of_large_sides_come_back():
    tensor = torch.empty(2**40, 0, 3)
    assert bitmap.decode(bitmap.encode(tensor)).shape == tensor.shape


def test_damage_is_a_value_error():
    assert issubclass(BitmapError, ValueError)
    assert issubclass(BitmapError, RevolveError)
