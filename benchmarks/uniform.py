"""Revolve's schedules of uniform chains: revolve beside pyrevolve and checkpoint_schedules.

Contestants alternate in one process, after a warm-up run each; times are medians of CPU time for a
whole schedule. An item is what a contestant yields: an action object of revolve, a row of its arrays, an
action of the others, which also run through many stages in one forward. Beside items a second the table
has actions a second, where a forward through n stages counts n times. Every schedule is checked to run
the least possible number of forwards.

The C++ core of pyrevolve is called from compiled code, without its Python layer, and writes nothing;
the arrays of revolve are written to memory. The others are compared where they are installed:

    pip install checkpoint_schedules pyrevolve
    python benchmarks/uniform.py [--repeats 7] [--limit 120]
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

import numba
from numba import njit

from revolve.schedules import ROW_KINDS, Rows, count_forwards, ratio_for, revolve, slots_for

SIZES = ((1000, 10), (1000, 100), (10**4, 10), (10**5, 100), (10**6, 100))
HEADINGS = ("stages", "slots", "contestant", "CPU seconds", "items", "million items/s", "million actions/s", "runs")
SLOW = 4.0  # seconds; what takes longer runs once more after its warm-up, not --repeats times
CODE = """
import time, checkpoint_schedules
started = time.process_time()
list(checkpoint_schedules.Revolve({length}, {slots}))
print(time.process_time() - started)
"""


class Counts(NamedTuple):
    """What a schedule consists of: items, and the stages that its forwards run, taped runs included."""

    items: int
    forward_items: int
    forwards: int

    @property
    def actions(self) -> int:
        """Items, every stage of a forward counted."""
        return self.items - self.forward_items + self.forwards


class Contestant(NamedTuple):
    """A way to make a schedule."""

    name: str
    longest: int  # most stages worth waiting for
    run: Callable[[int, int], Any]
    count: Callable[[int, int, Any], Counts]


def count_rows(rows: Rows) -> Counts:
    runs = [rows.kind == ROW_KINDS.index(name) for name in ("forward", "save", "rebuild")]
    forward = runs[0] | runs[1] | runs[2]
    return Counts(len(rows.kind), int(forward.sum()), int((rows.stop - rows.start)[forward].sum()))


def own_contestants() -> list[Contestant]:
    def drain(items: Any) -> None:
        deque(items, maxlen=0)

    def count_actions(length: int, slots: int, _: Any) -> Counts:
        counts = count_rows(revolve(length, slots).arrays())
        return counts._replace(items=counts.actions, forward_items=counts.forwards)

    def count_chunks(length: int, slots: int, _: Any) -> Counts:
        return Counts(*map(sum, zip(*map(count_rows, revolve(length, slots).chunks()), strict=True)))

    longest = sys.maxsize
    return [
        Contestant(
            "revolve, arrays",
            longest,
            lambda length, slots: revolve(length, slots).arrays(),
            lambda length, slots, rows: count_rows(rows),
        ),
        Contestant(
            "revolve, arrays in chunks",
            longest,
            lambda length, slots: drain(revolve(length, slots).chunks()),
            count_chunks,
        ),
        Contestant("revolve, objects", longest, lambda length, slots: drain(revolve(length, slots)), count_actions),
    ]


def pyrevolve_contestants() -> list[Contestant]:
    from pyrevolve import crevolve
    from pyrevolve.schedulers import Action, CRevolve

    library = ctypes.CDLL(crevolve.__file__)

    def bind(name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
        return function

    # A CRevolve is a struct of one pointer, which is passed as an integer of that size.
    create = bind("revolve_create_offline", ctypes.c_uint64, ctypes.c_int, ctypes.c_int)
    destroy = bind("revolve_destroy", None, ctypes.c_uint64)
    following = bind("revolve", ctypes.c_int, ctypes.c_uint64)
    position = bind("revolve_getcapo", ctypes.c_int, ctypes.c_uint64)
    position_before = bind("revolve_getoldcapo", ctypes.c_int, ctypes.c_uint64)
    advance, terminate = 0, 5

    @njit
    def drain(core):
        items = 0
        while following(core) < terminate:
            items += 1
        return items

    @njit
    def count(core):
        items = runs = stages = 0
        kind = following(core)
        while kind < terminate:
            items += 1
            if kind == advance:
                runs += 1
                stages += position(core) - position_before(core)
            kind = following(core)
        return items, runs, stages

    def with_core(function: Callable[[int], Any], length: int, slots: int) -> Any:
        core = create(length, slots)
        result = function(core)
        destroy(core)
        return result

    def count_core(length: int, slots: int, _: Any) -> Counts:
        items, runs, stages = with_core(count, length, slots)
        return Counts(items, runs + length, stages + length)  # firstrun and youturn tape one stage each

    def count_objects(length: int, slots: int, scheduler: Any) -> Counts:
        runs = [action.capo - action.old_capo for action in scheduler.oplist if action.type == Action.ADVANCE]
        return Counts(len(scheduler.oplist), len(runs) + length, sum(runs) + length)

    return [
        Contestant("pyrevolve, C++ core", 2**31, lambda length, slots: with_core(drain, length, slots), count_core),
        Contestant("pyrevolve, objects", 10**5, lambda length, slots: CRevolve(slots, length), count_objects),
    ]


def checkpoint_schedules_contestants() -> list[Contestant]:
    import checkpoint_schedules as peer

    def count(length: int, slots: int, actions: list[Any]) -> Counts:
        runs = [len(action) for action in actions if isinstance(action, peer.Forward)]
        return Counts(len(actions), len(runs), sum(runs))

    return [
        Contestant(
            "checkpoint_schedules, objects", 1000, lambda length, slots: list(peer.Revolve(length, slots)), count
        )
    ]


def find_contestants() -> list[Contestant]:
    """Return those that are installed; say how to install the others."""
    contestants = own_contestants()
    peers = {"pyrevolve": pyrevolve_contestants, "checkpoint_schedules": checkpoint_schedules_contestants}
    for name, make in peers.items():
        if find_spec(name) is None:
            print(f"{name} is not installed, so its rows are missing: pip install {name}")
        else:
            print(f"{name} {metadata.version(name)}")
            contestants += make()
    return contestants


def seconds(function: Callable[[], Any]) -> float:
    """Return the CPU time of one call; what it returns is freed afterwards."""
    started = time.process_time()
    kept = function()
    elapsed = time.process_time() - started
    del kept
    return elapsed


def compare(contestants: list[Contestant], length: int, slots: int, repeats: int) -> None:
    """Print the rows of one chain."""
    taking_part = [contestant for contestant in contestants if length <= contestant.longest]
    counts, times = [], []
    for contestant in taking_part:
        warm_up = time.process_time()
        result = contestant.run(length, slots)
        warm_up = time.process_time() - warm_up
        counts.append(contestant.count(length, slots, result))
        times.append([] if warm_up < SLOW else [seconds(lambda: contestant.run(length, slots))])  # noqa: B023
        del result
        if counts[-1].forwards != count_forwards(length, slots) + length:
            raise AssertionError(f"{contestant.name} runs {counts[-1].forwards} forwards, not the least number")
    slow = [bool(measured) for measured in times]
    for _ in range(repeats):
        for contestant, measured, once in zip(taking_part, times, slow, strict=True):
            if not once:
                measured.append(seconds(lambda: contestant.run(length, slots)))  # noqa: B023
    for contestant, count, measured in zip(taking_part, counts, times, strict=True):
        taken = median(measured)
        rates = (f"{number / taken / 1e6:.3g}" for number in (count.items, count.actions))
        print_row((length, slots, contestant.name, f"{taken:.3g}", count.items, *rates, len(measured)))


def time_alone(length: int, slots: int, limit: float) -> None:
    """Print how long checkpoint_schedules takes for a chain that may take minutes."""
    code = CODE.format(length=length, slots=slots)
    try:
        finished = subprocess.run(
            [sys.executable, "-c", code], timeout=limit, check=True, capture_output=True, text=True
        )
        taken = f"{float(finished.stdout):.3g}"
    except subprocess.TimeoutExpired:
        taken = f"over {limit:g}, stopped"
    print_row((length, slots, "checkpoint_schedules, objects", taken, "", "", "", 1))


def print_row(cells: tuple[Any, ...]) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--limit", type=float, default=120, help="seconds for checkpoint_schedules at 10000 stages")
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, numba {numba.__version__}, {platform.machine()}, one thread")
    contestants = find_contestants()
    for contestant in contestants:
        contestant.count(10, 3, contestant.run(10, 3))  # compiles
    print_row(HEADINGS)
    print_row(("---",) * len(HEADINGS))
    for length, slots in SIZES:
        compare(contestants, length, slots, options.repeats)
        if length == 10**4 and options.limit > 0 and find_spec("checkpoint_schedules"):
            time_alone(length, slots, options.limit)
    print()
    questions = {
        "ratio_for(10**9, 100)": lambda: ratio_for(10**9, 100),
        "slots_for(10**9, 2.5)": lambda: slots_for(10**9, 2.5),
    }
    for question, ask in questions.items():
        taken = median(seconds(ask) for _ in range(101))
        print(f"{question} = {ask()} in {taken * 1e6:.0f} microseconds")


if __name__ == "__main__":
    main()
