"""Networks that run their stages themselves, with everything in one format."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from branching import make, normal
from test_formats import SCHEDULES
from torch import nn
from torch.nn import functional

import revolve
from revolve import Plan
from revolve.runtime.measurement import default_loss

FORMATS = ("bitmap", "int8", "disk")
LOSSY = ("bf16", "int8")
WITHOUT_ZEROS = ("u-net", "encoder and decoder", "shared", "branches")


class Block(nn.Module):
    """Two convolutions: what the first gives is no zero, the second one's ReLU is the model's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return self.second(functional.relu(self.first(x)))


class Skipping(nn.Module):
    """Residual sums and ReLUs between the blocks, and what the stem gives leaps over all of them."""

    def __init__(self, width: int = 8, depth: int = 4) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(2 * width, 3, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x):
        x = stem = self.stem(x)
        for block in self.blocks:
            x = functional.relu(block(x) + x)
        return self.head(torch.cat([x, stem], 1))


def skipping():
    torch.manual_seed(0)
    return Skipping(), normal(4, 3, 24, 24)


def made(name):
    return skipping() if name == "skipping" else make(name)


def forced(chain, schedule, format_):
    """Return a plan whose budget is its peak, with everything in a format."""
    plan = Plan.from_actions(chain, SCHEDULES[schedule](len(chain), format_))
    return replace(plan, budget=plan.peak)


def in_format(model, sample, schedule="saving", format_="bitmap"):
    """Put such a plan on a model."""
    chain = revolve.measure(model, sample, formats=(format_,))
    return revolve.checkpointed(model, forced(chain, schedule, format_))


def total_deviation(model, sample):
    """Return how far all gradients together are from the plain ones, relative to these."""
    found = []
    for twin in (revolve.restore(copy.deepcopy(model)), model):
        twin.zero_grad()
        torch.manual_seed(0)
        args, kwargs = ((), sample) if isinstance(sample, dict) else ((sample,), {})
        default_loss(twin(*args, **kwargs)).backward()
        found.append(torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None]))
    plain, planned = found
    return float((planned - plain).norm() / plain.norm())


def check(model, sample, plan, format_):
    """Compare a step by a plan that uses a format with a plain one; return measured over predicted peak."""
    assert format_ in plan.formats()
    revolve.checkpointed(model, plan)
    report = revolve.verify(model, sample, repeats=1)
    assert report.passed, report.differences
    assert report.plan is plan  # it was not made anew
    assert report.output_equal
    assert report.loss_equal
    assert report.exact or format_ in LOSSY
    assert report.lossy == ((format_,) if format_ in LOSSY else ())
    assert report.measured_peak <= report.predicted_peak
    return report.measured_peak / report.predicted_peak


def free_of_charge(chain, format_):
    """Return a chain whose formats take no time."""
    document = chain.to_json()
    costs = document["formats"][format_]
    costs.update({name: [0.0] * len(values) for name, values in costs.items() if name.endswith("_time")})
    return revolve.Chain.from_json(document)
