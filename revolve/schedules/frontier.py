"""The exact frontier of a chain: the least makespan for every budget at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chain import Chain, nanoseconds
from .exceptions import BudgetError, ChainError, InfeasibleBudget, SolverMemoryError
from .optimal import generate_optimal
from .overheads import parse_overhead
from .plans import Plan, plain_schedule
from .simulator import simulate
from .tables import Tables, solve_tables
from .units import format_bytes, parse_bytes

__all__ = ["Frontier", "solve"]

EXACT_MEMORY = 2**28  # about what some 200 random stages need, in seconds


class Frontier:
    """All Pareto points of a chain: peak against makespan.

    Attributes
    ----------
    chain
        The chain that was solved.
    peaks
        int64 array, bytes, strictly ascending: the smallest budget of each Pareto point.
    makespans
        float64 array of the same length, seconds, strictly descending. With a tolerance, a plan may take
        a little less.
    least_makespans
        float64 array of the same length, seconds: proven lower bounds. Equal to ``makespans`` without a
        tolerance; with one, ``makespans <= (1 + tolerance) * least_makespans``.
    tolerance
        Makespans are at most (1 + tolerance) times the optimum, at every budget.
    carried
        The frontier of ``chain.carried``, whose points are among these where they are better; None where the chain has
        none. A plan of such a point has that chain.
    """

    def __init__(self, chain: Chain, tables: Tables, carried: Frontier | None = None) -> None:
        self.chain = chain
        self.tables = tables
        self.tolerance: float = tables.tolerance if carried is None else max(tables.tolerance, carried.tolerance)
        self.carried = carried
        peaks, least, times = tables.root()
        self.peaks: NDArray[np.int64] = peaks
        self.makespans: NDArray[np.float64] = times / 1e9
        self.least_makespans: NDArray[np.float64] = least / 1e9
        self.carrying: NDArray[np.bool_] = np.zeros(len(peaks), np.bool_)  # which points are of ``carried``
        if carried is not None:
            self.join(carried)

    def join(self, other: Frontier) -> None:
        """Take in the points of another frontier that are below this one's, and leave out those that are not any more.

        Where both have a point of the same peak and makespan, this one's stays.
        """
        peaks = np.concatenate((self.peaks, other.peaks))
        makespans = np.concatenate((self.makespans, other.makespans))
        carrying = np.repeat([False, True], (len(self), len(other)))
        order = np.lexsort((carrying, makespans, peaks))
        before = np.minimum.accumulate(np.concatenate(([np.inf], makespans[order][:-1])))
        order = order[makespans[order] < before]
        bounds = (lower_bounds(frontier, peaks[order]) for frontier in (self, other))
        self.least_makespans = np.minimum(*bounds)
        self.peaks, self.makespans, self.carrying = peaks[order], makespans[order], carrying[order]

    def __len__(self) -> int:
        return len(self.peaks)

    def __repr__(self) -> str:
        ends = f"{format_bytes(int(self.peaks[0]))} .. {format_bytes(int(self.peaks[-1]))}"
        within = f", within {self.tolerance:.3g} of the optimum" if self.tolerance else ""
        return f"<Frontier of {len(self)} points, {ends}{within}>"

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the solver's tables occupy."""
        return self.tables.nbytes + (0 if self.carried is None else self.carried.nbytes)

    @property
    def smallest(self) -> int:
        """The least feasible budget in bytes."""
        return int(self.peaks[0])

    @cached_property
    def plain(self) -> int:
        """Bytes of plain training's peak: the last point, from which on nothing is run again.

        It stays plain training's where a tolerance left that point out, where stages that take no
        time can be run again for nothing, or where carrying takes less.
        """
        return simulate(self.chain, plain_schedule(len(self.chain))).peak

    @cached_property
    def knee(self) -> int:
        """Bytes of the knee: the point farthest below the chord between both ends of the frontier.

        Both axes are scaled to 0 .. 1 between the ends, as in Kneedle (without its smoothing and its
        sensitivity, since a frontier is neither noisy nor still being measured). Where no point lies
        below the chord, for example with one or two points, it is the least feasible budget.

        References
        ----------
        Satopaa, Albrecht, Irwin, Raghavan: Finding a "Kneedle" in a Haystack: Detecting Knee Points in
        System Behavior, ICDCSW 2011, doi:10.1109/ICDCSW.2011.20.
        """
        peaks = self.peaks.tolist()
        times = [nanoseconds(makespan) for makespan in self.makespans.tolist()]
        width, height = peaks[-1] - peaks[0], times[0] - times[-1]
        # Whole numbers: on a straight frontier no point may win by rounding.
        above = [(p - peaks[0]) * height + (t - times[-1]) * width for p, t in zip(peaks, times, strict=True)]
        return int(peaks[above.index(min(above))])

    def budget_for(self, overhead: float | str) -> int:
        """Return the least budget whose plan is at most this much slower than plain training.

        With a tolerance, plans may be faster than ``makespans`` say, which is what is compared here.

        Parameters
        ----------
        overhead
            Share of plain training's makespan, such as ``0.1`` or ``"10%"``; compared exactly, in
            whole nanoseconds.

        Returns
        -------
        int
            Bytes, a point of the frontier.

        Raises
        ------
        BudgetError
            If the overhead is negative, not finite, or no number.
        """
        longest = int(nanoseconds(self.chain.plain_makespan) * (1 + parse_overhead(overhead)))
        slower = sum(nanoseconds(makespan) > longest for makespan in self.makespans.tolist())
        return int(self.peaks[slower]) if slower < len(self) else self.plain

    def plan(self, budget: int | str | None = None, *, overhead: float | str | None = None) -> Plan:
        """Return the optimal plan within a budget, or the one of least peak within an overhead.

        Parameters
        ----------
        budget
            Bytes, or a string such as ``"300MB"`` or ``"300MiB"``. A frontier knows no device, so
            ``"80%"`` is 80 % of plain training's peak here; in ``checkpointed(model, budget="80%")`` and
            ``revolve-plan model --budget 80%`` it is 80 % of what the model's device has free. What
            plain training needs, or more, gives plain training.
        overhead
            Instead of a budget: how much longer than plain training the step may take, as a share
            (``0.1``) or a string (``"10%"``). The budget of the plan is then the least that does it.

        Raises
        ------
        InfeasibleBudget
            If no schedule fits; the error names the least budget that does.
        BudgetError
            If budget or overhead cannot be understood, or not exactly one of them is given.

        Examples
        --------
        >>> frontier = solve(Chain.uniform(4, saved_bytes=3))
        >>> frontier.plan(overhead="25%").peak, frontier.plan("80%").peak, frontier.plain
        (11, 11, 18)
        """
        if (budget is None) == (overhead is None):
            raise BudgetError(
                f"budget={budget!r} and overhead={overhead!r}: a plan is chosen by exactly one of them, "
                "for example plan('300MB') or plan(overhead='10%')"
            )
        if overhead is not None:
            limit = self.budget_for(overhead)
        else:
            assert budget is not None
            limit = parse_bytes(budget, self.plain)
        if limit < self.smallest:
            asked = f"{budget!r} ({limit} bytes)" if isinstance(budget, str) else f"{limit} bytes"
            raise InfeasibleBudget(
                f"budget {asked} is below the least feasible "
                f"{self.smallest} bytes ({format_bytes(self.smallest)}, "
                f"{self.smallest / self.plain:.0%} of plain training); raise the budget, or make "
                "input, batch or stages smaller",
                self.smallest,
                limit,
            )
        if limit >= self.plain:
            return Plan.from_actions(self.chain, plain_schedule(len(self.chain)), "optimal", limit, self.tolerance)
        point = np.searchsorted(self.peaks, limit, side="right") - 1
        source = self.carried if self.carried is not None and self.carrying[point] else self
        actions = generate_optimal(source.tables, int(self.peaks[point]))
        return Plan.from_actions(source.chain, actions, "optimal", limit, self.tolerance)


