"""Plans on networks that are no nn.Sequential, and steps of twins to compare."""

from __future__ import annotations

import copy

import torch
from branching import make

import revolve
from revolve import Backward, Forward, Load, Loss, Plan, Rebuild
from revolve.storage.boundary import tensors_of


def frontier_of(model, sample):
    return revolve.solve(revolve.measure(model, sample))


def forgetful_plan(chain):
    """Return a plan that keeps nothing: every stage is run again from the input."""
    last = len(chain) - 1
    actions = [*map(Forward, range(last + 1)), Loss()]
    for index in range(last, -1, -1):
        actions += [Load(0), *map(Forward, range(index)), Rebuild(index), Backward(index)]
    return Plan.from_actions(chain, actions)


def planned_twins(name):
    """Return a network under a plan that keeps nothing, a plain twin, and a sample."""
    model, sample = make(name)
    plain = copy.deepcopy(model)
    return revolve.checkpointed(model, forgetful_plan(revolve.measure(model, sample))), plain, sample


def loss_of(output):
    return sum(tensor.square().mean() for tensor in tensors_of(output))


def run(model, sample, **options):
    """Run a step; return everything it leaves."""
    torch.manual_seed(5)
    args, kwargs = (
        (sample, {}) if isinstance(sample, tuple) else ((), sample) if isinstance(sample, dict) else ((sample,), {})
    )
    output = model(*args, **kwargs, **options)
    loss_of(output).backward()
    left = [t.detach() for t in tensors_of(output)] + [p.grad for p in model.parameters()]
    return [*left, *(buffer.clone() for buffer in model.buffers()), torch.get_rng_state()]


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    assert all(a is b or torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
