"""Rules [5], [6] and [10] of the executor: backward in any order and number gives the right gradients."""

from __future__ import annotations

import threading
import warnings
from random import Random

import pytest
import torch
from random_schedules import random_plan
from steps import PLANNERS, batch, named_chain, perceptron, run_step, square, tight_plan, twins
from torch import nn
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight

import revolve
from revolve.runtime.exceptions import BudgetWarning

PLANNERS = {
    **PLANNERS,
    **{f"random {n}": lambda model, n=n: random_plan(named_chain(model), Random(n)) for n in range(3)},
}
pytestmark = pytest.mark.filterwarnings("ignore::revolve.runtime.exceptions.BudgetWarning")


@pytest.fixture(params=PLANNERS.values(), ids=PLANNERS)
def planner(request):
    return request.param


def dropouts():
    return perceptron(lambda: nn.Dropout(0.3), depth=4)


def gradients(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_all_equal(ours, theirs):
    assert len(ours) == len(theirs)
    assert all(a is b or torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


class Auxiliary(nn.Module):
    """Leaves a part of the loss in an attribute."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.3))

    def forward(self, x):
        y = self.body(x).tanh()
        loss = y.square().mean()
        if not revolve.is_recomputing():
            self.loss = loss
        return y


def auxiliaries(count=6):
    torch.manual_seed(0)
    return nn.Sequential(*(Auxiliary() for _ in range(count)))


@pytest.mark.parametrize("order", [(1, 3, 5), (5, 3, 1), (2, 5, 0), (3, 3, 1)])
def test_losses_in_the_middle_one_after_the_other(planner, order):
    found = []
    for model in twins(auxiliaries(), planner):
        torch.manual_seed(5)
        model(batch())
        for stage in order:
            model[stage].loss.backward(retain_graph=True)
        found.append(gradients(model))
    assert_all_equal(*found)


def test_every_parameter_in_a_backward_of_its_own(planner):
    found = []
    for model in twins(dropouts(), planner):
        torch.manual_seed(5)
        loss = square(model(batch()))
        parameters = list(model.parameters())
        found.append([torch.autograd.grad(loss, [p], retain_graph=True)[0] for p in (*parameters, *parameters[::-1])])
    assert_all_equal(*found)


def test_backward_of_the_lower_part_first(planner):
    """A graph task that begins in the middle, then one from the top over the same stages."""
    found = []
    for model in twins(auxiliaries(), planner):
        torch.manual_seed(5)
        output = model(batch())
        torch.autograd.backward([model[2].loss], inputs=list(model[1].parameters()), retain_graph=True)
        square(output).backward()
        found.append(gradients(model))
    assert_all_equal(*found)


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("backwards", ["in turn", "late", "late, last first"])
def test_zero_bubble_pipelines(planner, micro_batches, backwards):
    """Gradients of the inputs and of the weights in graph tasks of their own, as InterleavedZeroBubble asks for."""
    found = []
    for model in twins(dropouts(), planner):
        torch.manual_seed(5)
        waiting, inputs = [], []
        for number in range(micro_batches):
            x = batch(seed=number).requires_grad_()
            inputs.append(x)
            _, groups = stage_backward_input([square(model(x))], None, [x], model.parameters())
            waiting.append(groups)
            if backwards == "in turn":
                stage_backward_weight(model.parameters(), waiting.pop())
        for groups in waiting if backwards == "late" else waiting[::-1]:
            stage_backward_weight(model.parameters(), groups)
        found.append([*gradients(model), *(x.grad for x in inputs)])
    assert_all_equal(*found)


def test_a_backward_inside_a_backward(planner):
    """A hook asks for gradients of the same graph while backward runs."""
    found = []
    for model in twins(auxiliaries(), planner):
        torch.manual_seed(5)
        extra = []
        output = model(batch())
        losses = [stage.loss for stage in model]
        weight = model[0].body[0].weight
        weights = [model[index].body[0].weight for index in (4, 2)]

        def look(gradient, losses=losses, weight=weight, extra=extra):
            extra.extend(torch.autograd.grad(losses[3], [weight], retain_graph=True))

        for each in weights:
            each.register_hook(look)
        square(output).backward(retain_graph=True)
        found.append([*gradients(model), *extra])
    assert_all_equal(*found)


def test_saved_tensors_looked_at_in_any_order(planner):
    planned, plain = twins(perceptron(), planner)
    output = planned(batch())
    nodes, waiting = [], [output.grad_fn]
    while waiting:
        node = waiting.pop()
        nodes.append(node)
        waiting += [following for following, _ in node.next_functions if following is not None]
    for node in sorted(nodes, key=lambda node: hash(node.name())):
        for name in dir(node):
            if name.startswith("_saved_"):
                getattr(node, name)
    square(output).backward()
    square(plain(batch())).backward()
    assert_all_equal(gradients(planned), gradients(plain))


def in_threads(*functions):
    errors = []

    def run(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_one_graph_in_several_threads(planner):
    planned, plain = twins(perceptron(), planner)
    x = batch()
    expected = torch.autograd.grad(square(plain(x)), list(plain.parameters()))
    loss = square(planned(x))
    found = {}

    def work(number):
        for _ in range(5):
            found[number] = torch.autograd.grad(loss, list(planned.parameters()), retain_graph=True)

    in_threads(*(lambda n=n: work(n) for n in range(4)))
    for gradient in found.values():
        assert_all_equal(gradient, expected)


def test_one_model_in_several_threads(planner):
    planned, plain = twins(perceptron(), planner)
    found = {}

    def work(number):
        loss = square(planned(batch(seed=number)))
        found[number] = torch.autograd.grad(loss, list(planned.parameters()))

    in_threads(*(lambda n=n: work(n) for n in range(4)))
    for number, gradient in found.items():
        assert_all_equal(gradient, torch.autograd.grad(square(plain(batch(seed=number))), list(plain.parameters())))


def test_forward_and_backward_in_different_threads(planner):
    planned, plain = twins(dropouts(), planner)
    for model in (planned, plain):
        torch.manual_seed(5)
        losses = []
        in_threads(lambda model=model, losses=losses: losses.append(square(model(batch()))))
        losses[0].backward()
    assert_all_equal(gradients(planned), gradients(plain))


def test_a_warning_says_once_that_the_budget_may_not_hold():
    planned, _ = twins(perceptron(), tight_plan)
    loss = square(planned(batch()))
    loss.backward(retain_graph=True)
    with pytest.warns(BudgetWarning, match=r"backward asked again for stage '9'.*gradients are right, but"):
        loss.backward(retain_graph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss.backward(retain_graph=True)


@pytest.mark.filterwarnings("error")
def test_no_warning_in_planned_training():
    planned, _ = twins(dropouts(), tight_plan)
    for _ in range(2):
        run_step(planned, batch())
    losses = [square(planned(batch(seed=seed))) for seed in (1, 2)]
    for loss in losses:
        loss.backward()


@pytest.mark.parametrize("transform", ["grad", "vjp", "jvp", "vmap", "jacrev"])
def test_transforms_of_torch_func_are_refused(transform):
    planned, _ = twins(perceptron(), tight_plan)
    x = batch()

    def run(x):
        return planned(x).sum()

    calls = {
        "grad": lambda: torch.func.grad(run)(x),
        "vjp": lambda: torch.func.vjp(run, x),
        "jvp": lambda: torch.func.jvp(run, (x,), (x,)),
        "vmap": lambda: torch.func.vmap(run)(x),
        "jacrev": lambda: torch.func.jacrev(run)(x),
    }
    with pytest.raises(revolve.RevolveError, match=r"torch\.func transforms.*call revolve\.restore\(model\)"):
        calls[transform]()
    revolve.restore(planned)
    calls[transform]()


def test_forward_mode_derivatives(planner):
    import torch.autograd.forward_ad as forward_ad

    found = []
    for model in twins(perceptron(), planner):
        with forward_ad.dual_level():
            output, tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(batch(), batch(seed=2))))
            found.append([output.detach(), tangent.detach()])
    assert_all_equal(*found)
