"""A plan touches one attribute of one instance, and can be taken off again."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from steps import assert_same, batch, forgetful_plan, named_chain, perceptron, run_step, tight_plan, twins
from torch import nn

import revolve
from revolve.runtime.exceptions import ModelError, PlanMismatch


@pytest.fixture
def planned():
    model = perceptron(lambda: nn.Dropout(0.3))
    return revolve.checkpointed(model, forgetful_plan(model))


def plain_plan(model):
    return revolve.solve(named_chain(model)).plan("1GB")


def test_only_the_instance_changes_and_comes_back():
    model = perceptron()
    before, keys = dict(vars(model)), list(model.state_dict())
    assert revolve.checkpointed(model, tight_plan(model)) is model
    assert set(vars(model)) - set(before) == {"forward"}
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_modules()] == [name for name, _ in perceptron().named_modules()]
    revolve.checkpointed(model, forgetful_plan(model))
    assert revolve.restore(model) is model
    assert vars(model) == before
    assert revolve.restore(model) is model
    with pytest.raises(ModelError, match="the model is a NoneType"):
        revolve.restore(None)


@pytest.mark.parametrize("copying", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_planned_and_independent(planned, copying):
    run_step(planned, batch())
    other = copying(planned)
    revolve.restore(planned)
    calls = []
    other[0].register_forward_hook(lambda *_: calls.append(revolve.is_recomputing()))
    torch.manual_seed(2)
    expected = run_step(planned, batch())
    torch.manual_seed(2)
    assert_same(run_step(other, batch()), expected)
    assert True in calls


def test_torch_save_and_load(planned):
    file = io.BytesIO()
    torch.save(planned, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    other.load_state_dict(planned.state_dict())
    torch.manual_seed(2)
    expected = run_step(planned, batch())
    torch.manual_seed(2)
    assert_same(run_step(other, batch()), expected)


def test_a_plain_plan_installs_nothing():
    model = perceptron()
    before = dict(vars(model))
    revolve.checkpointed(model, forgetful_plan(model))
    plan = plain_plan(model)
    assert plan.plain
    revolve.checkpointed(model, plan)
    assert vars(model) == before
    assert revolve.verify(model, batch(), repeats=1).plan is plan


@pytest.mark.usefixtures("no_hooks")
def test_eval_and_no_grad_run_untouched(planned):
    with pytest.raises(AssertionError, match="a hook was set"):
        planned(batch())
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert planned(batch()).shape == (8, 16)
    planned.eval()
    planned(batch()).sum().backward()
    assert planned[0].weight.grad is not None


def test_a_saved_plan_needs_no_sample(tmp_path):
    model = perceptron(lambda: nn.Dropout(0.3))
    frontier = revolve.solve(revolve.measure(model, batch()))
    frontier.plan(frontier.smallest).save(tmp_path / "plan.json")
    plain = perceptron(lambda: nn.Dropout(0.3))
    revolve.checkpointed(model, revolve.Plan.load(tmp_path / "plan.json"))
    torch.manual_seed(2)
    expected = run_step(plain, batch())
    torch.manual_seed(2)
    assert_same(run_step(model, batch()), expected)


@pytest.mark.parametrize(
    "other",
    [perceptron(depth=4), perceptron(depth=6), nn.Sequential(perceptron(depth=5))],
)
def test_a_plan_of_another_model(other):
    before = dict(vars(other))
    with pytest.raises(PlanMismatch, match="the plan was made for another model"):
        revolve.checkpointed(other, tight_plan(perceptron()))
    assert vars(other) == before


def test_a_replaced_child_is_trained():
    planned, _ = twins(perceptron())
    run_step(planned, batch())
    planned[0] = nn.Linear(16, 16)
    step = run_step(planned, batch())
    revolve.restore(planned)
    assert_same(step, run_step(planned, batch()))
    revolve.checkpointed(planned, forgetful_plan(planned)).append(nn.Linear(16, 16))
    with pytest.raises(PlanMismatch, match="it has nothing for '10'"):
        planned(batch())


def test_names_with_a_plus():
    model = nn.Sequential()
    model.add_module("a+b", nn.Linear(16, 16))
    model.add_module("c", nn.GELU())
    model.add_module("d+e", nn.ReLU(inplace=True))
    model.add_module("a", nn.Linear(16, 16))
    frontier = revolve.solve(revolve.measure(model, batch()))
    assert [stage.name for stage in frontier.chain.stages] == ["a+b", "c+d+e", "a"]
    revolve.checkpointed(model, frontier.plan(frontier.smallest))


def test_a_sample_and_a_budget_make_the_plan():
    model = perceptron(depth=8)
    peaks = revolve.solve(revolve.measure(model, batch(64))).peaks
    budget = int(peaks[len(peaks) // 2])
    revolve.checkpointed(model, sample=batch(64), budget=budget)
    report = revolve.verify(model, batch(64), repeats=1)
    assert report.exact
    assert report.kept
    assert report.budget == budget
    for text in ("1GB", "1 GiB", "50%", "1000000"):
        assert revolve.verify(revolve.checkpointed(model, sample=batch(64), budget=text), batch(64), repeats=1).exact


def test_an_infeasible_budget_leaves_the_model_as_it_was():
    model = perceptron()
    before = dict(vars(model))
    with pytest.raises(revolve.InfeasibleBudget) as caught:
        revolve.checkpointed(model, sample=batch(), budget="1kB")
    assert vars(model) == before
    assert caught.value.budget == 1000
    revolve.checkpointed(model, sample=batch(), budget=caught.value.smallest)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, PlanMismatch, "needs a plan, or both"),
        ({"sample": batch()}, PlanMismatch, "needs a plan, or both"),
        ({"budget": "1GB"}, PlanMismatch, "needs a plan, or both"),
        ({"plan": "plan.json"}, PlanMismatch, r"the plan is a str.*Plan.load"),
        ({"plan": tight_plan(perceptron()), "budget": 5}, PlanMismatch, "not both"),
        ({"sample": batch(), "budget": "lots"}, revolve.BudgetError, "'lots' is not a size"),
        ({"sample": batch(), "budget": -1}, revolve.BudgetError, "negative"),
        ({"sample": batch(), "budget": 1.5}, revolve.BudgetError, "float"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    model = perceptron()
    before = dict(vars(model))
    with pytest.raises(error, match=message):
        revolve.checkpointed(model, **arguments)
    assert vars(model) == before


@pytest.mark.parametrize("model", [nn.Sequential(), torch.sin, "resnet50"])
def test_models_that_cannot_be_cut(model):
    with pytest.raises(ModelError, match=r"nn\.Sequential"):
        revolve.checkpointed(model, sample=batch(), budget="1GB")


def test_a_forward_that_somebody_else_replaced():
    model = perceptron()
    model.forward = lambda x: x
    with pytest.raises(ModelError, match="replaced on the instance"):
        revolve.checkpointed(model, tight_plan(model))
    with pytest.raises(ModelError, match="has no plan"):
        revolve.verify(perceptron(), batch())
