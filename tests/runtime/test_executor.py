"""Rules [1], [2], [4] to [6] of the executor: what runs when, and every kind of backward."""

from __future__ import annotations

import pytest
import torch
from steps import (
    PLANNERS,
    Counted,
    assert_equal_steps,
    batch,
    perceptron,
    run_step,
    square,
    tight_plan,
    twins,
)
from torch import nn

import revolve


@pytest.fixture(params=PLANNERS.values(), ids=PLANNERS)
def planner(request):
    return request.param


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def assert_all_equal(ours, theirs):
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_every_stage_runs_as_often_as_planned(planner):
    model = nn.Sequential(*(Counted(nn.Sequential(nn.Linear(16, 16), nn.Tanh())) for _ in range(6)))
    plan = planner(model)
    run_step(revolve.checkpointed(model, plan), batch())
    for stage, counts in zip(model, plan.stage_counts(), strict=True):
        assert stage.first == 1  # [1]
        assert stage.first + stage.again == counts["forward"] + counts["save"] + counts["rebuild"]


@pytest.mark.filterwarnings("ignore::revolve.runtime.exceptions.BudgetWarning")
def test_a_second_backward_follows_the_whole_schedule_anew(planner):
    """Not every stage alone, which would take a forward of all stages before it each time [5]."""
    model = nn.Sequential(*(Counted(nn.Sequential(nn.Linear(16, 16), nn.Tanh())) for _ in range(6)))
    plan = planner(model)
    loss = square(revolve.checkpointed(model, plan)(batch()))
    loss.backward(retain_graph=True)
    loss.backward()
    for stage, counts in zip(model, plan.stage_counts(), strict=True):
        assert stage.first == 1
        assert stage.again == 2 * (counts["forward"] + counts["save"] + counts["rebuild"]) - 1


def test_stages_run_again_late(planner):
    """A stage runs again only when the gradient behind it is at hand [2]."""
    events = []
    model = perceptron(depth=3)
    for index, layer in enumerate(model):
        layer.register_forward_pre_hook(lambda *_, i=index: events.append(("run", i)))
    planned, _ = twins(model, planner)
    output = planned(batch())
    output.register_hook(lambda _: events.append("turn"))
    assert events == [("run", index) for index in range(len(model))]
    output.sum().backward()
    assert events.index("turn") == len(model)


def test_second_backward_through_a_retained_graph(planner):
    planned, plain = twins(perceptron(lambda: nn.Dropout(0.3)), planner)
    x = batch()
    for model in (planned, plain):
        torch.manual_seed(5)
        output = model(x)
        square(output).backward(retain_graph=True)
        output.sum().backward(retain_graph=True)
        square(output).backward()
    assert_all_equal(gradients(planned), gradients(plain))


def test_second_backward_without_a_retained_graph_fails_as_always(planner):
    planned, _ = twins(perceptron(), planner)
    loss = square(planned(batch()))
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_losses_of_parts_of_the_output(planner):
    planned, plain = twins(perceptron(), planner)
    for model in (planned, plain):
        output = model(batch())
        square(output[:3]).backward(retain_graph=True)
        square(output[3:]).backward()
    assert_all_equal(gradients(planned), gradients(plain))


def test_gradients_of_input_and_parameters_by_autograd_grad(planner):
    planned, plain = twins(perceptron(), planner)
    found = []
    for model in (planned, plain):
        x = batch().requires_grad_()
        output = model(x)
        first = torch.autograd.grad(square(output), [x], retain_graph=True)
        last = torch.autograd.grad(square(output), list(model[-2].parameters()), retain_graph=True)
        everything = torch.autograd.grad(square(output), [x, *model.parameters()])
        found.append([*first, *last, *everything])
        assert x.grad is None
    assert_all_equal(*found)


def test_backward_for_some_inputs_leaves_the_others_alone(planner):
    planned, plain = twins(perceptron(), planner)
    for model in (planned, plain):
        square(model(batch())).backward(inputs=list(model[0].parameters()))
        assert model[2].weight.grad is None
    assert torch.equal(planned[0].weight.grad, plain[0].weight.grad)


