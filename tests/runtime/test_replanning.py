"""Calls that look otherwise than the measured one are planned for, within the same budget."""

from __future__ import annotations

import copy

import pytest
import torch
from steps import CPU, assert_same, batch, perceptron, run_step, square
from torch import nn
from torch.profiler import profile

import revolve
from revolve.runtime import runner
from revolve.runtime.allocations import trace_allocations
from revolve.runtime.exceptions import MeasurementError


@pytest.fixture
def measured(monkeypatch):
    """List the shapes that are measured."""
    shapes = []
    measure = runner.measure_children

    def spy(children, input, name, **options):
        shapes.append(tuple(input.shape))
        return measure(children, input, name, **options)

    monkeypatch.setattr(runner, "measure_children", spy)
    return shapes


def network():
    return perceptron(lambda: nn.Dropout(0.3), depth=8)


def planned_for(rows, least_for=None):
    """Return a model planned for a batch, in the least budget of another one."""
    model = network()
    least = revolve.solve(revolve.measure(model, batch(least_for or rows))).smallest
    return revolve.checkpointed(model, revolve.solve(revolve.measure(model, batch(rows))).plan(least))


def peak_of(model, x):
    run_step(model, x)
    model.zero_grad()
    with trace_allocations(CPU) as tracer:
        square(model(x)).backward()
        tracer.mark()
    return tracer.phases[0].peak


def test_other_shapes_are_planned_once_and_keep_the_budget(measured):
    model, plain = planned_for(128, least_for=256), network()
    assert not measured
    for rows in (128, 256, 64, 1, 256, 128, 64):
        torch.manual_seed(rows)
        expected = run_step(plain, batch(rows))
        torch.manual_seed(rows)
        assert_same(run_step(model, batch(rows)), expected)
        assert peak_of(model, batch(rows)) <= model.forward.plan.budget
        if rows == 256:
            assert peak_of(plain, batch(rows)) > model.forward.plan.budget
    assert measured == [(256, 16), (64, 16), (1, 16)]


def test_a_small_call_runs_untouched(measured, monkeypatch):
    """Where the budget covers plain training of a call, nothing is run again."""
    model = planned_for(256)
    run_step(model, batch(2))
    monkeypatch.setattr(runner, "Run", None)
    run_step(model, batch(2))
    assert measured == [(2, 16)]


def test_a_larger_call_than_the_budget_allows():
    model = planned_for(64)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(revolve.InfeasibleBudget) as caught:
        model(batch(1024))
    assert "float32[1024, 16]" in caught.value.__notes__[0]
    assert caught.value.smallest > model.forward.plan.budget
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    run_step(model, batch(64))


def test_the_cache_is_bounded(measured):
    model = planned_for(64, least_for=128)
    for rows in (64, *range(1, 60)):
        run_step(model, batch(rows))
    assert len(model.forward.planned) == runner.CACHE_SIZE
    assert len(measured) == runner.CACHE_SIZE - 1  # then the plan for the largest input serves the others
    assert model.forward.choose(batch(40)).plan is model.forward.plan
    for rows in range(70, 73):  # larger ones are planned for, and the least recently used are forgotten
        run_step(model, batch(rows))
    assert len(model.forward.planned) == runner.CACHE_SIZE
    assert len(measured) == runner.CACHE_SIZE + 2


def test_other_modes_are_planned_for(measured):
    model, plain = planned_for(128), network()

    def check(expected, context=None):
        torch.manual_seed(1)
        theirs = run_step(plain, x)
        torch.manual_seed(1)
        assert_same(run_step(model, x), theirs)
        assert len(measured) == expected

    x = batch(128)
    check(0)
    for each in (model, plain):
        each[1].eval()
    check(1)
    for each in (model, plain):
        each[0].requires_grad_(False)
    check(2)
    x = batch(128).requires_grad_()
    check(3)
    check(3)


def test_autocast_is_planned_for(measured):
    model = planned_for(128, least_for=200)
    run_step(model, batch(128))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run_step(model, batch(128), lambda y: y.float().square().mean())
    assert len(measured) == 1


def test_a_plan_without_a_budget_serves_every_call(measured):
    model = network()
    frontier = revolve.solve(revolve.measure(model, batch(64)))
    plan = frontier.plan(frontier.smallest)
    revolve.checkpointed(model, revolve.Plan.from_actions(plan.chain, plan.actions))
    for rows in (1, 64, 300):
        run_step(model, batch(rows))
    assert not measured


def test_planning_again_leaves_the_step_as_it_was():
    """Random numbers, gradients and buffers of the step in which it happens are those of plain training."""
    build = lambda: perceptron(lambda: nn.Dropout(0.3), lambda: nn.BatchNorm1d(16), depth=8)  # noqa: E731
    model, plain = build(), build()
    frontier = revolve.solve(revolve.measure(model, batch(64)))
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    for each in (model, plain):
        torch.manual_seed(2)
        for rows in (64, 32, 16, 32):
            square(each(batch(rows))).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))


def test_a_profiler_is_in_the_way_of_planning_again():
    model = planned_for(64)
    run_step(model, batch(64))
    with profile():
        run_step(model, batch(64))
        with pytest.raises(MeasurementError, match="another torch profiler"):
            model(batch(32))


def test_calls_without_data_run_untouched(measured, monkeypatch):
    """Pipelines and tracers call a model with tensors that only have shapes."""
    model = planned_for(64).to("meta")
    monkeypatch.setattr(runner, "Run", None)
    assert model(batch(3).to("meta")).shape == (3, 16)
    assert not measured


def test_verify_reports_the_plan_of_its_sample():
    model = planned_for(128)
    report = revolve.verify(model, batch(100), repeats=1)
    assert report.exact
    assert report.plan is not model.forward.plan
    assert report.measured_peak <= report.predicted_peak <= model.forward.plan.budget
