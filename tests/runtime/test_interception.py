"""Stages that the model calls itself: every bit of plain training, the predicted peak, and no trace on the model."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from dataclasses import replace

import pytest
import torch
from branching import NETWORKS, DenseNet, Transformer, make, words
from twins import assert_equal, forgetful_plan, frontier_of, loss_of, planned_twins, run

import revolve
from revolve import Plan
from revolve.runtime.exceptions import BudgetWarning, PlanMismatch
from revolve.runtime.executor import Run


@pytest.mark.parametrize("name", NETWORKS)
def test_every_bit_and_the_peak_at_three_budgets(name):
    model, sample = make(name)
    frontier = frontier_of(model, sample)
    assert len(frontier.peaks) > 2
    for peak in (frontier.peaks[0], frontier.peaks[len(frontier.peaks) // 2], frontier.peaks[-2]):
        revolve.checkpointed(model, frontier.plan(int(peak)))
        report = revolve.verify(model, sample, repeats=1)
        assert report.exact, report.differences
        assert report.kept
        # Attention weights that the loss uses count in activations and gradients, too; which plan it is, times decide.
        assert 0.75 * report.predicted_peak <= report.measured_peak <= report.predicted_peak
        assert 0.85 * report.predicted_plain_peak <= report.plain_peak <= report.predicted_plain_peak


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_with_an_optimizer(name):
    planned, plain, sample = planned_twins(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BudgetWarning)
        for _ in range(3):
            for model in (planned, plain):
                model.zero_grad()
            assert_equal(run(planned, sample), run(plain, sample))
            for model in (planned, plain):
                torch.optim.SGD(model.parameters(), 0.1).step()
    assert_equal(list(planned.state_dict().values()), list(plain.state_dict().values()))


def test_stages_are_run_again(monkeypatch):
    planned, _, sample = planned_twins("transformer")
    asked = []
    kind = type(planned.blocks[0])
    forward = kind.forward

    def counting(self, *args, **kwargs):
        asked.append(revolve.is_recomputing())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", counting)
    run(planned, sample)
    assert asked.count(False) == 4
    assert asked.count(True) == 4 + 4 + 4 + 3 + 2 + 1  # for head, norm and blocks 3 to 0


def test_only_forwards_on_instances_change_and_restore_takes_them_back():
    model, sample = make("residual")
    before = [dict(vars(module)) for module in model.modules()]
    keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    frontier = frontier_of(model, sample)
    assert [vars(module) for module in model.modules()] == before
    for budget in (frontier.smallest, frontier.smallest + 1):  # also over another plan
        assert revolve.checkpointed(model, frontier.plan(budget)) is model
    for module, was in zip(model.modules(), before, strict=True):
        assert {key: value for key, value in vars(module).items() if key != "forward"} == was
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == classes
    revolve.restore(model)
    assert [vars(module) for module in model.modules()] == before


@pytest.mark.parametrize("name", ["residual", "shared"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_the_plan_and_are_their_own(name, duplicate, monkeypatch):
    planned, plain, sample = planned_twins(name)
    twin = duplicate(planned)
    revolve.restore(planned)
    expected = run(plain, sample)
    runs = []
    create = Run.__init__
    monkeypatch.setattr(Run, "__init__", lambda self, *a: (runs.append(1), create(self, *a))[1])
    assert_equal(run(twin, sample), expected)
    assert runs == [1]
    assert all(parameter.grad is None for parameter in planned.parameters())
    assert not any("forward" in vars(module) for module in revolve.restore(twin).modules())


def test_a_model_is_freed_without_the_garbage_collector():
    planned, _, sample = planned_twins("transformer")
    run(planned, sample)
    gc.collect()
    gc.disable()
    try:
        references = [weakref.ref(module) for module in planned.modules()]
        del planned
        assert not any(reference() is not None for reference in references)
    finally:
        gc.enable()


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


def test_nothing_outlives_the_graph(runs):
    planned, _, sample = planned_twins("transformer")
    assert not alive(runs)  # of those that measured
    runs.clear()
    output = planned(**sample)
    assert len(runs) == 1
    assert alive(runs)
    loss_of(output).backward()
    assert not alive(runs)
    output = planned(**sample)
    assert alive(runs)
    del output
    assert not alive(runs)


def test_nothing_outlives_a_failure_between_stages(runs):
    planned, _, sample = planned_twins("transformer")
    runs.clear()
    planned.norm.register_forward_pre_hook(lambda module, inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        planned(**sample)
    assert len(runs) == 1
    assert not alive(runs)


@pytest.mark.usefixtures("no_hooks")
def test_eval_and_no_grad_run_untouched():
    model, sample = Transformer(), {"words": words(4, 32)}
    revolve.checkpointed(model, forgetful_plan(uniform(model)))
    with pytest.raises(AssertionError, match="a hook was set"):
        model(**sample)
    with torch.no_grad():
        model(**sample)
    model.eval()
    loss_of(model(**sample)).backward()


def uniform(model):
    """Return a made-up chain of a transformer's blocks."""
    names = [f"blocks.{index}" for index in range(len(model.blocks))]
    chain = revolve.Chain.uniform(len(names))
    return replace(chain, stages=tuple(replace(s, name=n) for s, n in zip(chain.stages, names, strict=True)))


def test_a_saved_plan_needs_no_sample(tmp_path):
    model, sample = make("residual")
    plain = copy.deepcopy(model)
    frontier = frontier_of(model, sample)
    frontier.plan(frontier.smallest).save(tmp_path / "plan.json")
    revolve.checkpointed(model, Plan.load(tmp_path / "plan.json"))
    assert_equal(run(model, sample), run(plain, sample))


def test_in_one_line():
    model, sample = make("dense")
    plain = copy.deepcopy(model)
    smallest = frontier_of(model, sample).smallest
    revolve.checkpointed(model, sample=sample, budget=int(1.05 * smallest))
    assert_equal(run(model, sample), run(plain, sample))
    with pytest.raises(revolve.InfeasibleBudget):
        revolve.checkpointed(model, sample=sample, budget=1000)


def test_a_plan_of_another_model():
    model, sample = make("residual")
    plan = forgetful_plan(revolve.measure(model, sample))
    other = DenseNet()
    with pytest.raises(PlanMismatch, match="stage 'conv', and in this DenseNet there is no module 'conv'"):
        revolve.checkpointed(other, plan)
    assert not any("forward" in vars(module) for module in other.modules())
