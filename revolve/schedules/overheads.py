"""How much longer than plain training a step may take, as people write it: ``0.1`` or ``"10%"``."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from .exceptions import BudgetError

__all__ = ["parse_overhead"]

NUMBER = re.compile(r"\s*((?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]{1,3})?)\s*(%?)\s*", re.ASCII | re.IGNORECASE)


def parse_overhead(overhead: float | str) -> Fraction:
    """Turn an overhead into an exact share of plain training's makespan.

    Parameters
    ----------
    overhead
        A share, zero or more, as a number (``0.1``) or a string (``"0.1"``, ``"10%"``). A float
        stands for the decimal number that Python writes for it, so 0.1 is one tenth.

    Returns
    -------
    Fraction
        The share; 0 is as fast as plain training.

    Raises
    ------
    BudgetError
        If it is negative, not finite, or no number.

    Examples
    --------
    >>> parse_overhead("10%") == parse_overhead(0.1) == Fraction(1, 10)
    True
    """
    match = NUMBER.fullmatch(overhead if isinstance(overhead, str) else plain_number(overhead))
    if match is None:
        raise BudgetError(
            f"overhead={overhead!r} is not possible; write how much longer than plain training a step may take, "
            "a number of 0 or more such as 0.1, or '10%'"
        )
    return Fraction(match[1]) / (100 if match[2] else 1)


def plain_number(value: Any) -> str:
    """Return how a number is written; nothing for what is none."""
    is_number = hasattr(value, "__float__") or hasattr(value, "__index__")
    return str(value) if is_number and not isinstance(value, bool) else ""
