"""Uniform segments, as torch's checkpoint_sequential cuts them and balanced."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from revolve.schedules import BudgetError, Chain, sequential, simulate
from revolve.schedules.segments import segment_starts

EVERY_SPLIT = [(length, segments) for length in range(1, 13) for segments in range(1, length + 1)]


def lengths(length: int, segments: int, *, balanced: bool = False) -> list[int]:
    starts = [*segment_starts(length, segments, balanced=balanced), length]
    return [end - start for start, end in pairwise(starts)]


def test_torch_gives_the_rest_to_the_last_segment():
    assert lengths(9, 5) == [1, 1, 1, 1, 5]
    assert lengths(10, 3) == [3, 3, 4]
    assert lengths(4, 1) == [4]


def test_balanced_lengths():
    assert lengths(9, 5, balanced=True) == [2, 2, 2, 2, 1]
    assert lengths(10, 3, balanced=True) == [4, 3, 3]


@pytest.mark.parametrize(("length", "segments"), EVERY_SPLIT)
def test_every_split_covers_the_chain(length, segments):
    size = length // segments
    assert lengths(length, segments) == [size] * (segments - 1) + [length - size * (segments - 1)]
    balanced = lengths(length, segments, balanced=True)
    assert sum(balanced) == length
    assert len(balanced) == segments
    assert max(balanced) - min(balanced) <= 1


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(("length", "segments"), EVERY_SPLIT)
def test_every_schedule_is_valid_and_runs_all_but_the_last_segment_twice(length, segments, balanced):
    actions = list(sequential(length, segments, balanced=balanced))
    judged = simulate(Chain.uniform(length), actions)
    last = lengths(length, segments, balanced=balanced)[-1]
    counts = Counter(action.kind for action in actions)
    assert judged.makespan == 2 * length + (length - last)
    assert counts["forward"] == length - last
    assert counts["store"] == counts["drop"] == segments - 1
    assert counts["rebuild"] == segments - 1


def test_golden_schedule():
    assert [action.to_json() for action in sequential(5, 2)] == [
        *(["forward", 0], ["forward", 1], ["store", 2, "dense"], ["save", 2], ["save", 3], ["save", 4], ["loss"]),
        *(["backward", 4], ["backward", 3], ["backward", 2], ["drop", 2]),
        *(["load", 0], ["save", 0], ["rebuild", 1], ["backward", 1], ["backward", 0]),
    ]


@pytest.mark.parametrize(
    ("length", "segments", "named"),
    [
        (0, 1, "length=0"),
        (3, 0, "segments=0"),
        (3, 4, "segments=4 is more than the 3 stages"),
        (3, "2", "segments='2'"),
    ],
)
def test_impossible_splits(length, segments, named):
    with pytest.raises(BudgetError, match=rf"^{named}"):
        sequential(length, segments)
