"""The solver against its plain twin, on chains too long for the exhaustive search."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import least_makespan, nanoseconds
from random_chains import passing_on, random_chain

from revolve.schedules import Chain, Frontier, InfeasibleBudget, solve


def planned(frontier: Frontier, budget: int) -> int | None:
    """Return the nanoseconds of the plan, None where the solver refuses the budget."""
    try:
        return nanoseconds(frontier.plan(budget).makespan)
    except InfeasibleBudget:
        return None


def assert_twins_agree(chain: Chain, formats: tuple[str, ...], shares: list[float]) -> None:
    """Compare both at points of the frontier, a byte below them, and at shares of the largest peak."""
    frontier = solve(chain, formats=formats)
    points = [int(frontier.peaks[round(share * (len(frontier) - 1))]) for share in (0.0, *shares)]
    anywhere = [int(share * frontier.peaks[-1]) for share in shares]
    for budget in {*points, *(max(point - 1, 0) for point in points), *anywhere, 2 * points[-1]}:
        assert planned(frontier, budget) == least_makespan(chain, budget, formats), f"{budget} bytes"


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    length=st.integers(1, 8),
    largest=st.sampled_from([3, 20, 1000]),
    formats=st.integers(0, 2),
    modes=st.booleans(),
    consistent=st.booleans(),
    transient=st.sampled_from([1, 4]),
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=2),
)
def test_solver_equals_the_plain_recursion(seed, length, largest, formats, modes, consistent, transient, shares):
    rng = random.Random(seed)
    chain = random_chain(rng, length, largest=largest, formats=formats, modes=modes, consistent=consistent)
    # Runs that save nothing decide a peak only where their transient bytes are large.
    stages = (replace(stage, forward_extra=transient * stage.forward_extra) for stage in chain.stages)
    chain = replace(chain, stages=tuple(stages))
    assert_twins_agree(chain, (), shares)
    assert_twins_agree(passing_on(chain, rng), (), shares)
    if formats:
        assert_twins_agree(chain, tuple(chain.formats), shares)


@pytest.mark.parametrize(("length", "formats", "modes"), [(9, 1, False), (12, 0, False), (7, 2, True), (8, 1, True)])
def test_solver_equals_the_plain_recursion_on_longer_chains(length, formats, modes):
    chain = random_chain(random.Random(length), length, largest=1000, formats=formats, modes=modes)
    assert_twins_agree(chain, tuple(chain.formats), [0.1, 0.5, 0.9])


@pytest.mark.parametrize("seed", range(10))
def test_formats_that_save_stages_beside_one_that_does_not(seed):
    # In either order: the solver sorts them.
    chain = random_chain(random.Random(seed), 6, formats=2, modes=True)
    costs = chain.formats["bitmap"]
    plain = replace(costs, saved_bytes=(), encode_time=(), decode_time=(), save_extra=(), backward_extra=())
    chain = replace(chain, formats={**chain.formats, "bitmap": plain})
    for formats in (("bitmap", "host"), ("host", "bitmap")):
        assert_twins_agree(chain, formats, [0.2, 0.6])


@pytest.mark.parametrize("seed", range(12))
def test_a_form_that_is_slow_to_load_beside_a_format_that_is_not(seed):
    # Stages are saved in the first; checkpoints beside what such stages hold are better made in the second, though
    # loading those takes its bytes besides.
    chain = random_chain(random.Random(seed), 5, formats=2, modes=True)
    slow, quick = chain.formats.values()
    slow = replace(slow, load_time=(1.0,) * 6, store_time=(0.0,) * 6, encode_time=(0.0,) * 5, decode_time=(0.0,) * 5)
    slow = replace(slow, saved_bytes=(0,) * 5, save_extra=(0,) * 5, backward_extra=(0,) * 5)
    quick = replace(quick, load_time=(0.0,) * 6, store_time=(0.0,) * 6)
    stages = tuple(replace(s, saves_input=False, saves_output=True, forward_extra=0) for s in chain.stages)
    chain = replace(chain, stages=stages, formats={"bitmap": slow, "host": quick})
    frontier = solve(chain, formats=("bitmap", "host"))
    for budget in range(frontier.smallest, frontier.plain + 1):
        assert planned(frontier, budget) == least_makespan(chain, budget, ("bitmap", "host")), f"{budget} bytes"
