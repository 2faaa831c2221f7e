"""Revolve: counts from the literature, the recurrence behind them, and schedules that the judge accepts."""

from __future__ import annotations

import doctest
from collections import Counter
from functools import cache
from itertools import islice

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from revolve.schedules import (
    BudgetError,
    Chain,
    Loss,
    binomial,
    count_forwards,
    count_slots,
    generated,
    optimal_splits,
    ratios,
    revolve,
    sequential,
    simulate,
)

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


@cache
def treeverse(length: int, slots: int) -> int:
    """Return forwards beyond the taped ones: run to x_k, reverse what is behind, then what is before."""
    if length == 1 or slots == 1:
        return length * (length - 1) // 2
    return min(cost_of_split(length, slots, k) for k in range(1, length))


def cost_of_split(length: int, slots: int, k: int) -> int:
    return k + treeverse(length - k, slots - 1) + treeverse(k, slots)


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
        assert most_held(actions) == count_slots(actions) == min(slots, max(1, length - 1))


def most_held(actions) -> int:
    """Return how many activations are held at a time, at most: x_0 and those stored, by name."""
    held, most = {0}, 1
    for kind, *arguments in (action.to_json() for action in actions):
        if kind == "store":
            assert arguments[0] not in held
            held.add(arguments[0])
        elif kind == "drop":
            held.remove(arguments[0])
        most = max(most, len(held))
    assert held == {0}
    return most


def test_slots_of_other_schedules_count_by_the_same_rule():
    assert most_held(sequential(30, 7)) == count_slots(sequential(30, 7)) == 7
    assert count_slots(sequential(30, 1)) == count_slots([]) == 1


@pytest.mark.parametrize("length", TABLE)
def test_published_counts(length):
    counts = TABLE[length]
    assert tuple(count_forwards(length, slots) for slots in SLOTS[: len(counts)]) == counts


def test_optimal_splits_are_those_of_the_recurrence():
    for length in range(2, 61):
        assert optimal_splits(length, 1) == (length - 1, length - 1)  # without a slot, one stage can be behind it
        for slots in range(2, 21):
            least = treeverse(length, slots)
            best = [k for k in range(1, length) if cost_of_split(length, slots, k) == least]
            lowest, highest = optimal_splits(length, slots)
            assert best == list(range(lowest, highest + 1)), (length, slots)
            assert next(iter(revolve(length, slots).chunks())).stop[0] == highest


@given(st.integers(2, 10**40), st.integers(2, 10**6))
@example(2, 2)
@example(10**9, 44_720)  # r = 2
@example(5152, 100)
def test_optimal_splits_of_long_chains_end_where_the_cost_rises(length, slots):
    def cost(k: int) -> int:
        return k + count_forwards(length - k, slots - 1) + count_forwards(k, slots)

    lowest, highest = optimal_splits(length, slots)
    assert cost(lowest) == cost(highest) == count_forwards(length, slots)
    assert lowest == 1 or cost(lowest - 1) > cost(lowest)
    assert highest == length - 1 or cost(highest + 1) > cost(highest)


def test_closed_forms_at_any_length():
    for length in (10**9, 10**30):
        assert count_forwards(length, 1) == length * (length - 1) // 2
        assert count_forwards(length, length) == length - 1
    # Two slots reverse (r + 1)(r + 2) / 2 stages: 44,720 repetitions reach 1,000,005,981.
    assert count_forwards(10**9, 2) == 44720 * 10**9 - 44722 * 44721 * 44720 // 6
    for length, slots in ((10**30, 2), (10**30, 50), (10**15, 10**9)):
        assert int(repr(revolve(length, slots)).split()[2]) > 5 * length


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


def test_lengths_are_known_without_running():
    for length in range(1, 61):
        for slots in range(1, 21):
            schedule = revolve(length, slots)
            assert len(schedule) == len(list(schedule)), (length, slots)


@pytest.mark.parametrize("function", [revolve, count_forwards, optimal_splits, ratios.ratio_for])
@pytest.mark.parametrize(
    ("length", "slots", "named"),
    [(0, 1, "length=0"), (5, 0, "slots=0"), (-1, 1, "length=-1"), (5, 2.0, r"slots=2\.0"), (True, 1, "length=True")],
)
def test_impossible_counts(function, length, slots, named):
    with pytest.raises(BudgetError, match=rf"^{named} is not possible"):
        function(length, slots)


def test_a_chain_of_one_stage_has_no_split():
    with pytest.raises(BudgetError, match="2 stages or more"):
        optimal_splits(1, 3)


@pytest.mark.parametrize("module", [binomial, generated, ratios])
def test_examples_run(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
