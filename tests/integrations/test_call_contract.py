"""The drop-in's arguments, and what leaves the model untouched."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.utils.checkpoint as torch_checkpoint
from torch import nn

import revolve
from revolve.integrations.torch import checkpoint_sequential

ROWS = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Sigmoid())))


def state(model):
    return [
        *(tensor.clone() for tensor in model.state_dict().values()),
        *(p.grad for p in model.parameters()),
        torch.get_rng_state(),
    ]


def assert_untouched(model, before):
    assert all(a is b or torch.equal(a, b) for a, b in zip(state(model), before, strict=True))
    assert "forward" not in vars(model)


def test_signature_begins_as_torchs():
    ours = list(inspect.signature(checkpoint_sequential).parameters.values())
    theirs = list(inspect.signature(torch_checkpoint.checkpoint_sequential).parameters.values())
    assert [(p.name, p.kind, p.default) for p in ours[:4]] == [(p.name, p.kind, p.default) for p in theirs[:4]]
    assert ours[-1].kind == theirs[-1].kind == inspect.Parameter.VAR_KEYWORD


@pytest.mark.parametrize("use_reentrant", [None, True, False])
@pytest.mark.parametrize("preserve_rng_state", [True, False])
def test_torchs_keyword_arguments(model, use_reentrant, preserve_rng_state):
    output = checkpoint_sequential(model, 2, ROWS, use_reentrant=use_reentrant, preserve_rng_state=preserve_rng_state)
    output.sum().backward()
    assert model[0].weight.grad is not None


@pytest.mark.parametrize(
    ("segments", "keywords", "error", "message"),
    [
        (2, {"determinism_check": "none"}, ValueError, "unexpected keyword arguments: determinism_check"),
        (0, {}, revolve.BudgetError, "segments"),
        (-1, {}, revolve.BudgetError, "segments"),
        (13, {}, revolve.BudgetError, "segments=13 is more than the 12 stages"),
        (2.5, {}, revolve.BudgetError, "segments"),
        ("2", {}, revolve.BudgetError, "segments"),
        (True, {}, revolve.BudgetError, "segments"),
        (None, {}, revolve.BudgetError, "segments"),
        (2, {"budget": "1GB"}, revolve.BudgetError, "two answers to one question"),
        (None, {"budget": "much"}, revolve.BudgetError, "'much' is not a size"),
        (None, {"budget": -5}, revolve.BudgetError, "negative"),
        (None, {"budget": "1kB"}, revolve.InfeasibleBudget, "least feasible"),
    ],
)
def test_wrong_arguments_leave_the_model_untouched(model, segments, keywords, error, message):
    before = state(model)
    with pytest.raises(error, match=message):
        checkpoint_sequential(model, segments, ROWS, **keywords)
    assert_untouched(model, before)


def test_a_function_that_fails_leaves_the_model_untouched(model):
    before = state(model)
    with pytest.raises(RuntimeError, match=r"stage '0' cannot be run on its input \(float32\[32, 3\]\)"):
        checkpoint_sequential(model, 2, ROWS[:, :3])
    assert_untouched(model, before)


def test_budgets(model):
    model.zero_grad()
    with pytest.raises(revolve.InfeasibleBudget) as caught:
        checkpoint_sequential(model, None, ROWS, budget=0)
    expected = torch.autograd.grad(model(ROWS).sum(), list(model.parameters()))
    for budget in (caught.value.smallest, "1GB", "50%"):
        output = checkpoint_sequential(model, None, ROWS, budget=budget)
        found = torch.autograd.grad(output.sum(), list(model.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_no_functions():
    with pytest.raises(revolve.BudgetError, match="functions is empty"):
        checkpoint_sequential([], 1, ROWS)


@pytest.mark.usefixtures("no_hooks")
def test_nothing_happens_without_gradients(model):
    with pytest.raises(revolve.RevolveError, match="a hook was set"):
        checkpoint_sequential(model, 2, ROWS)
    with torch.no_grad():
        checkpoint_sequential(model, 2, ROWS)
    model.requires_grad_(False)
    assert not checkpoint_sequential(model, 2, ROWS).requires_grad
    model.requires_grad_(True)


def test_eval_mode(model):
    """Gradients in eval mode are checkpointed as well, as torch's own does."""
    model.eval()
    expected = torch.autograd.grad(model(ROWS).sum(), list(model.parameters()))
    found = torch.autograd.grad(checkpoint_sequential(model, 3, ROWS).sum(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
