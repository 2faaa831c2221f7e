"""The single-level optimum against every schedule of its class, tried one by one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_chains import random_chain

from revolve.schedules import Chain, InfeasibleBudget, plan_single_level, simulate, solve
from revolve.schedules.plans import plain_schedule
from revolve.schedules.segments import schedule_from_segments
from revolve.schedules.subsets import SubsetTables


def every_choice(start: int, length: int) -> Iterator[list[tuple[int, int]]]:
    """Yield every way to save stages or to put them into segments, from a stage on."""
    if start == length:
        yield []
        return
    yield from every_choice(start + 1, length)
    for end in range(start + 1, length + 1):
        for rest in every_choice(end, length):
            yield [(start, end), *rest]


def judge_all(chain: Chain) -> list[tuple[float, int]]:
    """Return makespan and peak of every schedule of the class."""
    length = len(chain)
    found = []
    for segments in every_choice(0, length):
        judged = simulate(chain, schedule_from_segments(segments, length, hold=False))
        found.append((judged.makespan, judged.peak))
    return found


def spike(chain: Chain, rng: random.Random) -> Chain:
    """Return the chain with some transient bytes so large that they alone decide what fits."""
    extras = ("forward_extra", "save_extra", "rebuild_extra", "backward_extra")
    stages = [
        replace(stage, **{name: 200 for name in extras if rng.random() < 0.15}) if rng.random() < 0.5 else stage
        for stage in chain.stages
    ]
    return replace(chain, stages=tuple(stages))


def test_number_of_choices():
    # Each stage is saved, begins a segment, or continues one: 2, 5, 13, ... as every other Fibonacci number.
    assert [sum(1 for _ in every_choice(0, length)) for length in range(1, 7)] == [2, 5, 13, 34, 89, 233]


@pytest.mark.parametrize("largest", [3, 20, 1000])
@pytest.mark.parametrize("spiky", [False, True])
def test_equal_to_brute_force_at_every_budget(largest, spiky):
    rng = random.Random(largest)
    for index in range(40):
        chain = random_chain(rng, rng.randint(1, 6), formats=0, largest=largest, consistent=index % 2 == 0)
        if spiky:
            chain = spike(chain, rng)
        found = judge_all(chain)
        for budget in sorted({peak + step for _, peak in found for step in (-1, 0)}):
            fitting = [(makespan, peak) for makespan, peak in found if peak <= budget]
            if fitting:
                plan = plan_single_level(chain, budget)
                assert (plan.makespan, plan.peak) == min(fitting)
                assert plan.budget == budget
                assert plan.strategy == "single_level"
            elif budget >= 0:
                with pytest.raises(InfeasibleBudget, match=f"budget {budget} bytes") as caught:
                    plan_single_level(chain, budget)
                assert caught.value.smallest == min(peak for _, peak in found)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 25), st.integers(0, 100))
def test_tables_and_judge_agree_on_longer_chains(seed, length, percent):
    chain = random_chain(random.Random(seed), length, formats=0)
    top = simulate(chain, plain_schedule(length)).peak
    tables = SubsetTables(chain, top)
    sizes, times = tables.steps[0, True]
    assert sizes[0] == tables.least
    index = len(sizes) * percent // 101
    plan = plan_single_level(chain, int(sizes[index]))
    assert plan.peak == sizes[index]
    assert round(plan.makespan * 1e9) == times[index]
    assert max(Counter(a.index for a in plan.actions if a.kind in ("forward", "save", "rebuild")).values()) <= 2
    assert solve(chain).plan(plan.peak).makespan <= plan.makespan


def test_plain_training_where_it_fits():
    chain = random_chain(random.Random(5), 30, formats=0)
    assert plan_single_level(chain, "100%").plain
    assert plan_single_level(chain, "100%").budget == simulate(chain, plain_schedule(30)).peak


def test_what_is_worth_running_again_by_hand():
    # Stage 1 holds 90 bytes and takes 1 s, stage 0 holds 60 and takes 9 s: within 200, only stage 1 is run again.
    stages = [
        {"forward": forward, "backward": 1, "output_bytes": 10, "saved_bytes": saved, "backward_extra": 0}
        for forward, saved in ((9, 60), (1, 90), (5, 70))
    ]
    chain = Chain.from_json({"format": "revolve.chain/1", "input_bytes": 10, "stages": stages})
    plan = plan_single_level(chain, 200)
    assert [action.to_json() for action in plan.actions] == [
        *(["save", 0], ["store", 1, "dense"], ["forward", 1], ["save", 2], ["loss"], ["backward", 2]),
        *(["load", 1], ["drop", 1], ["rebuild", 1], ["backward", 1], ["backward", 0]),
    ]


@pytest.mark.slow
def test_long_chains_have_few_labels():
    rng = random.Random(2)
    document = random_chain(rng, 150, largest=10**8, formats=0).to_json()
    for stage in document["stages"]:
        stage["forward"] = stage["backward"] = rng.random()
        stage["rebuild"] = 0.9 * stage["forward"]
    chain = Chain.from_json(document)
    tables = SubsetTables(chain, simulate(chain, plain_schedule(150)).peak)
    assert max(len(sizes) for sizes, _ in tables.steps.values()) < 20_000
    assert plan_single_level(chain, "40%").ratio < 1.5
