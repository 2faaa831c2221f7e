"""Errors of keeping activations in another form."""

from __future__ import annotations

from revolve.schedules.exceptions import RevolveError

__all__ = ["BitmapError", "CodecError", "StorageError"]


class CodecError(RevolveError, ValueError):
    """A codec that is not known, or one that cannot take such a tensor."""


class BitmapError(CodecError):
    """A buffer that is not, or no longer, what the bitmap format's encoder wrote."""


class StorageError(RevolveError, OSError):
    """A file of an activation cannot be written or read."""
