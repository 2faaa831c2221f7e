"""Random models, with skips, views and results that stay around, keep random budgets, bit for bit.

REVOLVE_FUZZ_CASES sets how many models are tried; thousands for a night.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import revolve
from revolve.storage.boundary import tensors_of

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("REVOLVE_FUZZ_CASES", "250")) // 10
WIDTH = 32

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh,
    "relu_": lambda x: functional.relu_(x * 1),
    "gelu": functional.gelu,
    "double": lambda x: x * 2,
    "sum of three": lambda x: x * 2 + x * 3 + x * 4,
    "wide": lambda x: functional.gelu(torch.cat([x, x * 2, x * 3], -1)).unflatten(-1, (3, -1)).mean(-2),
    "view": lambda x: (x * 1.5).view(-1, x.shape[-1]),
    "transposed": lambda x: x.t().contiguous().t(),
    "halves": lambda x: sum(torch.cat([x, x * 2], -1).chunk(2, -1)),
    "slice": lambda x: torch.cat([x, x])[: len(x)],
    "expanded": lambda x: x.mean(0, keepdim=True).expand(x.shape),
    "in place": lambda x: (x * 1).mul_(3).add_(1),
    "gates": lambda x: torch.cat([part.sigmoid_() for part in (x * 2).unsafe_chunk(2, -1)], -1),
}
FORMATS = [("dense",), ("dense",), ("dense", "bitmap"), ("dense", "disk"), ("dense", "bf16")]
LOSSES = {
    "sum": lambda tensors: sum(t.sum() for t in tensors),
    "square": lambda tensors: sum(t.square().mean() for t in tensors),
    "first": lambda tensors: tensors[0].square().mean(),
}


class Block(nn.Module):
    def __init__(self, before, linear, after, skip):
        super().__init__()
        self.before, self.after, self.skip = before, after, skip
        self.linear = nn.Linear(WIDTH, WIDTH) if linear else nn.Identity()

    def forward(self, x):
        y = x
        for name in self.before:
            y = FUNCTIONS[name](y)
        y = self.linear(y)
        for name in self.after:
            y = FUNCTIONS[name](y)
        return y + x if self.skip else y

    def extra_repr(self):
        return f"{self.before}, {self.after}, {self.skip}"


class Model(nn.Module):
    """Calls its blocks, each in one of several surroundings, and gives more or less of what they made."""

    def __init__(self, blocks, glue, result):
        super().__init__()
        self.stem, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.blocks, self.norm, self.glue, self.result = nn.ModuleList(blocks), nn.LayerNorm(WIDTH), glue, result

    def forward(self, x):
        first = x = self.stem(x)
        held = []
        for block, glue in zip(self.blocks, self.glue, strict=True):
            x, y = block(x), x
            if glue in ("skip", "norm"):
                x = x + y
            if glue == "norm":
                x = self.norm(x)
            if glue == "first":
                x = x + first
            if glue == "gate":
                x = x * first
            if glue == "held":
                held.append(x)
        x = sum(held, start=x)
        if self.result == "twice":
            return x * 2
        return {"head": (), "pair": (x,), "all": (first, held)}[self.result], self.head(x)

    def extra_repr(self):
        return f"{self.glue}, {self.result}"


names = st.lists(st.sampled_from(sorted(FUNCTIONS)), max_size=2)
blocks = st.lists(st.tuples(names, st.booleans(), names, st.booleans()), min_size=2, max_size=5)


@settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    described=blocks,
    calls=st.booleans(),
    glue=st.lists(st.sampled_from(["none", "skip", "first", "gate", "norm", "held"]), min_size=5, max_size=5),
    result=st.sampled_from(["head", "twice", "pair", "all"]),
    loss=st.sampled_from(sorted(LOSSES)),
    formats=st.sampled_from(FORMATS),
    shares=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=2),
)
def test_random_models_keep_their_budgets(described, calls, glue, result, loss, formats, shares):
    torch.manual_seed(0)
    found = [Block(*entry) for entry in described]
    stem = nn.Linear(WIDTH, WIDTH)
    model = Model(found, glue[: len(found)], result) if calls else nn.Sequential(stem, *found, nn.Linear(WIDTH, WIDTH))
    x = torch.randn(128, WIDTH)

    def loss_of(output):
        return LOSSES[loss]([t for t in tensors_of(output) if t.requires_grad])

    frontier = revolve.solve(revolve.measure(model, x, loss_of, formats=formats), formats)
    for share in shares:
        budget = int(frontier.smallest + share * (int(frontier.peaks[-1]) - frontier.smallest))
        try:
            planned = revolve.checkpointed(copy.deepcopy(model), sample=x, loss=loss_of, budget=budget, formats=formats)
        except revolve.InfeasibleBudget:
            note("no plan that was rehearsed fits")
            continue
        report = revolve.verify(planned, x, loss_of, repeats=1)
        note(f"measured {report.measured_peak}, budget {budget}: {report.differences}")
        assert report.passed
