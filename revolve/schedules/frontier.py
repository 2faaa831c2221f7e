"""The exact frontier of a chain: the least makespan for every budget at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chain import Chain
from .exceptions import InfeasibleBudget
from .optimal import Tables, generate_optimal, solve_tables
from .plans import Plan
from .units import format_bytes, parse_bytes

__all__ = ["Frontier", "solve"]


class Frontier:
    """All Pareto points of a chain: peak against makespan.

    Attributes
    ----------
    chain
        The chain that was solved.
    peaks
        int64 array, bytes, strictly ascending: the smallest budget of each Pareto point.
    makespans
        float64 array of the same length, seconds, strictly descending.
    tolerance
        Makespans are at most (1 + tolerance) times the optimum.
    """

    def __init__(self, chain: Chain, tables: Tables, tolerance: float) -> None:
        self.chain = chain
        self.tables = tables
        self.tolerance = tolerance
        peaks, times = tables.root()
        self.peaks: NDArray[np.int64] = peaks
        self.makespans: NDArray[np.float64] = times / 1e9

    def __len__(self) -> int:
        return len(self.peaks)

    def __repr__(self) -> str:
        ends = f"{format_bytes(int(self.peaks[0]))} .. {format_bytes(int(self.peaks[-1]))}"
        return f"<Frontier of {len(self)} points, {ends}>"

    @property
    def smallest(self) -> int:
        """The least feasible budget in bytes."""
        return int(self.peaks[0])

    def plan(self, budget: int | str) -> Plan:
        """Return the optimal plan within a budget.

        Parameters
        ----------
        budget
            Bytes, or a string such as ``"300MB"`` or ``"300MiB"``. More than plain training needs
            gives plain training.

        Raises
        ------
        InfeasibleBudget
            If no schedule fits; the error names the least budget that does.
        BudgetError
            If the budget cannot be understood.
        """
        limit = parse_bytes(budget)
        if limit < self.smallest:
            share = self.smallest / int(self.peaks[-1])
            asked = f"{budget!r} ({limit} bytes)" if isinstance(budget, str) else f"{limit} bytes"
            raise InfeasibleBudget(
                f"budget {asked} is below the least feasible "
                f"{self.smallest} bytes ({format_bytes(self.smallest)}, "
                f"{share:.0%} of plain training); raise the budget, or make "
                "input, batch or stages smaller",
                self.smallest,
                limit,
            )
        point = np.searchsorted(self.peaks, limit, side="right") - 1
        actions = generate_optimal(self.tables, int(self.peaks[point]))
        return Plan.from_actions(self.chain, actions, "optimal", limit, self.tolerance)


def solve(chain: Chain, formats: Any = ("dense",), tolerance: float = 0.0) -> Frontier:
    """Solve a chain exactly, for every budget at once.

    Parameters
    ----------
    chain
        The chain, measured or made up.
    formats
        Names of the storage formats that checkpoints may use; ``"dense"`` is always allowed.
    tolerance
        Let the makespan exceed the optimum by at most this fraction, for a faster solve of long chains.

    Returns
    -------
    Frontier
        Every Pareto point, and ``plan(budget)``.

    Raises
    ------
    ChainError
        If a format is not among the chain's.

    References
    ----------
    The recurrence is in ``kernels/frontier.py``. It extends the persistent dynamic program of
    Beaumont, Eyraud-Dubois, Herrmann, Joly, Shilova: Optimal checkpointing for heterogeneous chains
    (2019), arXiv:1911.13214, by exact transient peaks, early stop and drop-before-use.

    Examples
    --------
    >>> solve(Chain.uniform(2, saved_bytes=3)).makespans.tolist()
    [5.0, 4.0]
    """
    return Frontier(chain, solve_tables(chain, formats, tolerance), tolerance)
