"""Rule [9] of the executor: under somebody else's saved-tensor hooks those keep what the first sweep keeps."""

from __future__ import annotations

import copy
from random import Random

import pytest
import torch
from random_schedules import random_plan
from steps import CPU, PLANNERS, batch, named_chain, perceptron, square, tight_plan
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import revolve
from revolve.runtime.allocations import trace_allocations

RANDOM = {f"random {n}": lambda model, n=n: random_plan(named_chain(model), Random(n)) for n in range(3)}
PLANNERS = {**PLANNERS, "saving": lambda model: tight_plan(model, 30), **RANDOM}


@pytest.fixture(params=PLANNERS.values(), ids=PLANNERS)
def planner(request):
    return request.param


def blocks(count=3):
    torch.manual_seed(0)
    return [perceptron(lambda: nn.Dropout(0.3), lambda: nn.BatchNorm1d(16), depth=3) for _ in range(count)]


def step(models, run, x, backwards=1):
    """Run a step through several models; return everything it leaves."""
    torch.manual_seed(5)
    y = x
    for model in models:
        model.zero_grad()
        y = run(model, y)
    loss = square(y)
    for last in reversed(range(backwards)):
        loss.backward(retain_graph=last > 0)
    parameters = [p.grad.clone() for model in models for p in model.parameters()]
    buffers = [buffer.clone() for model in models for buffer in model.buffers()]
    return [y, *parameters, *([] if x.grad is None else [x.grad]), torch.get_rng_state(), *buffers]


def in_hooks(model, x):
    with saved_tensors_hooks(lambda t: t * 1, lambda t: t):
        return model(x)


def offloaded(model, x):
    with save_on_cpu():
        return model(x)


def checkpointed_to_the_end(model, x):
    with set_checkpoint_early_stop(False):
        return checkpoint(model, x, use_reentrant=False)


AROUND = {
    "checkpoint": lambda model, x: checkpoint(model, x, use_reentrant=False),
    "two checkpoints": lambda model, x: checkpoint(
        lambda x: checkpoint(model, x, use_reentrant=False), x, use_reentrant=False
    ),
    "checkpoint without early stop": checkpointed_to_the_end,
    "hooks": in_hooks,
    "save on cpu": offloaded,
}


@pytest.mark.filterwarnings("ignore::revolve.runtime.exceptions.BudgetWarning")
@pytest.mark.parametrize("backwards", [1, 2])
@pytest.mark.parametrize("name", AROUND)
def test_around_a_planned_model(name, planner, backwards):
    models = blocks()
    plain = copy.deepcopy(models)
    for model in models:
        revolve.checkpointed(model, planner(model))
    ours = step(models, AROUND[name], batch().requires_grad_(), backwards)
    theirs = step(plain, (lambda model, x: model(x)), batch().requires_grad_(), backwards)
    moved = sum(len(list(model.buffers())) for model in plain) if "checkpoint" in name else 0  # twice, as torch does
    for a, b in list(zip(ours, theirs, strict=True))[: len(ours) - moved]:
        assert torch.equal(a, b)


def test_a_reentrant_checkpoint_around(planner):
    models = blocks()
    plain = copy.deepcopy(models)
    for model in models:
        revolve.checkpointed(model, planner(model))
    run = lambda model, x: checkpoint(model, x, use_reentrant=True)  # noqa: E731
    ours = step(models, run, batch().requires_grad_())
    theirs = step(plain, run, batch().requires_grad_())
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_checkpoint_around_keeps_only_its_input():
    """Between forward and backward nothing of the plan's first sweep is alive."""
    models = [perceptron(depth=12, width=64) for _ in range(2)]
    for model in models:
        revolve.checkpointed(model, tight_plan(model, 20))
    x = batch(64, 64).requires_grad_()
    held = []
    for run in (lambda model, x: model(x), lambda model, x: checkpoint(model, x, use_reentrant=False)):
        with trace_allocations(CPU) as tracer:
            y = x
            for model in models:
                y = run(model, y)
            tracer.mark()
        held.append(tracer.phases[0].end)
        del y
    assert held[0] > 6 * x.nbytes
    assert held[1] <= 2 * x.nbytes + 2 * 5056 + 1024  # two boundaries, and the generator's state that torch keeps


def test_a_planned_model_inside_a_stage():
    found = []
    for planned in (True, False):
        inner, outer = blocks(2)
        if planned:
            revolve.checkpointed(inner, tight_plan(inner))
        whole = nn.Sequential(nn.Linear(16, 16), Wrapped(inner), *outer)
        if planned:
            revolve.checkpointed(whole, tight_plan(whole))
        found.append(step([whole], lambda model, x: model(x), batch().requires_grad_()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class Wrapped(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x)
