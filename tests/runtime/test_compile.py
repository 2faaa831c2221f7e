"""torch.compile: single stages are compiled, measured and executed; a whole planned model stays uncompiled."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from steps import PLANNERS, assert_same, batch, perceptron, run_step, square
from torch import nn

import revolve

pytestmark = pytest.mark.slow

COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
BACKENDS = ["aot_eager", pytest.param("inductor", marks=COMPILER)]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 16))

    def forward(self, x):
        return x + self.body(x)


def blocks(count=5):
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(count)))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_stages(backend):
    """Measured compiled, executed compiled; equal to plain training of the same compiled stages."""
    model = blocks()
    for block in model:
        block.compile(backend=backend)
    plain = [run_step(model, batch(64)) for _ in range(2)][-1]
    frontier = revolve.solve(revolve.measure(model, batch(64)))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs
    for peak in frontier.peaks:
        plan = frontier.plan(int(peak))
        revolve.checkpointed(model, plan)
        for _ in range(2):
            assert_same(run_step(model, batch(64)), plain)
        assert revolve.verify(model, batch(64), repeats=1).exact
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= graphs + 1


@pytest.mark.parametrize("planner", PLANNERS.values(), ids=PLANNERS)
def test_a_whole_planned_model_runs_as_if_it_were_not_compiled(planner):
    model, plain = perceptron(lambda: nn.Dropout(0.3)), perceptron(lambda: nn.Dropout(0.3))
    revolve.checkpointed(model, planner(model))
    for compiled in (torch.compile(model, backend="aot_eager"), copy.deepcopy(model)):
        if compiled is not model and not isinstance(compiled, torch._dynamo.OptimizedModule):
            compiled.compile(backend="aot_eager")
        for step in range(2):
            torch.manual_seed(step)
            expected = run_step(plain, batch())
            torch.manual_seed(step)
            found = run_step(compiled, batch())
            assert torch.equal(found.output, expected.output)
            assert all(
                torch.equal(a, b) for a, b in zip(found.gradients.values(), expected.gradients.values(), strict=True)
            )
            assert found.random == expected.random


def test_a_compiled_model_around_a_planned_part():
    """A graph break where the plan begins; what is before and after it is compiled."""

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.chain, self.after = nn.Linear(16, 16), perceptron(), nn.Linear(16, 16)

        def forward(self, x):
            return self.after(self.chain(self.before(x).sin()).cos())

    torch.manual_seed(0)
    model = Whole()
    plain = copy.deepcopy(model)
    revolve.checkpointed(model.chain, PLANNERS["tight"](model.chain))
    compiled, reference = torch.compile(model, backend="aot_eager"), torch.compile(plain, backend="aot_eager")
    for _ in range(2):
        square(compiled(batch())).backward()
        square(reference(batch())).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True))
