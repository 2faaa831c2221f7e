"""How the solver's tables are filled: equal windows once, on all cores, within a tolerance and a bound of memory."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_chains import random_chain

from revolve.schedules import (
    BudgetError,
    Chain,
    ChainError,
    SolverMemoryError,
    plan_discretised,
    plan_single_level,
    solve,
)
from revolve.schedules import frontier as frontier_module
from revolve.schedules import tables as tables_module
from revolve.schedules.costs import SaveMode

seeds = st.integers(0, 2**32)
properties = settings(max_examples=40, deadline=None)


def large_chain(length: int, seed: int = 0) -> Chain:
    """Return a chain with sizes of a real network, so that nearly every step is distinct."""
    return random_chain(random.Random(seed), length, largest=10**7, formats=0)


def with_repeats(seed: int, formats: int, modes: bool) -> Chain:
    """Return a chain of few kinds of stages in a random order, with runs of equal ones.

    In half of them all activations have the same size, so that equal windows may follow different stages.
    """
    rng = random.Random(seed)
    chain = random_chain(rng, 3, formats=formats, modes=modes)
    picks = [index for index in rng.choices(range(3), k=4) for _ in range(rng.randint(1, 3))]
    document = chain.to_json()
    if rng.random() < 0.5:
        for stage in document["stages"]:
            stage["output_bytes"] = document["input_bytes"]
    document["stages"] = [document["stages"][index] for index in picks]
    for costs in document["formats"].values():
        for key, values in costs.items():
            first = [] if key in SaveMode._fields else values[:1]
            costs[key] = [*first, *(values[index] for index in picks)]
    return Chain.from_json(document)


def steps_of_all_cells(chain: Chain) -> dict[tuple[int, ...], list[list[int]]]:
    """Return the step function of every cell that has one."""
    tables = solve(chain, formats=tuple(chain.formats)).tables
    cells = {}
    for cell in zip(*np.nonzero(tables.count), strict=True):
        part = slice(tables.first[cell], tables.first[cell] + tables.count[cell])
        cells[cell] = [steps[part].tolist() for steps in tables.steps]
    return cells


class Distinct(tables_module.EqualWindows):
    """Takes no two windows for equal."""

    def __init__(self, classes):
        super().__init__(np.arange(len(classes)))


@properties
@given(seeds, st.integers(0, 1), st.booleans())
def test_equal_windows_are_solved_once_with_the_same_result(seed, formats, modes):
    chain = with_repeats(seed, formats, modes)
    found = steps_of_all_cells(chain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables_module, "EqualWindows", Distinct)
        assert steps_of_all_cells(chain) == found


def test_equal_stages_cost_little_memory():
    block = random_chain(random.Random(1), 3, largest=10**7, formats=0)
    repeated = replace(block, stages=(block.stages[0], *block.stages[1:2] * 30, block.stages[2]))
    different = large_chain(32, 1)
    assert solve(repeated).nbytes < solve(different).nbytes / 5


@properties
@given(seeds, st.integers(3, 12), st.sampled_from([0.0, 0.02]), st.booleans())
def test_threads_change_nothing(seed, length, tolerance, modes):
    chain = random_chain(random.Random(seed), length, largest=1000, modes=modes)
    alone = solve(chain, formats=tuple(chain.formats), tolerance=tolerance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables_module, "STEPS_THAT_PAY", 0)
        patch.setattr(tables_module.os, "sched_getaffinity", lambda process: range(3), raising=False)
        together = solve(chain, formats=tuple(chain.formats), tolerance=tolerance)
    assert together.peaks.tolist() == alone.peaks.tolist()
    assert together.makespans.tolist() == alone.makespans.tolist()
    assert together.least_makespans.tolist() == alone.least_makespans.tolist()
    assert together.plan(together.smallest) == alone.plan(alone.smallest)


@properties
@given(seeds, st.integers(4, 16), st.sampled_from([0.001, 0.01, 0.05, 0.5]), st.booleans())
def test_a_tolerance_encloses_the_optimum(seed, length, tolerance, modes):
    chain = random_chain(random.Random(seed), length, largest=10**6, modes=modes)
    formats = tuple(chain.formats)
    exact, rough = solve(chain, formats), solve(chain, formats, tolerance)
    assert (exact.least_makespans == exact.makespans).all()
    assert (rough.makespans <= (1 + tolerance) * rough.least_makespans).all()
    serving = np.searchsorted(rough.peaks, exact.peaks, side="right") - 1
    assert (rough.least_makespans[serving] <= exact.makespans).all()
    assert (exact.makespans <= rough.makespans[serving]).all()
    for budget in (rough.smallest, rough.knee, *rough.peaks[:: max(len(rough) // 4, 1)].tolist()):
        point = np.searchsorted(rough.peaks, budget, side="right") - 1
        plan = rough.plan(int(budget))
        assert plan.peak <= budget
        assert plan.makespan <= rough.makespans[point]
    # Both ends are exact.
    assert (rough.peaks[0], rough.peaks[-1]) == (exact.peaks[0], exact.peaks[-1])
    assert rough.makespans[-1] == exact.makespans[-1]


def test_a_tolerance_saves_most_of_the_memory_of_a_long_chain():
    chain = large_chain(60)
    assert solve(chain, tolerance=0.05).nbytes < solve(chain).nbytes / 2


def test_tables_that_would_need_too_much_memory():
    chain = large_chain(30)
    needed = solve(chain).nbytes
    with pytest.raises(SolverMemoryError, match=rf"tables exceed memory={needed - 1} bytes .* tolerance=0.01"):
        solve(chain, memory=needed - 1)
    assert solve(chain, memory=needed).nbytes == needed


def test_an_index_that_alone_needs_too_much_memory():
    with pytest.raises(SolverMemoryError, match=r"20 stages need .* more than memory=1000 bytes"):
        solve(Chain.uniform(20), memory=1000)


def test_a_tolerance_that_does_not_help_is_not_recommended():
    chain = large_chain(30)
    needed = solve(chain, tolerance=0.02).nbytes
    with pytest.raises(SolverMemoryError, match=r"pass a tolerance above 0.02"):
        solve(chain, tolerance=0.02, memory=needed - 1)


@pytest.mark.parametrize(
    ("length", "fields", "words"),
    [
        (2, {"forward": 2.4e8, "backward": 2.4e8}, "stages are too long"),
        (100, {"forward": 1e6}, "stages are too long"),
        (100, {"saved_bytes": 2**52}, "too large to add up"),
    ],
)
def test_what_does_not_fit_in_whole_numbers(length, fields, words):
    for attempt in (solve, lambda chain: plan_discretised(chain, 100), lambda chain: plan_single_level(chain, 100)):
        with pytest.raises(ChainError, match=words):
            attempt(Chain.uniform(length, **fields))


@pytest.mark.parametrize("memory", ["lots", -1, None, "80%"])
def test_memory_that_cannot_be_understood(memory):
    with pytest.raises(BudgetError):
        solve(Chain.uniform(2), memory=memory)


def test_the_automatic_tolerance_says_what_it_chose(monkeypatch):
    chain = large_chain(40)
    exact = solve(chain, tolerance="auto")
    assert (exact.tolerance, exact.nbytes) == (0.0, solve(chain).nbytes)
    assert "within" not in repr(exact)
    monkeypatch.setattr(frontier_module, "EXACT_MEMORY", exact.nbytes - 1)
    near = solve(chain, tolerance="auto")
    assert near.tolerance == near.plan(near.smallest).tolerance == 0.01
    assert "within 0.01 of the optimum" in repr(near)
    far = solve(chain, tolerance="auto", memory=near.nbytes - 1)
    assert far.tolerance == 0.1
    with pytest.raises(SolverMemoryError):
        solve(chain, tolerance="auto", memory=far.nbytes - 1)