def lower_bounds(frontier: Frontier, budgets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the least makespans of a frontier within some budgets, infinite where nothing fits."""
    least = np.concatenate(([np.inf], frontier.least_makespans))
    return least[np.searchsorted(frontier.peaks, budgets, side="right")]


def solve(
    chain: Chain, formats: Any = ("dense",), tolerance: float | str = 0.0, *, memory: int | str = "2GiB"
) -> Frontier:
    """Solve a chain exactly, for every budget at once.

    A chain where something leaps over stages is solved twice, holding it and carrying it; for every budget the better
    plan counts.

    Parameters
    ----------
    chain
        The chain, measured or made up.
    formats
        Names of the storage formats that checkpoints and saved tensors may use; ``"dense"`` is always
        allowed. The chain of the plans has no others.
    tolerance
        Let the makespan exceed the optimum by at most this fraction, at every budget, for a faster solve
        of long chains in less memory. ``"auto"`` takes 0 where the tables stay below 256 MiB, else the
        first of 0.01 and 0.1 that keeps them within ``memory``; ``tolerance`` of the result, and its
        representation, say which.
    memory
        Bytes that the solver's tables may occupy, or a string such as ``"2GiB"``.

    Returns
    -------
    Frontier
        Every Pareto point, and ``plan(budget)``.

    Raises
    ------
    ChainError
        If a format is not among the chain's.
    BudgetError
        If tolerance or memory cannot be understood.
    SolverMemoryError
        If the tables need more than ``memory``.

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
    names = check_formats(chain, formats)
    if set(names) != set(chain.formats):  # a plan's chain says what it may use, also when it is planned for again
        chain = replace(chain, formats=MappingProxyType({name: chain.formats[name] for name in names}))
    limit = parse_bytes(memory, what="memory")
    carried = None
    if chain.carried is not None:
        named = replace(chain.carried, name=chain.name, origin=chain.origin)
        carried = solve(named, (), tolerance, memory=limit)
    if tolerance == "auto":
        return Frontier(chain, solve_automatically(chain, names, limit), carried)
    number = tolerance if isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool) else -1
    if not 0 <= number < float("inf"):
        raise BudgetError(f"tolerance={tolerance!r} is not possible; it must be a number of 0 or more, or 'auto'")
    return Frontier(chain, solve_tables(chain, names, float(number), limit), carried)


def check_formats(chain: Chain, formats: Any) -> tuple[str, ...]:
    """Return the names of the non-dense formats, each once."""
    if not isinstance(chain, Chain):
        raise ChainError(f"the chain is a {type(chain).__name__}; pass a revolve.Chain (Chain.load(path) reads a file)")
    names = (formats,) if isinstance(formats, str) else formats
    if not isinstance(names, Iterable):
        raise ChainError(f"formats={formats!r} is not possible; pass names of storage formats, for example ('dense',)")
    names = tuple(dict.fromkeys(name for name in names if name != "dense"))
    for name in names:
        if name not in chain.formats:
            known = ", ".join(["dense", *chain.formats])
            raise ChainError(f"format {name!r} is not among the chain's ({known}); measure with it, or leave it out")
    return names


def solve_automatically(chain: Chain, formats: tuple[str, ...], memory: int) -> Tables:
    """Return the tables of the first tolerance that keeps them small."""
    for tolerance, limit in ((0.0, min(memory, EXACT_MEMORY)), (0.01, memory)):
        try:
            return solve_tables(chain, formats, tolerance, limit)
        except SolverMemoryError:
            continue
    return solve_tables(chain, formats, 0.1, memory)
