"""Revolve: counts from the literature, the recurrence behind them, and schedules that the judge accepts."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import islice

import pytest

from revolve.schedules import BudgetError, Chain, Drop, Loss, Store, count_forwards, revolve, simulate

# Griewank and Walther, Algorithm 799: t(l, s), forwards beyond the taped ones.
SLOTS = (1, 2, 3, 4, 5, 8, 10, 16, 20, 25, 50)
TABLE = {
    10: (45, 20, 15, 14, 13, 10),
    18: (153, 55, 39, 33, 29, 26, 24, 18),
    34: (561, 154, 101, 81, 74, 58, 56, 50, 46, 41),
    50: (1225, 285, 180, 144, 122, 95, 88, 82, 78, 73),
    100: (4950, 845, 490, 374, 316, 245, 222, 182, 178, 173, 148),
    152: (11476, 1616, 886, 660, 550, 401, 378, 286, 282, 277, 252),
    1000: (499500, 28820, 12155, 7998, 6284, 4285, 3636, 2860, 2747, 2622, 1948),
}

# arXiv 1903.03051: the least number of slots whose recompute ratio is at most 1.0, 1.1, ... 2.1, read off its curves.
POSTER = {
    18: (18, 15, 11, 8, 5, 4, 4, 3, 3, 3, 3, 3),
    34: (34, 28, 21, 14, 7, 7, 6, 5, 4, 4, 4, 3),
    50: (50, 40, 30, 20, 10, 8, 7, 6, 5, 5, 4, 4),
    101: (101, 81, 61, 41, 21, 12, 11, 9, 7, 7, 6, 6),
    152: (152, 122, 92, 61, 31, 16, 14, 12, 9, 8, 7, 7),
}


@cache
def treeverse(length: int, slots: int) -> int:
    """Return forwards beyond the taped ones: run to x_k, reverse what is behind, then what is before."""
    if length == 1 or slots == 1:
        return length * (length - 1) // 2
    return min(k + treeverse(length - k, slots - 1) + treeverse(k, slots) for k in range(1, length))


def test_counts_equal_the_recurrence():
    for length in range(1, 61):
        for slots in range(1, 21):
            assert count_forwards(length, slots) == treeverse(length, slots), (length, slots)


@pytest.mark.parametrize("slots", range(1, 21))
def test_schedules_are_valid_and_run_as_many_forwards_as_counted(slots):
    for length in range(1, 61):
        actions = list(revolve(length, slots))
        judged = simulate(Chain.uniform(length), actions)
        counts = Counter(action.kind for action in actions)
        runs = counts["forward"] + counts["save"] + counts["rebuild"]
        assert runs == count_forwards(length, slots) + length
        assert judged.makespan == runs + length
        assert counts["save"] + counts["rebuild"] == length
        assert most_stored(actions) <= slots - 1


def most_stored(actions) -> int:
    """Return how many activations are stored at a time, at most."""
    stored = most = 0
    for action in actions:
        stored += isinstance(action, Store) - isinstance(action, Drop)
        most = max(most, stored)
    assert stored == 0
    return most


@pytest.mark.parametrize("length", TABLE)
def test_published_counts(length):
    counts = TABLE[length]
    assert tuple(count_forwards(length, slots) for slots in SLOTS[: len(counts)]) == counts


@pytest.mark.parametrize("length", POSTER)
def test_curves_of_the_poster(length):
    def least_slots(tenths: int) -> int:
        # Forward and backward take 1 each and the chain has an initial stage of its own: rho = (t(l + 1, c) + l) / 2l.
        fits = (c for c in range(1, length + 1) if 10 * (count_forwards(length + 1, c) + length) <= 2 * length * tenths)
        return next(fits)

    assert tuple(least_slots(tenths) for tenths in range(10, 22)) == POSTER[length]


def test_golden_schedule():
    assert [action.to_json() for action in revolve(4, 2)] == [
        *(["forward", 0], ["forward", 1], ["store", 2, "dense"], ["forward", 2], ["save", 3]),
        *(["loss"], ["backward", 3]),
        *(["load", 2], ["drop", 2], ["rebuild", 2], ["backward", 2]),
        *(["load", 0], ["forward", 0], ["rebuild", 1], ["backward", 1]),
        *(["load", 0], ["rebuild", 0], ["backward", 0]),
    ]


def test_slots_for_every_activation_need_no_second_run_but_the_tape():
    counts = Counter(action.kind for action in revolve(30, 30))
    assert counts["forward"] == 29
    assert revolve(30, 300) == revolve(30, 30)


def test_long_chains_need_no_recursion():
    counts = Counter(action.kind for action in revolve(100_000, 20))
    assert counts["forward"] == count_forwards(100_000, 20)
    assert counts["backward"] == 100_000
    assert Loss() in islice(revolve(100_000, 3), 100_010)
    assert sum(1 for action in revolve(5000, 4999) if action.kind == "backward") == 5000


def test_a_schedule_can_be_iterated_again():
    schedule = revolve(20, 3)
    assert list(schedule) == list(schedule)
    assert len(schedule) == len(list(schedule))
    assert schedule != revolve(20, 4)
    assert repr(schedule) == f"<Schedule of {len(schedule)} actions>"


@pytest.mark.parametrize("function", [revolve, count_forwards])
@pytest.mark.parametrize(
    ("length", "slots", "named"),
    [(0, 1, "length=0"), (5, 0, "slots=0"), (-1, 1, "length=-1"), (5, 2.0, r"slots=2\.0"), (True, 1, "length=True")],
)
def test_impossible_counts(function, length, slots, named):
    with pytest.raises(BudgetError, match=rf"^{named} is not possible"):
        function(length, slots)
