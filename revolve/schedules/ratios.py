"""Recompute ratios of Revolve on uniform chains: the ratio of so many slots, the slots for a ratio.

Everything is decided in integers and fractions, by the closed form of ``revolve.schedules.binomial``: no
rounding, and no time to speak of at any length.

References
----------
Griewank, Walther: Algorithm 799: Revolve, ACM TOMS 26(1), 2000, doi:10.1145/347837.347846.
"""

from __future__ import annotations

from fractions import Fraction
from math import inf, nextafter
from typing import Any

from .binomial import count_forwards
from .exceptions import BudgetError
from .generated import check_count

__all__ = ["ratio_for", "slots_for"]


def ratio_for(length: int, slots: int, *, backward: float | Fraction = 1.0) -> float:
    """Return the recompute ratio of Revolve: its makespan over that of plain training.

    Plain training runs every stage forward and backward once, Revolve t(l, s) forwards more:

        rho = (t(l, s) + l + l backward) / (l + l backward)

    which is what ``simulate`` finds for ``revolve(l, s)`` on ``Chain.uniform(l)``. Revolve tapes one stage
    at a time, so that even with plenty of slots t is l - 1: the run to the end saves nothing but at the
    last stage. Papers that count the taped run as part of the backward have a smaller ratio; that of
    arXiv:1903.03051, where a chain of l stages has an initial stage besides, is
    1/2 + (l + 1)/l (ratio_for(l + 1, s) - 1).

    Parameters
    ----------
    length
        Number of stages, at least 1.
    slots
        Activations that may be held at once, the initial state included.
    backward
        Time of the backward of a stage, in units of its forward.

    Returns
    -------
    float
        The exact ratio, rounded up to the next float, so that ``slots_for`` of it needs no more slots.

    Raises
    ------
    BudgetError
        If a count is not an int of 1 or more, or ``backward`` not a finite number of 0 or more.
    OverflowError
        If the ratio is beyond the largest float.

    References
    ----------
    Griewank, Walther: Algorithm 799: Revolve, ACM TOMS 26(1), 2000, doi:10.1145/347837.347846.

    Examples
    --------
    >>> ratio_for(1000, 10), ratio_for(10**9, 100, backward=2)
    (2.818, 2.966219708)
    """
    extra = count_forwards(length, slots)
    exact = 1 + extra / (length * (1 + read_number("backward", backward, 0)))
    rounded = float(exact)
    return rounded if rounded >= exact else nextafter(rounded, inf)


def slots_for(length: int, ratio: float | Fraction, *, backward: float | Fraction = 1.0) -> int:
    """Return the least number of slots whose recompute ratio is at most ``ratio``.

    Parameters
    ----------
    length
        Number of stages, at least 1.
    ratio
        Makespan over that of plain training, as ``ratio_for`` counts. A float stands for the number
        that it is exactly: 1.7 is a little less than 17/10; pass ``Fraction(17, 10)`` for that.
    backward
        Time of the backward of a stage, in units of its forward.

    Raises
    ------
    BudgetError
        If the length is not an int of 1 or more, a number is out of its range, or no number of slots
        reaches the ratio; the message names the least one.

    References
    ----------
    Griewank, Walther: Algorithm 799: Revolve, ACM TOMS 26(1), 2000, doi:10.1145/347837.347846.

    Examples
    --------
    >>> slots_for(1000, 2.818), slots_for(10**9, 3.0, backward=2)
    (10, 91)
    """
    check_count("length", length)
    wanted = read_number("ratio", ratio, 1)
    allowed = (wanted - 1) * length * (1 + read_number("backward", backward, 0))
    low, high = 1, max(1, length - 1)  # more slots than length - 1 change nothing
    if count_forwards(length, high) > allowed:
        least = ratio_for(length, high, backward=backward)
        raise BudgetError(
            f"ratio={ratio!r} is not possible for {length} stages with backward={backward!r}: every stage but the "
            f"last runs once more to be taped, even with {high} slots; ask for a ratio of {least!r} or more"
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if count_forwards(length, middle) <= allowed else (middle + 1, high)
    return low


def read_number(name: str, value: Any, least: int) -> Fraction:
    """Return a number exactly.

    Raises
    ------
    BudgetError
        Unless it is a finite int, float or Fraction of ``least`` or more.
    """
    known = isinstance(value, (int, float, Fraction)) and not isinstance(value, bool)
    if not (known and least <= value < inf):
        raise BudgetError(f"{name}={value!r} is not possible; {name} must be a finite number of {least} or more")
    return Fraction(value)
