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