def test_gradient_penalty(planner):
    planned, plain = twins(perceptron(lambda: nn.Dropout(0.3)), planner)
    for model in (planned, plain):
        torch.manual_seed(5)
        x = batch().requires_grad_()
        output = model(x)
        (slope,) = torch.autograd.grad(output.sum(), [x], create_graph=True)
        (square(output) + (slope.norm() - 1) ** 2).backward()
    assert_all_equal(gradients(planned), gradients(plain))


def test_looking_at_a_saved_tensor_before_backward(planner):
    planned, plain = twins(perceptron(), planner)
    output = planned(batch())
    assert torch.equal(output.grad_fn._saved_result, output)
    square(output).backward()
    square(plain(batch())).backward()
    assert_all_equal(gradients(planned), gradients(plain))


def test_micro_batches_accumulate(planner):
    planned, plain = twins(perceptron(lambda: nn.BatchNorm1d(16), lambda: nn.Dropout(0.3)), planner)
    for model in (planned, plain):
        torch.manual_seed(5)
        losses = [square(model(batch(seed=seed))) for seed in (1, 2)]
        for loss in losses:
            loss.backward()
    assert_all_equal(gradients(planned), gradients(plain))
    assert_all_equal(planned.buffers(), plain.buffers())


class Fragile(nn.Module):
    failing = False

    def forward(self, x):
        if revolve.is_recomputing() and self.failing:
            raise ArithmeticError("fragile")
        return x.sin()


@pytest.mark.parametrize("position", [2, 5, 11])
def test_backward_after_one_that_failed(planner, position):
    planned, plain = twins(perceptron(Fragile, depth=3).append(nn.Linear(16, 16)).append(nn.Tanh()).append(Fragile()))
    output = planned(batch())
    fragile = planned[position] if position == 11 else planned[position - 1]
    fragile.failing = True
    with pytest.raises(ArithmeticError, match="fragile"):
        square(output).backward(retain_graph=True)
    fragile.failing = False
    planned.zero_grad()
    square(output).backward()
    square(plain(batch())).backward()
    assert_all_equal(gradients(planned), gradients(plain))


def test_is_recomputing_only_while_a_stage_runs_again():
    seen = []

    class Witness(nn.Module):
        def forward(self, x):
            seen.append(revolve.is_recomputing())
            return x.sin()

    planned, _ = twins(nn.Sequential(Witness(), nn.Linear(16, 16), Witness(), nn.Linear(16, 16)))
    loss = square(planned(batch()))
    assert seen == [False, False]
    loss.backward()
    assert len(seen) > 2
    assert all(seen[2:])
    assert not revolve.is_recomputing()


def test_shared_parameters_and_modules():
    tied = perceptron()
    tied[4].weight = tied[0].weight
    assert_equal_steps(tied, batch())
    layer, norm = nn.Linear(16, 16), nn.BatchNorm1d(16)
    assert_equal_steps(nn.Sequential(layer, norm, nn.Tanh(), layer, norm, nn.Tanh(), layer), batch())


def test_frozen_parts():
    stem, middle = perceptron(), perceptron()
    stem[:4].requires_grad_(False)
    middle[4:8].requires_grad_(False)
    last = perceptron().append(nn.Linear(16, 16))
    last[:-1].requires_grad_(False)
    for model in (stem, middle, last):
        assert_equal_steps(model, batch())
        assert_equal_steps(model, batch().requires_grad_())


def test_parameters_of_a_functional_call():
    planned, plain = twins(perceptron(), tight_plan)
    found = []
    for model in (planned, plain):
        other = {name: (p.detach() * 1.5).requires_grad_() for name, p in model.named_parameters()}
        output = torch.func.functional_call(model, other, (batch(),))
        found.append(torch.autograd.grad(square(output), list(other.values())))
    assert_all_equal(*found)


def test_checkpoint_inside_a_stage():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.3), nn.GELU())

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False)

    assert_equal_steps(nn.Sequential(*(Inner() for _ in range(4))), batch())
