"""The solver's tables: filled by ascending width of the cells, on all cores, within a bound of memory."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .chain import Chain
from .exceptions import SolverMemoryError
from .kernels.frontier import INFINITE, P, candidate, choose, fill_cells
from .plans import plain_schedule
from .problem import classify_stages, describe_chain
from .simulator import simulate
from .units import format_bytes

__all__ = ["Tables", "solve_tables"]

Ints = NDArray[np.int64]
STEPS_THAT_PAY = 4000  # with fewer a width, starting threads costs more than they save


@dataclass(frozen=True, slots=True)
class Tables:
    """The solved recurrence of one chain.

    Attributes
    ----------
    problem
        Arguments that describe the chain to the kernels.
    steps
        The pool of step functions: bytes, least times, times.
    first, count
        Where in the pool the step function of each cell lies.
    formats
        Names of the non-dense formats, in the order of the tables: first those that can save stages.
    length
        Number of stages.
    tolerance
        How far times may exceed the least ones.
    """

    problem: tuple[Any, ...]
    steps: tuple[Ints, Ints, Ints]
    first: Ints
    count: Ints
    formats: tuple[str, ...]
    length: int
    tolerance: float

    def root(self) -> tuple[Ints, Ints, Ints]:
        """Return bytes, least nanoseconds and nanoseconds of the whole chain's frontier."""
        start = self.first[P, 0, self.length]
        end = start + self.count[P, 0, self.length]
        bytes_, least, times = (steps[start:end].copy() for steps in self.steps)
        return bytes_, least, times

    @property
    def modes(self) -> int:
        """How many of the formats can save stages."""
        return len(self.problem[2]) - 2

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the tables occupy."""
        _, _, _, inner, *_ = self.problem
        arrays = {id(array): array.nbytes for array in (*self.steps, self.first, self.count, inner)}
        return sum(arrays.values())

    def choice(self, table: int, s: int, t: int, free: int) -> tuple[int, tuple[Any, ...]]:
        """Return index and candidate that are best in a cell with ``free`` bytes."""
        bytes_, _, times = self.steps
        index = choose(table, s, t, free, bytes_, times, self.first, self.count, *self.problem)
        return index, candidate(table, s, t, index, *self.problem)


def solve_tables(chain: Chain, formats: tuple[str, ...], tolerance: float, memory: int) -> Tables:
    """Fill the tables by ascending width of the cells.

    Parameters
    ----------
    chain
        The chain.
    formats
        Names of the non-dense formats to use.
    tolerance
        0 for the exact frontier.
    memory
        Bytes that the tables may occupy.

    Raises
    ------
    SolverMemoryError
        If they would occupy more.
    """
    length = len(chain)
    formats = tuple(sorted(formats, key=lambda name: not chain.formats[name].saves))
    tables = 2 + 2 * len(formats) + sum(chain.formats[name].saves for name in formats)
    # first, count, and the largest sums that describe_chain makes
    index = 8 * (length + 1) ** 2 * (2 * tables + 1)
    if index > memory:
        raise SolverMemoryError(
            f"{length} stages need {format_bytes(index)} for the index of the solver's tables alone, more than "
            f"memory={memory} bytes; allow more, or join stages"
        )
    problem = describe_chain(chain, formats)
    cap = np.int64(simulate(chain, plain_schedule(length)).peak)
    first = np.zeros((tables, length + 1, length + 1), np.int64)
    count = np.zeros_like(first)
    pool = Pool(tolerance, memory, index)
    alike = EqualWindows(classify_stages(*problem))
    with Crew() as crew:
        for width in range(length + 1):
            starts, same = alike.widen()
            allowed = tolerance * ((width + 1) / (length + 1)) ** 0.25 if tolerance else -1.0
            before = pool.used
            for part, found in crew.fill(starts, (width, *pool.steps, first, count, cap, allowed, *problem)):
                first[:, part, part + width] += pool.append(found)
            if same is not None:
                every = np.arange(length + 1 - width)
                for table in (first, count):
                    table[:, every, every + width] = table[:, same, same + width]
            crew.resize(pool.used - before)
    return Tables(problem, pool.finish(), first, count, formats, length, tolerance)


class EqualWindows:
    """Which windows of a chain consist of equal stages, by ascending width: such cells are solved once."""

    def __init__(self, classes: Ints) -> None:
        self.classes = np.unique(classes, return_inverse=True)[1]
        self.count = len(classes) + 1
        self.codes = np.zeros(self.count, np.int64)  # of windows of no stage
        self.distinct = False

    def widen(self) -> tuple[Ints, Ints | None]:
        """Return the starts of the windows to solve and, unless these are all, the equal one of each.

        The first call is for windows of one stage, each further one for windows wider by one stage.
        """
        self.count -= 1
        if not self.distinct:
            n = len(self.classes)
            codes = self.codes[: self.count] * n + self.classes[n - self.count :]
            _, first, self.codes = np.unique(codes, return_index=True, return_inverse=True)
            self.distinct = len(first) == self.count  # then wider windows are, too
        return (np.arange(self.count), None) if self.distinct else (np.sort(first), first[self.codes])


class Pool:
    """The steps of all solved cells, one after another: bytes, least times and times."""

    def __init__(self, tolerance: float, memory: int, index: int) -> None:
        self.tolerance = tolerance
        self.memory = memory
        self.space = memory - index
        self.used = 1
        bytes_, least = np.full(1024, -INFINITE // 2), np.zeros(1024, np.int64)
        self.steps = (bytes_, least, np.zeros(1024, np.int64) if tolerance else least)
        self.arrays = list({id(array): array for array in self.steps}.values())

    def append(self, found: tuple[Ints, ...]) -> int:
        """Add steps; return the position of the first."""
        start = self.used
        self.used += len(found[0])
        needed = self.used * 8 * len(self.arrays)
        if needed > self.space:
            hint = (
                f"a tolerance above {self.tolerance}"
                if self.tolerance
                else "tolerance=0.01 (within 1 % of the optimum)"
            )
            raise SolverMemoryError(
                f"the solver's tables exceed memory={self.memory} bytes ({format_bytes(self.memory)}); pass {hint} "
                "or more memory"
            )
        if self.used > len(self.steps[0]):
            self.resize(min(self.used + self.used // 2, self.space // (8 * len(self.arrays))))
        for array, new in zip(self.arrays, found, strict=False):
            array[start : self.used] = new
        return start

    def resize(self, room: int) -> None:
        """Change the space in place: large blocks are moved without a second copy."""
        for array in self.arrays:
            array.resize(room, refcheck=False)

    def finish(self) -> tuple[Ints, Ints, Ints]:
        """Give back unused space; return the steps."""
        self.resize(self.used)
        return self.steps


class Crew:
    """The threads that fill the cells of one width, as many as there are cores, once that pays."""

    def __init__(self) -> None:
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = 1
        self.executor: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self.executor is not None:
            self.executor.shutdown()

    def resize(self, steps: int) -> None:
        """Decide on the number of threads from the steps that the last width had."""
        self.threads = self.cores if steps >= STEPS_THAT_PAY else 1
        if self.threads > 1 and self.executor is None:
            self.executor = ThreadPoolExecutor(self.cores - 1)

    def fill(self, todo: Ints, rest: tuple[Any, ...]) -> list[tuple[Ints, tuple[Ints, ...]]]:
        """Fill the cells that start at ``todo``; return the starts of each part with its steps."""
        parts = [part for k in range(self.threads) if len(part := todo[k :: self.threads])]
        others = [self.executor.submit(fill_cells, part, *rest) for part in parts[1:]] if self.executor else []
        found = [fill_cells(parts[0], *rest), *(other.result() for other in others)]
        return list(zip(parts, found, strict=True))
