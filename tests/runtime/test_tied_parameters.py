"""Of a parameter with several users the engine keeps what one of them gives until the next one adds to it."""

from __future__ import annotations

import pytest
import torch
from branching import normal
from torch import nn

import revolve


class Tied(nn.Module):
    """Its embedding, which lies before the chain, and its head are one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(2000, 32), nn.Linear(32, 2000, bias=False)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32)) for _ in range(4))
        self.head.weight = self.embed.weight

    def forward(self, words):
        x = self.embed(words)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x[:, -1])


def tied():
    return Tied(), torch.randint(0, 2000, (8, 64), generator=torch.Generator().manual_seed(1))


def recurring():
    layer = nn.Linear(256, 256)
    layers = (nn.Linear(64, 256), layer, nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), layer, nn.Tanh(), nn.Linear(256, 8))
    return nn.Sequential(*layers), normal(32, 64)


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("make", [tied, recurring])
def test_budgets_hold_with_gradients_and_without(make, existing):
    torch.manual_seed(0)
    model, sample = make()
    for parameter in model.parameters() if existing else ():
        parameter.grad = torch.zeros_like(parameter)
    frontier = revolve.solve(revolve.measure(model, sample))
    for part in (1, 1.05, 1.2):
        plan = frontier.plan(int(part * frontier.smallest))
        report = revolve.verify(revolve.checkpointed(model, plan), sample, repeats=1)
        assert report.exact
        assert 0.85 * plan.peak < report.measured_peak <= plan.peak
    assert 0.85 * frontier.plain < report.plain_peak <= frontier.plain
