"""Stages that are alike share the medians of their times."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import revolve
from revolve.runtime import measurement
from revolve.runtime.bench import Sizes
from revolve.runtime.measurement import pool_times
from revolve.runtime.stages import StageModule


def stages(*modules):
    return [StageModule(str(index), (module,)) for index, module in enumerate(modules)]


def sizes(*output_bytes):
    return [Sizes({"output_bytes": size}, 0) for size in output_bytes]


TIMES = [(1.0, 0.5, 2.0), (1.2, 0.6, 2.2), (1.1, 0.9, 2.4)]


def test_alike_stages_get_their_medians():
    alike = stages(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    assert pool_times(alike, sizes(32, 32, 32), TIMES) == [(1.1, 0.6, 2.2)] * 3


@pytest.mark.parametrize(
    ("modules", "output_bytes", "times"),
    [
        ((nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(4, 8)), (32, 32, 32), TIMES),
        ((nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)), (32, 64, 16), TIMES),
        ((torch.sin, torch.cos, torch.tan), (32, 32, 32), TIMES),
        ((nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)), (32, 32, 32), [(1.0, 0.5, 2.0)] * 2 + [(2.0, 1.0, 4.0)]),
    ],
    ids=["other modules", "other sizes", "other functions", "twice the time"],
)
def test_others_keep_their_own(modules, output_bytes, times):
    assert pool_times(stages(*modules), sizes(*output_bytes), times) == times


def test_equal_blocks_are_equal_stages_of_the_chain(monkeypatch):
    def noisy(benches, sample, device):
        return [(1 + index / 100, 0.5, 2.0) for index in range(len(benches))]

    monkeypatch.setattr(measurement, "time_stages", noisy)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(6)))
    found = revolve.measure(model, torch.randn(64, 64)).stages
    # The first stage has no gradient of its input to compute, the last one may be charged for its output.
    for kind in (found[2:-1:2], found[1:-1:2]):
        assert len({replace(stage, name="") for stage in kind}) == 1
