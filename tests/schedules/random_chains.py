"""Random chains that use every field of the cost model, with sizes small enough to collide."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

from revolve.schedules import Chain

MILLISECONDS = 1e-3


def random_chain(
    rng: random.Random,
    length: int,
    *,
    largest: int = 20,
    formats: int | None = None,
    modes: bool = False,
    consistent: bool = True,
) -> Chain:
    """Return a chain of ``length`` stages.

    ``formats`` is their number; None draws zero or one. With ``modes``, stages may be saved in them.
    ``consistent`` keeps the transient bytes of the three ways to run a stage in the order that real stages
    have: a rebuild is the first part of a save, and a run that saves nothing needs no more than one that
    does. Then no form is larger than what it stands for, either, and a backward holds what it decodes.
    """
    stages = [random_stage(rng, largest, consistent) for _ in range(length)]
    count = rng.randint(0, 1) if formats is None else formats
    names = ("bitmap", "host")[:count]
    document: dict[str, Any] = {
        "format": "revolve.chain/1",
        "input_bytes": rng.randint(0, largest),
        "input_grad": rng.random() < 0.5,
        "loss_time": rng.randint(0, 2) * MILLISECONDS,
        "loss_extra": rng.randint(0, largest // 3),
        "stages": stages,
        "formats": {name: random_costs(rng, length, largest) for name in names},
    }
    if modes:
        for costs in document["formats"].values():
            costs |= random_modes(rng, stages, largest)
            if consistent:
                make_consistent(costs, stages)
    return Chain.from_json(document)


def passing_on(chain: Chain, rng: random.Random) -> Chain:
    """Return a chain whose stages pass parts of their inputs on."""
    sizes = [0, *(stage.output_bytes for stage in chain.stages[:-1]), 0]
    passed = [rng.randint(0, min(pair)) for pair in pairwise(sizes)]
    stages = [replace(stage, passed_bytes=size) for stage, size in zip(chain.stages, passed, strict=True)]
    return replace(chain, stages=tuple(stages))


def random_stage(rng: random.Random, largest: int, consistent: bool) -> dict[str, Any]:
    """Return the fields of one stage."""
    forward = rng.randint(1, 9)
    stage = {
        "forward": forward * MILLISECONDS,
        "rebuild": forward * rng.choice((1, 1, 0.75, 0.5)) * MILLISECONDS,
        "backward": rng.randint(1, 9) * MILLISECONDS,
        "output_bytes": rng.randint(0, largest),
        "saved_bytes": rng.randint(0, largest),
        "saves_input": rng.random() < 0.6,
        "saves_output": rng.random() < 0.4,
        "forward_extra": rng.randint(0, largest // 3),
        "save_extra": rng.randint(0, largest // 3),
        "rebuild_extra": rng.randint(0, largest // 3),
        "backward_extra": rng.randint(0, largest),
        "grad_bytes": rng.randint(0, largest // 4),
    }
    if consistent:
        stage["rebuild_extra"] = min(stage["rebuild_extra"], stage["save_extra"])
        stage["forward_extra"] = min(stage["forward_extra"], stage["save_extra"] + stage["saved_bytes"])
    return stage


def random_costs(rng: random.Random, length: int, largest: int) -> dict[str, list[Any]]:
    """Return the costs of one storage format."""
    return {
        "stored_bytes": [rng.randint(0, largest // 2) for _ in range(length + 1)],
        "store_time": [rng.randint(0, 3) * MILLISECONDS for _ in range(length + 1)],
        "load_time": [rng.randint(0, 3) * MILLISECONDS for _ in range(length + 1)],
    }


def random_modes(rng: random.Random, stages: list[dict[str, Any]], largest: int) -> dict[str, list[Any]]:
    """Return what it costs to save each stage in one storage format."""
    return {
        "saved_bytes": [rng.randint(0, largest // 2) for _ in stages],
        "encode_time": [rng.choice((0, 0, 1, 2)) * MILLISECONDS for _ in stages],
        "decode_time": [rng.choice((0, 0, 1, 2)) * MILLISECONDS for _ in stages],
        "save_extra": [rng.randint(0, largest // 3) for _ in stages],
        "backward_extra": [rng.randint(0, largest) for _ in stages],
    }


def make_consistent(costs: dict[str, list[Any]], stages: list[dict[str, Any]]) -> None:
    """Change what saving stages in a format costs to what real formats can have."""
    saved, sizes = costs["saved_bytes"], [0, *(stage["output_bytes"] for stage in stages[:-1]), 0]
    spared = [max(0, size - stored) for size, stored in zip(sizes, costs["stored_bytes"], strict=True)]
    for i, stage in enumerate(stages):
        saved[i] = min(saved[i], stage["saved_bytes"])
        costs["save_extra"][i] = max(costs["save_extra"][i], stage["forward_extra"] - saved[i])
        decoded = stage["saved_bytes"] - saved[i] + stage["saves_input"] * spared[i]
        costs["backward_extra"][i] = stage["backward_extra"] + decoded + stage["saves_output"] * spared[i + 1]
