"""Rows of Revolve's schedule: the kernel beside the generator, its slow twin."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import revolve as package
from revolve.schedules import (
    ROW_KINDS,
    BudgetError,
    Forward,
    Load,
    Loss,
    Rows,
    Save,
    ScheduleError,
    Store,
    count_forwards,
    optimal_splits,
    revolve,
    sequential,
)
from revolve.schedules.actions import KINDS
from revolve.schedules.generated import Schedule
from revolve.schedules.kernels import binomial as kernel

ROOT = Path(package.__file__).parents[1]

WITHOUT_JIT = """
from numba import config
from revolve.schedules import revolve
from revolve.schedules.kernels.binomial import fill_rows
assert config.DISABLE_JIT and not hasattr(fill_rows, "py_func")
compared = 0
for length in (*range(1, 30), 100):
    for slots in (1, 2, 3, 5, 8, 40):
        for size in (1, 7, 1000):
            actions = [action for rows in revolve(length, slots).chunks(size) for action in rows.actions()]
            assert actions == list(revolve(length, slots)), (length, slots, size)
            compared += 1
print(compared)
"""


def same(one: Rows, other: Rows) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def join(chunks: list[Rows]) -> Rows:
    return Rows(*(np.concatenate(columns) for columns in zip(*chunks, strict=True)))


def test_kind_codes():
    assert set(ROW_KINDS) == set(KINDS)
    assert [getattr(kernel, name.upper()) for name in ROW_KINDS] == list(range(8))


@pytest.mark.parametrize("slots", [*range(1, 21), 59, 60, 61, 1000])
def test_arrays_stand_for_the_actions(slots):
    for length in range(1, 61):
        schedule = revolve(length, slots)
        rows, actions = schedule.arrays(), list(schedule)
        assert list(rows.actions()) == actions, length
        assert rows.count_actions() == len(actions)
        assert same(rows, Schedule.arrays(schedule))  # encoded from the actions: no run is cut


@given(st.integers(1, 2000), st.integers(1, 60), st.integers(1, 400))
@example(1, 1, 1)
@example(400, 400, 1)  # each chunk interrupts the climb
@example(2002, 3, 5)
def test_chunks_are_the_arrays_in_pieces(length, slots, size):
    schedule = revolve(length, slots)
    whole = schedule.arrays()
    chunks = list(islice(schedule.chunks(size), 300))
    assert all(len(rows.kind) == size for rows in chunks[:-1])
    assert 1 <= len(chunks[-1].kind) <= size
    seen = sum(len(rows.kind) for rows in chunks)
    assert seen == min(len(whole.kind), 300 * size)
    assert same(join(chunks), Rows(*(column[:seen] for column in whole)))
    if whole.count_actions() < 20_000:
        assert schedule == list(whole.actions())


def test_a_long_schedule_reverses_every_stage():
    start, stop, kind = revolve(10**6, 100).arrays()
    runs = np.bincount(kind, weights=stop - start, minlength=8).astype(int)
    counts = dict(zip(ROW_KINDS, runs.tolist(), strict=True))
    assert counts["forward"] + counts["save"] + counts["rebuild"] == count_forwards(10**6, 100) + 10**6
    assert np.array_equal(start[kind == ROW_KINDS.index("backward")], np.arange(10**6)[::-1])
    assert counts["store"] == counts["drop"]
    assert runs.sum() == len(revolve(10**6, 100))


def rows_by_splits(length: int, slots: int):
    """Yield rows (kind, start, stop), every split worked out anew by the closed form in exact integers."""
    segments = [(0, length, slots)]
    while segments:
        start, end, free = segments.pop()
        if end < length:
            yield "load", start, start + 1
            if start and end - start == 1:
                yield "drop", start, start + 1
        while end - start > 1:
            middle = start + optimal_splits(end - start, free)[1]
            yield "forward", start, middle
            if end - middle > 1:
                yield "store", middle, middle + 1
            segments.append((start, middle, free))
            start, free = middle, free - 1
        if end == length:
            yield "save", start, end
            yield "loss", end, end + 1
        else:
            yield "rebuild", start, start + 1
        yield "backward", start, start + 1


@pytest.mark.parametrize("length", [3000, 10**9, 2**40 - 1, 2**40])
@pytest.mark.parametrize("slots", [1, 2, 3, 22, 1000, 10**6, 2**30, 2**40])
def test_rows_of_huge_chains_begin_at_once(length, slots):
    rows = next(revolve(length, slots).chunks(5000))
    runs = zip(rows.kind.tolist(), rows.start.tolist(), rows.stop.tolist(), strict=True)
    expected = list(islice(rows_by_splits(length, slots), 5000))
    assert [(ROW_KINDS[kind], start, stop) for kind, start, stop in runs] == expected


def test_stages_take_as_few_bytes_as_they_can():
    for length, stages in ((10, np.int32), (2**31 - 2, np.int32), (2**31 - 1, np.int64)):
        rows = next(revolve(length, length).chunks(10))
        assert [column.dtype for column in rows] == [stages, stages, np.int8]
        assert rows.stop[0] == 1
    assert [column.dtype for column in sequential(9, 3).arrays()] == [np.int64, np.int64, np.int8]
    assert Rows(np.zeros(3, np.int32), np.full(3, 2**30, np.int32), np.zeros(3, np.int8)).count_actions() == 3 * 2**30


def test_more_stages_than_the_integers_hold_are_refused():
    schedule = revolve(2**40 + 1, 3)
    for rows in (schedule.arrays, schedule.chunks):
        with pytest.raises(BudgetError, match=r"2\*\*40 stages, or iterate"):
            rows()
    assert next(iter(schedule)).to_json() == ["forward", 0]


@pytest.mark.parametrize("schedule", [revolve(9, 3), sequential(9, 3)])
@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_impossible_sizes(schedule, size):
    with pytest.raises(BudgetError, match=r"^size="):
        schedule.chunks(size)


def test_rows_of_any_schedule():
    schedule = sequential(9, 3)
    rows = schedule.arrays()
    assert list(rows.actions()) == list(schedule)
    assert same(join(list(schedule.chunks(4))), rows)
    assert [len(chunk.kind) for chunk in schedule.chunks(10)] == [10, 10, 7]
    assert [column.tolist() for column in rows][:2] == [
        [0, 3, 3, 6, 6, 7, 8, 9, 8, 7, 6, 6, 3, 3, 4, 5, 5, 4, 3, 3, 0, 0, 1, 2, 2, 1, 0],
        [3, 4, 6, 7, 7, 8, 9, 10, 9, 8, 7, 7, 4, 4, 5, 6, 6, 5, 4, 4, 1, 1, 2, 3, 3, 2, 1],
    ]
    assert [len(column) for column in Schedule(lambda: iter(())).arrays()] == [0, 0, 0]


def test_only_ascending_forwards_make_a_run():
    actions = [Forward(0), Forward(1), Forward(4), Forward(3), Save(2), Loss(), Load(7), Forward(7)]
    start, stop, kind = Schedule(lambda: iter(actions)).arrays()
    assert start.tolist() == [0, 4, 3, 2, 3, 7, 7]
    assert stop.tolist() == [2, 5, 4, 3, 4, 8, 8]
    assert [ROW_KINDS[code] for code in kind] == ["forward"] * 3 + ["save", "loss", "load", "forward"]
    assert list(Rows(start, stop, kind).actions()) == actions


def test_rows_have_no_formats():
    schedule = Schedule(lambda: iter([Store(1, "dense"), Store(2, "bitmap")]))
    with pytest.raises(ScheduleError, match="iterate over the schedule") as caught:
        schedule.arrays()
    assert caught.value.position == 1


def test_the_kernel_agrees_with_the_generator_without_the_jit():
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_JIT],
        env={**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_DISABLE_JIT": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) == 30 * 6 * 3
