"""Stages that draw random numbers, and those that begin to."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch
from layers import StochasticDepth
from steps import PLANNERS, assert_same, batch, perceptron, run_step, square, twins
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.nn import functional

import revolve
from revolve.runtime import generators
from revolve.runtime.draws import Watch
from revolve.runtime.exceptions import RecomputeError
from revolve.runtime.generators import NumpyRandom, PythonRandom


class Die:
    """A generator whose state can be counted."""

    def __init__(self):
        self.thrown = self.reads = 0

    def read(self):
        self.reads += 1
        return self.thrown


def seed():
    torch.manual_seed(4), random.seed(4), np.random.seed(4)


def states():
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[2]]


@pytest.mark.parametrize("draw", [random.random, lambda: np.random.uniform(), lambda: torch.rand(()).item()])
@pytest.mark.parametrize("planner", PLANNERS.values(), ids=PLANNERS)
def test_generators_that_are_drawn_from_late(planner, draw):
    """Those who never drew are not watched one by one; when they begin to, they are looked at again."""
    planned, plain = twins(nn.Sequential(*perceptron(lambda: StochasticDepth(draw)), *perceptron()), planner)
    found = []
    for model in (planned, plain):
        seed()
        for layer in list(model)[1::3]:
            layer.eval()
        quiet = run_step(model, batch())
        model.train()
        found.append([quiet, *(run_step(model, batch(seed=turn)) for turn in range(3)), states()])
    for ours, theirs in zip(found[0][:-1], found[1][:-1], strict=True):
        assert_same(ours, theirs)
    assert found[0][-1] == found[1][-1]


class Leaky(nn.Module):
    """Draws its noise after handing it to autograd, and saves nothing behind it."""

    def forward(self, x):
        return functional.rrelu(x, training=True) + 1


@pytest.mark.parametrize("first", [True, False])
def test_a_rebuild_ends_no_earlier_than_the_noise_is_drawn(first):
    layers = [nn.Linear(16, 16), Leaky()] if first else [Leaky(), nn.Linear(16, 16)]
    planned, plain = twins(nn.Sequential(*layers, nn.Linear(16, 16), Leaky(), nn.Linear(16, 16)))
    assert True in planned.forward.given.program.stops
    for turn in range(2):
        ours, theirs = (torch.manual_seed(turn) and run_step(model, batch()) for model in (planned, plain))
        assert_same(ours, theirs)


class Branching(nn.Module):
    """Gives what it draws noise for, and something behind it that saves more and is dropped."""

    def forward(self, x):
        x = functional.rrelu(x, training=True)
        return x + 1, x.exp().sin().exp().sin().exp().sin()


def test_a_rebuild_ends_behind_noise_that_others_follow():
    ends = []

    class Block(nn.Module):
        def forward(self, x):
            x = functional.rrelu(x, training=True).exp().sin().tanh() + 1
            ends.append(1)
            return x

    planned, plain = twins(nn.Sequential(nn.Linear(16, 16), Block(), nn.Linear(16, 16)))
    ours, theirs = (torch.manual_seed(1) and run_step(model, batch()) for model in (planned, plain))
    assert_same(ours, theirs)
    assert len(ends) == 3  # plain, in the first run, and for the stage behind, but not in the rebuild


class First(nn.Module):
    """Takes the first of what it is given."""

    def forward(self, pair):
        return pair[0]


def test_a_rebuild_whose_last_tensors_nobody_needs():
    """What is saved last is then the noise, which the look at the first run's end has not seen."""
    planned, plain = twins(nn.Sequential(nn.Linear(16, 16), Branching(), First(), nn.Linear(16, 16)))
    assert planned.forward.given.program.stops[1]
    for turn in range(2):
        ours, theirs = (torch.manual_seed(turn) and run_step(model, batch()) for model in (planned, plain))
        assert_same(ours, theirs)


def test_noise_that_is_not_drawn():
    """For positive values RReLU writes its noise, but draws no numbers."""
    planned, plain = twins(nn.Sequential(*(nn.Sequential(nn.Softmax(-1), nn.RReLU()) for _ in range(3))))
    x = batch().requires_grad_()
    for turn in range(2):
        for model in (planned, plain):
            x.grad = None
            square(model(x)).backward()
            if model is planned:
                ours = x.grad
        assert torch.equal(ours, x.grad), turn


def test_late_draws_behind_others_and_changed_buffers():
    def model():
        late = StochasticDepth(random.random)
        return nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.3), nn.BatchNorm1d(16), late, nn.Tanh(), nn.Linear(16, 16))

    planned, plain = twins(model())
    found = []
    for layers in (planned, plain):
        seed()
        layers[3].eval()
        run_step(layers, batch())
        layers[3].train()
        found.append([run_step(layers, batch(seed=turn)) for turn in range(4)])
    for ours, theirs in zip(*found, strict=True):
        assert_same(ours, theirs)


