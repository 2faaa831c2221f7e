"""Bytes, as people write them: ``300MB`` is 300e6 bytes, ``300MiB`` is 300 * 2**20."""

from __future__ import annotations

import re
from decimal import Decimal

from .exceptions import BudgetError

__all__ = ["format_bytes", "format_seconds", "parse_bytes"]

FACTORS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
PATTERN = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*|%)\s*", re.ASCII)


def parse_bytes(size: int | str, available: int | None = None, *, what: str = "budget") -> int:
    """Turn a size into bytes.

    Parameters
    ----------
    size
        Bytes as an int, or a string such as ``"300MB"`` (10**6), ``"300MiB"`` (2**20), ``"1.5GB"``
        or ``"80%"`` (of ``available``). Fractions of a byte are rounded down.
    available
        Bytes that ``"100%"`` stands for; None where there is no device to ask.
    what
        What the size is of, for the error.

    Raises
    ------
    BudgetError
        If the size cannot be understood, is negative, or is a percentage without ``available``.

    Examples
    --------
    >>> parse_bytes("300MB"), parse_bytes("300MiB"), parse_bytes(12)
    (300000000, 314572800, 12)
    """
    if isinstance(size, str):
        match = PATTERN.fullmatch(size)
        unit = match[2].lower() if match else None
        if match is None or (unit != "%" and unit not in FACTORS):
            raise BudgetError(
                f"{what} {size!r} is not a size; write bytes (300000000), '300MB' (10**6), '300MiB' (2**20), "
                "'1.5GB' or '80%' (of the device's free memory)"
            )
        if unit != "%":
            return int(Decimal(match[1]) * FACTORS[unit or ""])
        if available is None:
            raise BudgetError(
                f"{what} {size!r} is a share of a device's free memory, but no device is known here; "
                "write bytes, for example '300MB'"
            )
        return int(Decimal(match[1]) * available / 100)
    if isinstance(size, bool) or not hasattr(size, "__index__"):
        raise BudgetError(f"{what} {size!r} is a {type(size).__name__}; write an int (bytes) or a string like '300MB'")
    if size.__index__() < 0:
        raise BudgetError(f"{what} {size!r} is negative; write a number of bytes that is zero or more")
    return size.__index__()


def format_bytes(size: float) -> str:
    """Write a number of bytes for people, in decimal units (``"271.4 MB"``)."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size) >= factor:
            return f"{size / factor:.4g} {unit}" if abs(size) < 1000 * factor else f"{size / factor:.0f} {unit}"
    return f"{size:.0f} B"


def format_seconds(seconds: float) -> str:
    """Write a time for people (``"12.3 ms"``)."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= factor:
            return f"{seconds / factor:.4g} {unit}"
    return f"{seconds / 1e-9:.0f} ns"
