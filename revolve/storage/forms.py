"""The interface of codecs: other forms of a storage than the dense one.

A codec takes the elements of one storage and gives a form that takes fewer bytes in the memory of its device, or
none where that cannot be had; a form gives the elements back, as often as they are wanted, in any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

__all__ = ["SMALLEST", "Codec", "Form"]

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
