"""Plain attributes that a stage changes are put back for every run of it, and afterwards."""

from __future__ import annotations

import weakref

import pytest
import torch
from steps import PLANNERS, assert_equal_steps, assert_same, batch, perceptron, run_step, square, twins
from torch import nn
from twins import assert_equal

import revolve
from revolve.runtime.exceptions import RecomputeError


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


def scaled(self, x):
    return self.scale


def test_attributes_set_from_outside_between_forward_and_backward():
    """A condition, or a hyperparameter, that the next forward needs."""
    planned, plain = twins(perceptron(lambda: Changing(scaled), lambda: nn.LeakyReLU(0.1)))
    for model in (planned, plain):
        loss = torch.zeros(())
        for turn in range(3):
            for layer in model[1::4]:
                layer.scale = batch(seed=turn)
            loss = loss + square(model(batch()))
        for layer in model[1::4]:
            del layer.scale
        for layer in model[2::4]:
            layer.negative_slope = 0.9
        loss.backward()
        assert not any(hasattr(layer, "scale") for layer in model[1::4])
        assert {layer.negative_slope for layer in model[2::4]} == {0.9}
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(planned.parameters(), plain.parameters(), strict=True))


def test_an_attribute_that_counts_up_from_a_later_step_on():
    planned, plain = twins(perceptron(lambda: Changing(lambda self, x: count(self, x) if self.training else 1)))
    for model in (planned, plain):
        for layer in model[1::3]:
            layer.eval()
        run_step(model, batch())
        model.train()
    for seed in range(2):
        assert_same(run_step(planned, batch(seed=seed)), run_step(plain, batch(seed=seed)))


def test_an_attribute_changed_in_place_between_forward_and_backward():
    planned, _ = twins(perceptron(lambda: Changing(scaled)))
    for layer in planned[1::3]:
        layer.scale = torch.ones(16)
    loss = square(planned(batch()))
    planned[4].scale.mul_(2)
    with pytest.raises(RecomputeError, match=r"stage '4' cannot be run again: scale of module 0 .* changed in place"):
        loss.backward()


def test_an_attribute_changed_in_place_by_a_stage_from_a_later_step_on():
    def late(self, x):
        return self.scale.add_(1) if self.count else self.scale

    planned, _ = twins(perceptron(lambda: Changing(late)))
    for layer in planned[1::3]:
        layer.scale = torch.ones(16)
    run_step(planned, batch())
    planned[4].count = 1
    with pytest.raises(RecomputeError, match=r"stage '4' changed its buffer or attribute scale .*checkpointed again"):
        planned(batch())


def test_graphs_of_earlier_steps_are_not_held():
    planned, _ = twins(perceptron(lambda: Changing(carry)))
    planned(batch())
    state = weakref.ref(planned[1].state[0])
    output = planned(batch())
    assert state() is None
    square(output).backward()


class Factor:
    """An object of the user's."""

    def __init__(self, value):
        self.value = value


def test_an_object_that_is_exchanged_before_backward_is_kept_for_it():
    """Nobody else holds it by then."""
    found = []
    for model in twins(perceptron(lambda: Changing(lambda self, _: self.factor.value))):
        scaling = [module for module in model if isinstance(module, Changing)]
        for turn in range(3):
            for module in scaling:
                module.factor = Factor(2.0 + turn)
            output = model(batch(seed=turn))
            for module in scaling:
                module.factor = Factor(7.0)
            square(output).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert_equal(*found)
