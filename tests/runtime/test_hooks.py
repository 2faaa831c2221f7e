"""The user's hooks fire as in plain training."""

from __future__ import annotations

import pytest
import torch
from steps import PLANNERS, batch, forgetful, perceptron, run_step, square, twins
from torch import nn

import revolve
from revolve.runtime.exceptions import PlanMismatch


@pytest.fixture(params=PLANNERS.values(), ids=PLANNERS)
def planner(request):
    return request.param


def test_parameter_hooks_fire_once_a_step(planner):
    planned, _ = twins(perceptron(), planner)
    fired = []
    for name, parameter in planned.named_parameters():
        parameter.register_hook(lambda gradient, name=name: fired.append(("gradient", name)))
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: fired.append(("accumulated", name)))
    for _ in range(2):
        run_step(planned, batch())
        assert len(fired) == len(set(fired)) == 2 * len(list(planned.parameters()))
        fired.clear()


def test_optimizers_in_backward(planner):
    planned, plain = twins(perceptron(), planner)

    def descend(parameter):
        with torch.no_grad():
            parameter -= 0.1 * parameter.grad
        parameter.grad = None

    for model in (planned, plain):
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(descend)
        for _ in range(3):
            square(model(batch())).backward()
    assert all(torch.equal(p, q) for p, q in zip(planned.parameters(), plain.parameters(), strict=True))


def test_backward_hooks_of_modules(planner):
    planned, plain = twins(perceptron(), planner)
    seen = {id(planned): [], id(plain): []}
    for model in (planned, plain):
        for name, module in model.named_modules():
            found = seen[id(model)]
            module.register_full_backward_hook(
                lambda _module, _inputs, outputs, name=name, found=found: found.append((name, outputs[0].clone()))
            )
        run_step(model, batch().requires_grad_())
    ours, theirs = seen[id(planned)], seen[id(plain)]
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True))


def test_forward_hooks_of_stages_can_tell_first_runs(planner):
    planned, _ = twins(perceptron(), planner)
    calls = {False: [], True: []}
    for name, module in planned.named_children():
        module.register_forward_hook(lambda *_, name=name: calls[revolve.is_recomputing()].append(name))
    run_step(planned, batch())
    assert calls[False] == [name for name, _ in planned.named_children()]
    assert calls[True]


def test_forward_hooks_of_the_model_fire_once(planner):
    planned, plain = twins(perceptron(), planner)
    fired = []
    for model in (planned, plain):
        model.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 2,))
        model.register_forward_hook(lambda _module, _inputs, output: fired.append(1) or output + 1)
    ours, theirs = run_step(planned, batch()), run_step(plain, batch())
    assert torch.equal(ours.output, theirs.output)
    assert torch.equal(ours.gradients["0.weight"], theirs.gradients["0.weight"])
    assert len(fired) == 2


def test_a_nested_container_with_a_hook_stays_whole():
    inner = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
    inner.register_forward_hook(lambda _module, _inputs, output: output * 3)
    model = nn.Sequential(nn.Linear(16, 16), inner, nn.Sequential(nn.Linear(16, 16), nn.Tanh()))
    chain = revolve.measure(model, batch())
    assert [stage.name for stage in chain.stages] == ["0", "1", "2.0", "2.1"]
    plain = run_step(model, batch())
    frontier = revolve.solve(chain)
    planned = run_step(revolve.checkpointed(model, frontier.plan(frontier.smallest)), batch())
    assert torch.equal(planned.output, plain.output)
    assert torch.equal(planned.gradients["0.weight"], plain.gradients["0.weight"])


def test_a_nested_container_with_a_forward_of_its_own_stays_whole():
    inner = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
    inner.forward = lambda x: x * 3
    model = nn.Sequential(nn.Linear(16, 16), inner, nn.Sigmoid())
    assert [stage.name for stage in revolve.measure(model, batch()).stages] == ["0", "1", "2"]


def test_a_hook_that_comes_after_the_plan_is_not_passed_over():
    inner = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
    planned, _ = twins(nn.Sequential(nn.Linear(16, 16), inner))
    inner.register_forward_hook(lambda _module, _inputs, output: output * 3)
    with pytest.raises(PlanMismatch, match=r"stage '1\.0', '1' stands"):
        planned(batch())


class Chained(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = perceptron()

    def forward(self, x):
        return self.layers(x) * 2


@pytest.mark.parametrize("kind", ["full_backward_hook", "full_backward_pre_hook", "forward_hook", "forward_pre_hook"])
def test_hooks_of_a_model_that_calls_its_stages(kind):
    """They run around it, functions that they call belong to no stage, and backward hooks fire as ever."""
    torch.manual_seed(0)
    planned, plain = Chained(), Chained()
    planned.load_state_dict(plain.state_dict())
    fired = {planned: [], plain: []}
    for model, found in fired.items():

        def note(*given, found=found):
            seen = given[-1] if isinstance(given[-1], tuple) else (given[-1],)
            found.append([tensor.detach().clone() for tensor in seen])
            if kind.startswith("forward"):
                changed = tuple(tensor.exp() for tensor in seen)
                return changed if isinstance(given[-1], tuple) else changed[0]
            return None

        getattr(model, f"register_{kind}")(note)
    revolve.checkpointed(planned, forgetful(revolve.measure(planned, batch())))
    fired[planned].clear()
    for model in (planned, plain):
        torch.manual_seed(3)
        run_step(model, batch().requires_grad_())
    assert len(fired[planned]) == len(fired[plain]) == 1
    assert all(torch.equal(a, b) for a, b in zip(fired[planned][0], fired[plain][0], strict=True))
    for ours, theirs in zip(planned.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
