"""Recompute ratios of uniform chains: against the judge, the published curves and plain search."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revolve.schedules import BudgetError, Chain, count_forwards, ratio_for, revolve, simulate, slots_for

# arXiv 1903.03051: the least number of slots whose recompute ratio is at most 1.0, 1.1, ... 2.1, read off its curves.
POSTER = {
    18: (18, 15, 11, 8, 5, 4, 4, 3, 3, 3, 3, 3),
    34: (34, 28, 21, 14, 7, 7, 6, 5, 4, 4, 4, 3),
    50: (50, 40, 30, 20, 10, 8, 7, 6, 5, 5, 4, 4),
    101: (101, 81, 61, 41, 21, 12, 11, 9, 7, 7, 6, 6),
    152: (152, 122, 92, 61, 31, 16, 14, 12, 9, 8, 7, 7),
}

# Derived from the same: length, slots, least ratio of a network that has to fit 2 GB.
LEAST_RATIOS = [
    (50, 44, 1.060),
    (101, 49, 1.257),
    (152, 43, 1.359),
    (101, 77, 1.119),
    (152, 67, 1.280),
    (18, 15, 1.083),
    (34, 17, 1.250),
    (50, 8, 1.480),
    (101, 9, 1.688),
    (152, 8, 1.829),
    (18, 13, 1.139),
    (34, 15, 1.279),
    (50, 7, 1.580),
    (101, 8, 1.743),
    (152, 7, 1.970),
]


def from_poster(length: int, ratio: Fraction) -> Fraction:
    """Return ``ratio_for`` of length + 1 stages where the poster's ratio of ``length`` is this one."""
    return 1 + (ratio - Fraction(1, 2)) * length / (length + 1)


@pytest.mark.parametrize("length", POSTER)
def test_curves_of_the_poster(length):
    def least_slots(tenths: int) -> int:
        # Forward and backward take 1 each and the chain has an initial stage of its own: rho = (t(l + 1, c) + l) / 2l.
        fits = (c for c in range(1, length + 1) if 10 * (count_forwards(length + 1, c) + length) <= 2 * length * tenths)
        return next(fits)

    assert tuple(least_slots(tenths) for tenths in range(10, 22)) == POSTER[length]
    converted = (slots_for(length + 1, from_poster(length, Fraction(tenths, 10))) for tenths in range(10, 22))
    assert tuple(converted) == POSTER[length]


@pytest.mark.parametrize(("length", "slots", "ratio"), LEAST_RATIOS)
def test_ratios_of_the_poster(length, slots, ratio):
    assert 0.5 + (length + 1) / length * (ratio_for(length + 1, slots) - 1) == pytest.approx(ratio, abs=0.00051)


@pytest.mark.parametrize("backward", [0.5, 1, 2.0])
def test_ratios_are_those_of_the_judge(backward):
    for length in (1, 2, 5, 17, 40):
        chain = Chain.uniform(length, backward=backward)
        for slots in (1, 2, 3, 8, 50):
            judged = simulate(chain, revolve(length, slots)).makespan / (length + length * backward)
            assert ratio_for(length, slots, backward=backward) == pytest.approx(judged, rel=1e-12)


def exact_ratio(length: int, slots: int, backward: Fraction) -> Fraction:
    return 1 + count_forwards(length, slots) / (length * (1 + backward))


@given(st.integers(1, 60), st.fractions(1, 20, max_denominator=1000), st.fractions(0, 5, max_denominator=7))
def test_slots_for_is_the_least_number(length, ratio, backward):
    fitting = [slots for slots in range(1, length + 1) if exact_ratio(length, slots, backward) <= ratio]
    if fitting:
        assert slots_for(length, ratio, backward=backward) == fitting[0]
    else:
        with pytest.raises(BudgetError, match="ask for a ratio of"):
            slots_for(length, ratio, backward=backward)


@given(st.integers(2, 10**12), st.integers(1, 10**4), st.sampled_from([0, 0.1, 1.0, Fraction(1, 3), 2]))
def test_slots_and_ratios_are_inverse(length, slots, backward):
    slots = min(slots, length - 1)
    ratio = ratio_for(length, slots, backward=backward)
    exact = exact_ratio(length, slots, Fraction(backward))
    assert exact <= Fraction(ratio) <= exact * (1 + Fraction(1, 2**52))
    least = slots_for(length, ratio, backward=backward)
    assert least <= slots
    assert ratio_for(length, least, backward=backward) == ratio
    assert slots_for(length, exact, backward=backward) == slots


def test_a_float_stands_for_itself():
    assert count_forwards(10, 4) == 14  # 1 + 14 / 20 = 17/10 exactly, and the float 1.7 is a little less
    assert slots_for(10, Fraction(17, 10)) == 4
    assert slots_for(10, 1.7) == 5
    assert ratio_for(10, 4) > 1.7
    assert slots_for(10, ratio_for(10, 4)) == 4


def test_a_billion_stages_take_no_time():
    started = time.process_time()
    ratio = ratio_for(10**9, 100)
    slots = slots_for(10**9, ratio)
    assert slots_for(10**9, 10**8) == 2
    assert ratio_for(10**9, 1) == 250000000.75
    assert time.process_time() - started < 0.1  # measured: below a millisecond
    assert slots == 100


def test_ratios_that_no_number_of_slots_reaches():
    with pytest.raises(
        BudgetError, match=r"^ratio=1\.2 is not possible for 10 stages .* ratio of [\d.]+ or more$"
    ) as caught:
        slots_for(10, 1.2)
    least = float(str(caught.value).split()[-3])
    assert least == pytest.approx(1.45)  # 9 stages run once more: 1 + 9 / 20
    assert slots_for(10, least) == 9


@pytest.mark.parametrize("ratio", [0.99, 0, -1, float("nan"), float("inf"), "2", None, True])
def test_impossible_ratios(ratio):
    with pytest.raises(BudgetError, match=r"^ratio=.* is not possible; ratio must be a finite number of 1 or more$"):
        slots_for(100, ratio)


@pytest.mark.parametrize("backward", [-0.1, float("nan"), "1"])
def test_impossible_backward_times(backward):
    for function in (ratio_for, slots_for):
        with pytest.raises(BudgetError, match=r"^backward="):
            function(100, 3, backward=backward)