def test_late_draws_under_hooks_of_somebody_else():
    """Nothing is run again in a forward there: every stage is watched."""
    planned, plain = twins(perceptron(lambda: StochasticDepth(random.random)))
    found = []
    for model in (planned, plain):
        seed()
        model[1].eval()
        with save_on_cpu():
            run_step(model, batch())
            model.train()
            found.append(run_step(model, batch()))
    assert_same(*found)


class Moody(nn.Module):
    """Draws in its first runs as it is told, and in later ones as well."""

    def __init__(self, first, later):
        super().__init__()
        self.first, self.later = first, later

    def forward(self, x):
        for _ in range(self.later if revolve.is_recomputing() else self.first):
            random.random()
        return x.sin()


def test_draws_of_another_thread_are_no_stage_s():
    """To a stage that draws nothing when run again, the numbers drawn meanwhile mean nothing."""
    planned, plain = twins(perceptron(lambda: Moody(0, 0)))
    run_step(planned, batch())
    planned[4].first = 3
    assert_same(run_step(planned, batch()), run_step(plain, batch()))


def test_a_stage_that_draws_otherwise_each_time():
    planned, _ = twins(perceptron(lambda: Moody(0, 0)))
    run_step(planned, batch())
    planned[4].first, planned[4].later = 3, 1
    with pytest.raises(RecomputeError, match=r"one of the stages 0, .* draws other random numbers each time"):
        planned(batch())


def test_stages_that_never_drew_share_two_readings():
    die, drawing = Die(), [False, False, True, False, False, None, False]
    watch = Watch([die], drawing)
    drawn = []
    for stage in range(7):
        if drawing[stage] is not False:
            watch.reach(stage)
        die.thrown += stage in (2, 4)
        if drawing[stage] is not False:
            drawn.append(watch.leave(stage))
    watch.reach(7)
    assert drawn == [((die, 0),), ()]
    assert drawing == [False, False, True, False, False, False, False]
    assert [(s.stages, s.before, s.after) for s in watch.surprises] == [(range(3, 5), (1,), (2,))]
    assert die.reads == 6  # at the start, around stage 2, around stage 5, at the end


@pytest.mark.parametrize("layout", ["memory", "getstate"])
@pytest.mark.parametrize("generator", [np.random, np.random.RandomState(3)], ids=["global", "owned"])
def test_numpy_states_that_hold_a_number_back(generator, layout, monkeypatch):
    """A second normal number that is held back belongs to the state: drawing it changes nothing else."""
    assert (generators.HELD_BACK_AT is not None) is (sys.implementation.name == "cpython")
    if layout == "getstate":
        monkeypatch.setattr(generators, "HELD_BACK_AT", None)
    source = NumpyRandom(generator)
    generator.seed(5)
    states, drawn = [source.read()], []
    for _ in range(3):
        drawn.append(generator.normal())
        states.append(source.read())
    assert len(set(states)) == 4
    assert states[1][0] == states[2][0]
    for first, state in enumerate(states):
        source.write(state)
        assert source.read() == state
        assert [generator.normal() for _ in drawn[first:]] == drawn[first:]


@pytest.mark.parametrize("layout", [True, False], ids=["memory", "getstate"])
@pytest.mark.parametrize("generator", [random, random.Random(3)], ids=["global", "owned"])
def test_python_states_are_written_as_they_were_read(generator, layout, monkeypatch):
    """Also where CPython's memory is not laid out as expected; a normal number that is held back belongs to it."""
    assert generators.WORDS_LIE_IN_ORDER is (sys.implementation.name == "cpython")
    monkeypatch.setattr(generators, "WORDS_LIE_IN_ORDER", layout)
    source = PythonRandom(generator)
    generator.gauss(0, 1)
    state, whole = source.read(), generator.getstate()
    drawn = [generator.gauss(0, 1) for _ in range(3)]
    assert source.read() != state
    source.write(state)
    assert source.read() == state
    assert generator.getstate() == whole
    assert [generator.gauss(0, 1) for _ in range(3)] == drawn


@pytest.mark.parametrize("bits", [np.random.MT19937, np.random.PCG64])
def test_numpy_states_are_written_as_they_were_read(bits):
    """A RandomState may have any bit generator; a second normal number that is held back belongs to its state."""
    source = NumpyRandom(np.random.RandomState(bits(3)))
    source.generator.normal()
    state = source.read()
    drawn = source.generator.normal(size=5)
    assert source.read() != state
    source.write(state)
    assert source.read() == state
    np.testing.assert_array_equal(source.generator.normal(size=5), drawn)
