"""Rule [3] of the executor: the graph owns everything, and nothing outlives it; no garbage collector needed."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from steps import CPU, PLANNERS, batch, perceptron, run_step, square, twins
from torch import nn

import revolve
from revolve.runtime.allocations import trace_allocations
from revolve.runtime.executor import Run


@pytest.fixture(params=PLANNERS.values(), ids=PLANNERS)
def planned(request):
    """Return a model whose first step is behind it."""
    model, _ = twins(perceptron(lambda: nn.Dropout(0.3)), request.param)
    run_step(model, batch())
    model.zero_grad(set_to_none=False)
    return model


@pytest.fixture
def runs(monkeypatch):
    """Collect weak references to every run, with the garbage collector off."""
    found = []
    create = Run.__init__

    def spy(self, *arguments):
        found.append(weakref.ref(self))
        create(self, *arguments)

    monkeypatch.setattr(Run, "__init__", spy)
    gc.collect()
    gc.disable()
    yield found
    gc.enable()


def alive(runs):
    return [run for run in runs if run() is not None]


def test_dropping_the_output(planned, runs):
    output = planned(batch())
    assert len(alive(runs)) == 1
    del output
    assert not alive(runs)


def test_dropping_the_output_frees_its_memory(planned):
    x = batch()
    with trace_allocations(CPU) as tracer:
        output = planned(x)
        del output
        tracer.mark()
    assert tracer.phases[0].peak > 0
    assert tracer.phases[0].end == 0


def test_backward_with_the_output_still_held(planned, runs):
    output = planned(batch())
    output.sum().backward()
    assert not alive(runs)


def test_memory_after_backward_is_the_output(planned):
    x = batch()
    with trace_allocations(CPU) as tracer:
        output = planned(x)
        output.sum().backward()
        tracer.mark()
    assert tracer.phases[0].end == output.untyped_storage().nbytes()


def test_second_backward_and_double_backward(planned, runs):
    output = planned(batch())
    square(output).backward(retain_graph=True)
    square(output).backward()
    x = batch().requires_grad_()
    (slope,) = torch.autograd.grad(planned(x).sum(), [x], create_graph=True)
    slope.sum().backward()
    del slope, x
    assert not alive(runs)


def test_a_retained_graph_keeps_only_what_it_would(planned, runs):
    output = planned(batch())
    square(output).backward(retain_graph=True)
    assert len(alive(runs)) == 1
    del output
    assert not alive(runs)


def test_failed_forward_and_backward(runs):
    class Failing(nn.Module):
        when = ()

        def forward(self, x):
            if revolve.is_recomputing() in self.when:
                raise ArithmeticError
            return x.sin()

    model, _ = twins(perceptron(Failing))
    model[4].when = (False,)
    with pytest.raises(ArithmeticError):
        model(batch())
    assert not alive(runs)
    model[4].when = (True,)
    loss = square(model(batch()))
    with pytest.raises(ArithmeticError):
        loss.backward()
    del loss
    assert not alive(runs)


def test_a_model_is_freed_at_once(runs):
    model, _ = twins(perceptron())
    run_step(model, batch())
    reference = weakref.ref(model)
    del model
    assert reference() is None


@pytest.mark.slow
def test_a_thousand_steps_over_changing_shapes():
    """Bytes and objects stay where they are, with plans made again and forgotten."""
    model = perceptron(lambda: nn.Dropout(0.3), lambda: nn.BatchNorm1d(16))
    frontier = revolve.solve(revolve.measure(model, batch(40)))
    revolve.checkpointed(model, frontier.plan(frontier.smallest))

    def steps(count):
        for step in range(count):
            run_step(model, batch(2 + 7 * step % 39))
            if step % 3 == 0:
                model(batch(5))

    steps(60)
    model.zero_grad(set_to_none=True)
    gc.collect()
    before = len(gc.get_objects())
    with trace_allocations(CPU) as tracer:
        steps(40)
        model.zero_grad(set_to_none=True)
        tracer.mark()
    steps(960)
    model.zero_grad(set_to_none=True)
    gc.collect()
    assert tracer.phases[0].end == 0
    assert len(gc.get_objects()) <= before + 50
    assert len(model.forward.planned) <= 16


class Calling(nn.Module):
    """Calls its layers itself."""

    def __init__(self):
        super().__init__()
        self.layers = perceptron(nn.ReLU)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("way", [revolve.measure, revolve.linearize])
@pytest.mark.parametrize("make", [Calling, lambda: perceptron(nn.ReLU)], ids=["called", "sequential"])
def test_measuring_leaves_no_tensors(make, way):
    """An output that is saved as it is, by a hook, would be there for good."""

    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    model, counts = make(), []
    for _ in range(3):
        way(model, batch())
        counts.append(tensors())
    assert counts[0] == counts[1] == counts[2]


class Late(nn.Module):
    """Works on after its last saved tensor."""

    def __init__(self, dropout):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.dropout = nn.Dropout(dropout)
        self.ends = []

    def forward(self, x):
        y = self.dropout(self.linear(x)).sin()
        self.ends.append(len(y))
        return y + 1


@pytest.mark.parametrize("dropout", [0, 0.5])
def test_a_rebuild_ends_at_the_last_saved_tensor(dropout):
    """Work behind it is done once, in the first run, where the plan counts on less time than a forward's."""
    planned, _ = twins(nn.Sequential(*(Late(dropout) for _ in range(4))))
    stops = planned.forward.given.program.stops
    counts = planned.forward.plan.stage_counts()
    assert True in stops
    assert False in stops
    square(planned(batch())).backward()
    for stage, stop, count in zip(planned, stops, counts, strict=True):
        assert len(stage.ends) == count["forward"] + count["save"] + (0 if stop else count["rebuild"])


def test_holders_are_released_as_nodes_finish():
    """The saved tensors of a stage are freed one by one in its backward, as in plain training."""

    class Sines(nn.Module):
        def forward(self, x):
            for _ in range(8):
                x = x.sin()
            return x

    planned, _ = twins(nn.Sequential(Sines(), Sines()))
    x = torch.randn(1000, 100, requires_grad=True)
    y = planned(x)
    with trace_allocations(CPU) as tracer:
        y.backward(torch.ones_like(y))
        tracer.mark()
    assert tracer.phases[0].peak <= (7 + 1 + 3) * x.nbytes  # saved; the second stage's input; gradients on their way
