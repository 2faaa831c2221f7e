"""Plain attributes that a stage changes are put back for every run of it, and afterwards."""

from __future__ import annotations

import pytest
import torch
from steps import PLANNERS, assert_equal_steps, assert_same, batch, perceptron, run_step, square, twins
from torch import nn

import revolve


class Changing(nn.Module):
    """Changes an attribute, and computes with it."""

    def __init__(self, change):
        super().__init__()
        self.change = change
        self.count = 0

    def forward(self, x):
        return x * self.change(self, x)


def count(self, x):
    self.count += 1
    return self.count


def average(self, x):
    self.mean = 0.9 * getattr(self, "mean", 0.0) + x.detach().mean()
    return self.mean


def average_in_place(self, x):
    if not hasattr(self, "mean"):
        self.mean = torch.zeros(16)
    self.mean.mul_(0.9).add_(x.detach().mean(0))
    return self.mean * 2


def carry(self, x):
    """As a recurrent network that is trained by parts of a sequence; the state of the last part has its graph."""
    before = getattr(self, "state", None)
    self.state = x.tanh() if before is None else (x + before[0].detach()).tanh(), 1
    return self.state[0]


def forget(self, x):
    factor = self.__dict__.pop("factor", 2.0)
    return factor


CHANGES = {"counter": count, "tensor": average, "in place": average_in_place, "graph": carry, "removed": forget}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_stages_that_compute_with_attributes_they_change(change):
    assert_equal_steps(perceptron(lambda: Changing(change), depth=4), batch(), steps=3)


def test_two_forwards_before_backward():
    planned, plain = twins(perceptron(lambda: Changing(count)))
    for model in (planned, plain):
        (square(model(batch(seed=1))) + square(model(batch(seed=2)))).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(planned.parameters(), plain.parameters(), strict=True))
    assert [layer.count for layer in planned[1::3]] == [2] * 5


def test_one_module_in_several_stages():
    shared = Changing(count)
    layers = [nn.Linear(16, 16), shared, nn.Linear(16, 16), shared, nn.Tanh(), shared]
    assert_equal_steps(nn.Sequential(*layers), batch())


def test_losses_in_attributes_are_those_of_the_first_run():
    def keep_loss(self, x):
        self.loss = x.square().mean()
        return 1.5

    planned, plain = twins(perceptron(lambda: Changing(keep_loss)))
    for model in (planned, plain):
        square(model(batch())).backward(retain_graph=True)
        sum(layer.loss for layer in model[1::3]).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(planned.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("planner", PLANNERS.values(), ids=PLANNERS)
def test_a_stage_that_asks_looks_after_its_attributes_itself(planner):
    def count_first_runs(self, x):
        self.count += not revolve.is_recomputing()
        return self.count

    planned, plain = twins(perceptron(lambda: Changing(count_first_runs)), planner)
    for seed in range(2):
        assert_same(run_step(planned, batch(seed=seed)), run_step(plain, batch(seed=seed)))


def test_gradients_switched_on_and_off_between_forward_and_backward():
    planned, plain = twins(perceptron())
    for model in (planned, plain):
        model[2].requires_grad_(False)
        loss = square(model(batch()))
        model[0].requires_grad_(False)
        model[2].requires_grad_(True)
        loss.backward()
        assert [p.requires_grad for p in model.parameters()] == [False] * 2 + [True] * 8
    for ours, theirs in zip(planned.parameters(), plain.parameters(), strict=True):
        assert ours.grad is theirs.grad or torch.equal(ours.grad, theirs.grad)
