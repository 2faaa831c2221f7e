"""Whole networks at five budgets: every bit of plain training, inside the budget, as predicted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import revolve
from revolve.cli.demo_models import DEMO_MODELS

pytestmark = pytest.mark.slow

NETWORKS = {
    "resnet18": ({"classes": 10}, (4, 3, 96, 96)),
    "resnet50": ({"classes": 10}, (4, 3, 64, 64)),
    "vgg16": ({"classes": 10, "width": 256}, (4, 3, 64, 64)),
    "mlp": ({"features": 256, "width": 256}, (128, 256)),
    "transformer": ({"features": 64, "depth": 8, "heads": 4}, (4, 48, 64)),
}


def five_plans(chain: revolve.Chain) -> list[revolve.Plan]:
    """Return plans from the smallest feasible budget to plain training, evenly spread in bytes."""
    frontier = revolve.solve(chain)
    budgets = np.linspace(frontier.smallest, frontier.peaks[-1], 5).astype(int)
    return [frontier.plan(int(budget)) for budget in budgets]


@pytest.mark.parametrize("name", NETWORKS)
def test_planned_steps_equal_plain_ones_inside_the_budget(name):
    sizes, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = DEMO_MODELS[name].build(**sizes)
    x = torch.randn(shape)
    for parameter in model.parameters():  # as when gradients accumulate: else they are most of so small a step
        parameter.grad = torch.zeros_like(parameter)
    plans = five_plans(revolve.measure(model, x))
    assert len({plan.peak for plan in plans}) == 5
    assert plans[-1].plain
    for plan in plans:
        revolve.checkpointed(model, plan)
        report = revolve.verify(model, x, repeats=1)
        assert report.exact, report.differences
        assert report.measured_peak <= plan.budget
        assert 0.97 * plan.peak <= report.measured_peak <= plan.peak
