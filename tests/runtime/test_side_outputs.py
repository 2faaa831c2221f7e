"""Stages that give tensors beside what the next one takes: auxiliary heads and losses, second streams."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from twins import forgetful_plan

import revolve
from revolve.runtime.exceptions import ModelError

WIDTH = 32


def rows():
    return torch.randn(256, WIDTH, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """Gives its output and something of its own, which takes more memory than the output does."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Sequential(nn.Linear(WIDTH, 8 * WIDTH), nn.Tanh(), nn.Linear(8 * WIDTH, 3))

    def forward(self, x, stream=None, losses=None):
        y = x + self.down(self.up(x).sigmoid())
        if losses is not None:
            losses.append(torch.cat([y] * 8, -1).tanh().mean())
            return y
        wide = torch.cat([y] * 8, -1).tanh()
        given = {"head": lambda: self.head(y), "loss": wide.mean, "stream": lambda: wide.mean(-1, keepdim=True)}
        return y, given[self.kind]() + (0 if stream is None else stream)


class Model(nn.Module):
    def __init__(self, kind, depth=4):
        super().__init__()
        self.kind = kind
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.blocks = nn.ModuleList(Block(kind) for _ in range(depth))

    def forward(self, x):
        x, given = self.first(x), []
        if self.kind == "list":
            for block in self.blocks:
                x = block(x, losses=given)
            return self.last(x), sum(given)
        stream = torch.zeros(1) if self.kind == "stream" else None
        for block in self.blocks:
            x, beside = block(x, stream)
            stream = beside if self.kind == "stream" else None
            given.append(beside)
        return self.last(x), given if self.kind == "head" else given[-1] if self.kind == "stream" else sum(given)


@pytest.mark.parametrize("kind", ["head", "loss", "stream"])
def test_what_leaves_the_chain_is_in_the_budget(kind):
    torch.manual_seed(0)
    model = Model(kind)
    frontier = revolve.solve(revolve.measure(model, rows()))
    for budget in (frontier.smallest, (frontier.smallest + int(frontier.peaks[-1])) // 2):
        report = revolve.verify(revolve.checkpointed(model, frontier.plan(budget)), rows(), repeats=1)
        assert report.exact
        assert report.kept, f"{report.measured_peak} bytes measured, {report.predicted_peak} predicted"
        assert report.predicted_plain_peak <= 1.05 * report.plain_peak
        revolve.restore(model)


def test_losses_put_into_a_list_are_refused():
    with pytest.raises(ModelError, match=r"stage 'blocks.0' puts tensors into a list or dict that it is called with"):
        revolve.measure(Model("list"), rows())


class Replacing(nn.Module):
    """Puts a tensor of its own into the list that it is called with, in place of another: HRNet's modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, pair):
        pair[0] = self.inner(pair[0]).sigmoid()
        return [self.outer(pair[0]).tanh(), pair[1] * pair[0]]


class Pairs(nn.Module):
    def __init__(self, reads) -> None:
        super().__init__()
        self.reads = reads  # whether it uses what was put into the list
        self.blocks = nn.ModuleList(Replacing() for _ in range(4))

    def forward(self, x):
        pair = [x.sin(), x.cos()]
        for block in self.blocks:
            given = block(pair)
            pair = [given[0] + pair[0], given[1]] if self.reads else given
        return pair[0] * pair[1]


@pytest.mark.parametrize("reads", [False, True])
def test_entries_of_a_list_are_replaced(reads):
    torch.manual_seed(0)
    model = Pairs(reads)
    chain = revolve.measure(model, rows())
    frontier = revolve.solve(chain)
    assert [stage.name for stage in chain.stages] == [f"blocks.{number}" for number in range(4)]
    for plan in (forgetful_plan(chain), frontier.plan(frontier.smallest)):
        report = revolve.verify(revolve.checkpointed(model, plan), rows(), repeats=1)
        assert report.exact
        assert reads or report.measured_peak <= plan.peak
