"""The codecs by name: the formats besides the dense one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch

from .disk import DiskCodec
from .exceptions import CodecError
from .forms import SMALLEST, Codec, Form
from .host import HostCodec
from .precision import Bfloat16Codec, QuantisedCodec

__all__ = ["CODECS", "BitmapCodec", "Codec", "Form", "codec_named"]


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


CODECS: dict[str, Callable[[], Codec]] = {
    "bitmap": BitmapCodec,
    "bf16": Bfloat16Codec,
    "int8": partial(QuantisedCodec, 8),
    "int4": partial(QuantisedCodec, 4),
    "disk": DiskCodec,
    "host": HostCodec,
}


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
