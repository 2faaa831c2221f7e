"""Codecs: other forms of a storage than the dense one, behind one interface.

A codec takes the elements of one storage and gives a form that takes fewer bytes in the memory of its device, or
none where that cannot be had; a form gives the elements back, as often as they are wanted, in any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch

from .exceptions import CodecError

__all__ = ["CODECS", "BitmapCodec", "Codec", "Form", "codec_named"]

SMALLEST = 1024  # bytes of a tensor that is worth a form


class Form(Protocol):
    """One storage in another form.

    Attributes
    ----------
    nbytes
        Bytes that it takes in the memory of the tensor's device.
    """

    @property
    def nbytes(self) -> int:
        """Bytes in the memory of the tensor's device."""

    def decode(self) -> torch.Tensor:
        """Return a fresh one-dimensional dense tensor of the original dtype and device."""


class Codec(Protocol):
    """A way to keep storages.

    Attributes
    ----------
    name
        The name of the format in plans.
    lossless
        Whether every bit comes back.
    varies
        Whether the bytes of a form depend on the data, not only on their number.
    waits
        Whether encoding and decoding wait for something else than a processor, such as a disk.
    """

    @property
    def name(self) -> str:
        """The name of the format in plans."""

    @property
    def lossless(self) -> bool:
        """Whether every bit comes back."""

    @property
    def varies(self) -> bool:
        """Whether the bytes of a form depend on the data."""

    @property
    def waits(self) -> bool:
        """Whether encoding and decoding wait for something else than a processor."""

    def encode(self, flat: torch.Tensor, allow: Callable[[int], None]) -> Form | None:
        """Return the form of a storage, None where it is better kept dense.

        Parameters
        ----------
        flat
            Its elements: one-dimensional, contiguous, outside any graph.
        allow
            Called with the bytes of the form before these are allocated; whatever it raises passes through.
        """


class BitmapForm:
    """A buffer of the bitmap format."""

    __slots__ = ("buffer",)

    def __init__(self, buffer: torch.Tensor) -> None:
        self.buffer = buffer

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer."""
        return self.buffer.nbytes

    def decode(self) -> torch.Tensor:
        """Return the elements; the buffer's checksum is verified each time."""
        from .bitmap import decode

        return decode(self.buffer)


class BitmapCodec:
    """One bit an element, and the elements that have a bit: see ``revolve.storage.bitmap``."""

    name = "bitmap"
    lossless = True
    varies = True
    waits = False

    def encode(self, flat: torch.Tensor, allow: Callable[[int], None]) -> BitmapForm | None:
        """Return a buffer with its bitmap; None for a small tensor, and where it would not be smaller."""
        from .bitmap import DTYPES, encode_smaller

        if flat.nbytes < SMALLEST or flat.dtype not in DTYPES:
            return None
        buffer = encode_smaller(flat, allow)
        return None if buffer is None else BitmapForm(buffer)


CODECS: dict[str, Callable[[], Codec]] = {"bitmap": BitmapCodec}


@cache
def codec_named(name: str) -> Codec:
    """Return the codec of a name; one object for each name.

    Raises
    ------
    CodecError
        If there is none.
    """
    if name not in CODECS:
        raise CodecError(f"no format is named {name!r}; there are {', '.join(map(repr, CODECS))}")
    return CODECS[name]()
