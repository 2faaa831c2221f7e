"""Stages that give a view of a larger storage: their gradient is smaller than what they keep alive."""

from __future__ import annotations

import pytest
import torch
from steps import batch
from torch import nn
from torch.nn import functional

import revolve

VIEWS = {
    "stack": lambda y: torch.stack([y, y], -1)[..., 0],
    "complex": lambda y: torch.fft.ifft(torch.fft.fft(y) * 1j).real,
    "padded": lambda y: functional.pad(y, (0, 8))[..., :16],
    "chunk": lambda y: torch.cat([y, y], -1).chunk(2, -1)[1],
}


class Block(nn.Module):
    def __init__(self, view):
        super().__init__()
        self.up, self.down, self.view = nn.Linear(16, 64), nn.Linear(64, 16), view

    def forward(self, x):
        return self.view(x + self.down(functional.gelu(self.up(x))))


class Tower(nn.Module):
    """Runs its blocks itself."""

    def __init__(self, view, width):
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, width)
        self.blocks = nn.ModuleList(Block(view) for _ in range(4))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


@pytest.mark.parametrize("width", [1, 8, 64])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_budgets_are_kept(view, width):
    torch.manual_seed(0)
    model, x = Tower(view, width), batch(rows=512)
    frontier = revolve.solve(revolve.measure(model, x))
    for peak in (frontier.peaks[0], frontier.peaks[len(frontier.peaks) // 2], frontier.peaks[-1]):
        plan = frontier.plan(int(peak))
        revolve.checkpointed(model, plan)
        report = revolve.verify(model, x, repeats=1)
        assert 0.95 * plan.peak <= report.measured_peak <= plan.peak
        assert report.plain_peak <= plan.plain_peak
