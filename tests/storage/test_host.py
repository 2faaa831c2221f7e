"""Host memory: what is refused, and the order of the transfers, with streams that only note what is asked of them."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from revolve.storage import host
from revolve.storage.codecs import codec_named
from revolve.storage.exceptions import CodecError


class Noted:
    """A CUDA tensor's stand-in: notes copies and streams."""

    def __init__(self, events, name, dtype=torch.float32, length=1000):
        self.events, self.name, self.dtype, self.length = events, name, dtype, length
        self.device, self.is_cuda, self.nbytes = torch.device("cuda", 0), True, 4 * length

    def __len__(self):
        return self.length

    def copy_(self, source, non_blocking):
        assert non_blocking
        self.events.append(f"{self.name} copies {source.name}")
        return self

    def record_stream(self, stream):
        self.events.append(f"{self.name} is used on {stream.name}")


@pytest.fixture
def events(monkeypatch):
    noted = []

    def stream(name):
        return SimpleNamespace(name=name, wait_stream=lambda other: noted.append(f"{name} waits for {other.name}"))

    @contextmanager
    def entered(stream):
        noted.append(f"on {stream.name}")
        yield
        noted.append("end")

    def empty(length, *, dtype, device, pin_memory=False):
        assert pin_memory == (device == "cpu")
        return Noted(noted, "pinned" if pin_memory else "fresh", dtype, length)

    side, current = stream("side"), stream("current")
    cuda = SimpleNamespace(current_stream=lambda device: current, stream=entered)
    monkeypatch.setattr(host, "torch", SimpleNamespace(cuda=cuda, empty=empty))
    monkeypatch.setattr(host, "stream_of", lambda device: side)
    return noted


def test_a_tensor_in_host_memory_is_refused():
    with pytest.raises(CodecError, match="this one is on cpu; use 'disk'"):
        codec_named("host").encode(torch.ones(1000), lambda _: None)


def test_transfers_wait_for_what_they_need(events):
    allowed = []
    form = codec_named("host").encode(Noted(events, "flat"), allowed.append)
    assert (form.nbytes, allowed) == (0, [0])
    stored = ["side waits for current", "on side", "pinned copies flat", "end", "flat is used on side"]
    assert events == stored
    events.clear()
    fresh = form.decode()
    assert (fresh.name, fresh.dtype, len(fresh)) == ("fresh", torch.float32, 1000)
    assert events == ["side waits for current", "on side", "fresh copies pinned", "end", "current waits for side"]


def test_a_small_tensor_stays(events):
    assert codec_named("host").encode(Noted(events, "flat", length=255), lambda _: None) is None
    assert events == []
