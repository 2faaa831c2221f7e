"""Rule [7] of the executor: stages are run again with the forward hooks of their first run."""

from __future__ import annotations

import copy

import pytest
import torch
from steps import PLANNERS, batch, perceptron, square, twins
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from twins import assert_equal, forgetful_plan

import revolve
from revolve.runtime.module_hooks import GLOBAL, ModuleHooks
from revolve.runtime.stages import StageModule


def louder(module, inputs, output):
    return output * 1.5 if isinstance(module, nn.Linear) else None


def shifted(module, inputs):
    return (inputs[0] + 0.5,) if isinstance(module, nn.Linear) else None


def on_every_layer(register):
    def put_on(model):
        return [register(module) for module in model.modules() if isinstance(module, nn.Linear)]

    return put_on


HOOKS = {
    "forward": on_every_layer(lambda m: m.register_forward_hook(louder)),
    "before forward": on_every_layer(lambda m: m.register_forward_pre_hook(shifted)),
    "with keywords": on_every_layer(
        lambda m: m.register_forward_hook(lambda m, args, kwargs, output: louder(m, args, output), with_kwargs=True)
    ),
    "before, with keywords": on_every_layer(
        lambda m: m.register_forward_pre_hook(lambda m, args, kwargs: (shifted(m, args), kwargs), with_kwargs=True)
    ),
    "of all modules": lambda model: [register_module_forward_hook(louder)],
    "of all modules, before": lambda model: [register_module_forward_pre_hook(shifted)],
}


def hooks_of(model):
    tables = [module.__dict__[name] for module in model.modules() for name in ("_forward_hooks", "_forward_pre_hooks")]
    return [list(table) for table in (*tables, *GLOBAL)]


def step(model, x, put_on, when):
    handles = put_on(model) if when == "removed" else []
    output = model(x)
    handles = [handle.remove() for handle in handles] or put_on(model)
    before = hooks_of(model)
    square(output).backward()
    assert hooks_of(model) == before
    for handle in handles:
        if handle is not None:
            handle.remove()
    return [output.detach(), *(p.grad for p in model.parameters())]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return self.second(nn.functional.gelu(self.first(x)))


class Called(nn.Module):
    """Calls its stages itself."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(5))

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


@pytest.mark.parametrize("when", ["removed", "added"])
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_that_change_between_forward_and_backward(name, when):
    for planner in PLANNERS.values():
        planned, plain = perceptron(lambda: nn.Dropout(0.3)), perceptron(lambda: nn.Dropout(0.3))
        revolve.checkpointed(planned, planner(planned))
        for _ in range(2):
            found = []
            for model in (planned, plain):
                torch.manual_seed(3)
                found.append(step(model, batch(), HOOKS[name], when))
            assert_equal(*found)


@pytest.mark.parametrize("when", ["removed", "added"])
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_of_models_that_call_their_stages(name, when):
    planned = Called()
    plain = copy.deepcopy(planned)
    revolve.checkpointed(planned, forgetful_plan(revolve.measure(planned, batch())))
    for _ in range(2):
        assert_equal(step(planned, batch(), HOOKS[name], when), step(plain, batch(), HOOKS[name], when))


def test_a_hook_that_removes_itself():
    found = []
    for model in twins(perceptron()):
        handles = []

        def once(module, inputs, output, handles=handles):
            handles.pop().remove() if handles else None
            return output * 3

        handles.append(model[2].register_forward_hook(once))
        for _ in range(2):
            square(model(batch())).backward()
        assert not model[2]._forward_hooks
        found.append([p.grad for p in model.parameters()])
    assert_equal(*found)


def test_hooks_are_read_anew_only_where_some_were_registered():
    stages = [StageModule(str(number), (nn.Linear(2, 2),)) for number in range(3)]
    first = ModuleHooks.current(stages)
    assert ModuleHooks.current(stages) is first
    torch.zeros(1, requires_grad=True).register_hook(print)
    assert ModuleHooks.current(stages) is first
    handle = stages[2].functions[0].register_forward_hook(print)
    assert not first.active()
    second = ModuleHooks.current(stages)
    assert second is not first
    handle.remove()
    assert first.active()
    assert not second.active()


@pytest.mark.parametrize("kind", ["register_full_backward_pre_hook", "register_full_backward_hook"])
def test_backward_hooks_cost_no_memory(kind):
    """A module that has some gives an alias of its output, which is not held apart from what it is an alias of."""
    model, x = Called(), torch.randn(256, 16)
    for block in model.blocks:
        getattr(block, kind)(lambda module, gradients, *_: tuple(g if g is None else g * 1.1 for g in gradients))
    frontier = revolve.solve(revolve.measure(model, x))
    for peak in (frontier.peaks[0], frontier.peaks[len(frontier.peaks) // 2]):
        revolve.checkpointed(model, frontier.plan(int(peak)))
        report = revolve.verify(model, x, repeats=1)
        assert report.exact, report.differences
        assert report.kept
