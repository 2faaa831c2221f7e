"""Codecs that note how long encoding and decoding take, and releasing what they made."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from revolve.storage.codecs import Codec, Form

from .bench import step_clock

__all__ = ["TimedCodec", "TimedForm", "count_elsewhere"]


class TimedForm:
    """A form that notes how long it takes to decode and to release it, and knows how long it took to make it.

    Attributes
    ----------
    encoding
        Seconds that it took to make it.
    elsewhere
        Whether making and releasing it is counted elsewhere.
    """

    def __init__(self, form: Form, codec: TimedCodec, encoding: float) -> None:
        self.form = form
        self.nbytes = form.nbytes
        self.codec = codec
        self.encoding = encoding
        self.elsewhere = False

    def __del__(self) -> None:
        start = self.codec.clock()
        del self.form  # removing a file takes as long as half of writing it
        if not self.elsewhere:
            self.codec.encoding += self.codec.clock() - start

    def decode(self) -> torch.Tensor:
        """Decode the form."""
        start = self.codec.clock()
        tensor = self.form.decode()
        self.codec.decoding += self.codec.clock() - start
        return tensor


class TimedCodec:
    """A codec that notes how long it takes.

    Parameters
    ----------
    codec
        The codec.
    device
        Where the tensors are.

    Attributes
    ----------
    encoding, decoding
        Seconds since they were set to 0; releasing a form counts as encoding, since both happen once.
    """

    def __init__(self, codec: Codec, device: torch.device) -> None:
        self.codec = codec
        self.device = device
        self.name, self.lossless, self.varies, self.waits = codec.name, codec.lossless, codec.varies, codec.waits
        self.encoding = self.decoding = 0.0

    def clock(self) -> float:
        """Return seconds; those of waiting for a disk count, too."""
        return time.perf_counter() if self.waits else step_clock(self.device)

    def encode(self, flat: torch.Tensor, allow: Callable[[int], None]) -> TimedForm | None:
        """Encode a storage."""
        start = self.clock()
        form = self.codec.encode(flat, allow)
        spent = self.clock() - start
        self.encoding += spent
        return None if form is None else TimedForm(form, self, spent)


def count_elsewhere(form: Form) -> float:
    """Return the seconds that it took to make a form whose costs count elsewhere."""
    assert isinstance(form, TimedForm)
    form.elsewhere = True
    return form.encoding
