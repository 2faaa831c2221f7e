"""Where schedules that are not persistent beat the recurrence, and where none can (docs/solver.md, "The gap")."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import pytest
from exhaustive import least_makespan, nanoseconds
from random_chains import random_chain

from revolve.schedules import Chain, InfeasibleBudget, simulate, solve


class CounterExample(NamedTuple):
    """A chain of unit times, and makespans in seconds; None where the recurrence has no plan."""

    stages: list[dict[str, Any]]
    budget: int
    planned: int | None
    optimum: int
    loss_extra: int = 0

    def chain(self) -> Chain:
        """Return the chain; what is not given is 0, and backward_extra the size of the stage's input."""
        unit = {"forward": 1.0, "backward": 1.0, "output_bytes": 0, "saved_bytes": 0}
        stages = [{**unit, **stage} for stage in self.stages]
        document = {"format": "revolve.chain/1", "input_bytes": 0, "loss_extra": self.loss_extra, "stages": stages}
        return Chain.from_json(document)


# The smallest known of each kind; the first is drawn in docs/gap-optimum.png.
COUNTER_EXAMPLES = {
    "checkpoint given up early": CounterExample(
        [{"output_bytes": 1}, {"output_bytes": 3}, {}, {"saved_bytes": 4}], 6, 13, 12
    ),
    "checkpoint given up early, three stages": CounterExample(
        [{"output_bytes": 1}, {"output_bytes": 2}, {}], 4, 11, 10, loss_extra=3
    ),
    "saved before the stage above is reversed": CounterExample(
        [
            {"output_bytes": 1, "saved_bytes": 1, "rebuild_extra": 1},
            {"saves_input": False, "forward_extra": 1, "save_extra": 1, "backward_extra": 1},
        ],
        2,
        6,
        5,
    ),
    "the same, refused": CounterExample(
        [
            {"output_bytes": 1, "saved_bytes": 1, "forward_extra": 9, "save_extra": 9, "rebuild_extra": 9},
            {"saves_input": False, "backward_extra": 1},
            {},
        ],
        10,
        None,
        7,
    ),
    "rebuilt before a gradient stays": CounterExample(
        [
            {"rebuild": 0.0, "backward": 0.0, "saved_bytes": 1}
            | {"forward_extra": 2, "save_extra": 2, "rebuild_extra": 2},
            {"forward": 0.0, "backward": 0.0, "saved_bytes": 1, "grad_bytes": 1, "backward_extra": 0},
        ],
        3,
        2,
        1,
        loss_extra=3,
    ),
    "forward and rebuild instead of a save, refused": CounterExample(
        [{"saved_bytes": 1, "forward_extra": 4, "save_extra": 4, "rebuild_extra": 3}, {"output_bytes": 1}], 4, None, 5
    ),
}


@pytest.mark.parametrize("name", COUNTER_EXAMPLES)
def test_counter_examples(name):
    case = COUNTER_EXAMPLES[name]
    chain = case.chain()
    time, actions = least_makespan(chain, case.budget)
    judged = simulate(chain, actions)
    assert judged.peak <= case.budget
    assert nanoseconds(judged.makespan) == time == nanoseconds(case.optimum)
    if case.planned is None:
        with pytest.raises(InfeasibleBudget):
            solve(chain).plan(case.budget)
    else:
        assert solve(chain).plan(case.budget).makespan == case.planned


@pytest.mark.parametrize("length", range(4, 8))
def test_no_constant_bounds_the_excess_of_time(length):
    # Stage 0 takes all the time. The recurrence runs it L - 2 times; a checkpoint of one byte, given up when two are
    # needed, makes two runs enough. With one byte more, one run is enough for both.
    stages = [{"forward": 1e-6, "backward": 1e-6, "output_bytes": 2, "saved_bytes": 0} for _ in range(length)]
    stages[0] |= {"forward": 1.0, "output_bytes": 1}
    stages[2]["saved_bytes"] = 1
    stages[-1]["output_bytes"] = 0
    chain = Chain.from_json({"format": "revolve.chain/1", "input_bytes": 0, "stages": stages})
    assert round(solve(chain).plan(7).makespan) == length - 2
    assert round(least_makespan(chain, 7)[0] / 1e9) == 2
    assert round(solve(chain).plan(8).makespan) == round(least_makespan(chain, 8)[0] / 1e9) == 1


def narrowing_chain(rng: random.Random, length: int) -> Chain:
    """Return a random chain of the kind on which no schedule is known to beat the recurrence."""
    document = random_chain(rng, length, formats=0).to_json()
    stages = document["stages"]
    sizes = sorted((stage["output_bytes"] for stage in stages[:-1]), reverse=True)
    for stage, size in zip(stages[:-1], sizes, strict=True):
        stage["output_bytes"] = size
    for stage in stages:
        stage |= {"saves_input": True, "saves_output": False, "grad_bytes": 0}
        stage["rebuild_extra"] = stage["save_extra"]
        stage["forward_extra"] = max(stage["forward_extra"], stage["save_extra"])
    return Chain.from_json(document)


@pytest.mark.parametrize("seed", range(4))
def test_the_recurrence_is_optimal_on_narrowing_chains(seed):
    rng = random.Random(seed)
    for _ in range(25):
        chain = narrowing_chain(rng, rng.randint(2, 5))
        frontier = solve(chain)
        # A byte below each point is where a faster schedule would show.
        for budget in (int(peak) - 1 for peak in frontier.peaks if peak > 0):
            found = least_makespan(chain, budget)
            if budget < frontier.smallest:
                assert found is None
            else:
                assert found[0] == nanoseconds(frontier.plan(budget).makespan)
