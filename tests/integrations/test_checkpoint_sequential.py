"""The drop-in against torch's own and against plain training."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.utils.checkpoint as torch_checkpoint
from torch import nn

from revolve.integrations import torch as integration
from revolve.integrations.torch import checkpoint_sequential
from revolve.runtime.allocations import trace_allocations

CPU = torch.device("cpu")
IMAGES = torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def fresh_plans(monkeypatch):
    monkeypatch.setattr(integration, "PLANS", type(integration.PLANS)())


@pytest.fixture
def measurements(monkeypatch):
    """Count how often a chain is measured."""
    calls = []
    measure = integration.measure_stages
    monkeypatch.setattr(integration, "measure_stages", lambda *args: calls.append(1) or measure(*args))
    return calls


def trap():
    """Six times convolution, norm and ReLU in place, which torch's own cuts in two."""
    torch.manual_seed(0)
    layers = []
    for width in (3, 8, 8, 8, 8, 8):
        layers += [nn.Conv2d(width, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def perceptron(depth=6):
    torch.manual_seed(0)
    blocks = (nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.2)) for _ in range(depth))
    return nn.Sequential(*blocks)


def step(model, run, x):
    """Run one step; return everything it leaves."""
    torch.manual_seed(4)
    model.zero_grad()
    output = run(model, x)
    output.square().mean().backward()
    return [
        output.detach().clone(),
        *(parameter.grad.clone() for parameter in model.parameters()),
        *(buffer.clone() for buffer in model.buffers()),
        torch.get_rng_state(),
    ]


def assert_equal(ours, theirs):
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def peak(model, run, x):
    """Return the peak in bytes of a step, after one that warms up."""
    step(model, run, x)
    model.zero_grad()
    with trace_allocations(CPU) as tracer:
        run(model, x).square().mean().backward()
        tracer.mark()
    return tracer.phases[0].peak


def ours(segments):
    return lambda model, x: checkpoint_sequential(model, segments, x)


def theirs(segments):
    return lambda model, x: torch_checkpoint.checkpoint_sequential(model, segments, x, use_reentrant=False)


@pytest.mark.parametrize("segments", range(1, 10))
def test_the_trap(segments):
    model, plain = trap(), trap()
    for _ in range(2):
        assert_equal(step(model, ours(segments), IMAGES), step(plain, lambda m, x: m(x), IMAGES))
    try:
        limit = peak(trap(), theirs(segments), IMAGES)
    except RuntimeError:  # torch cuts before a ReLU in place
        limit = peak(trap(), lambda m, x: m(x), IMAGES)
    assert peak(model, ours(segments), IMAGES) <= limit


@pytest.mark.parametrize("segments", [1, 2, 3, 6])
def test_nested_blocks_with_dropout(segments):
    model, plain = perceptron(), perceptron()
    for _ in range(2):
        assert_equal(step(model, ours(segments), ROWS), step(plain, lambda m, x: m(x), ROWS))


def test_later_calls_reuse_the_plan(measurements):
    model = perceptron()
    for _ in range(3):
        step(model, ours(3), ROWS)
    assert len(measurements) == 1
    step(model, ours(2), ROWS)
    step(model, ours(3), ROWS[:8])
    assert len(measurements) == 3
    step(model, ours(3), ROWS)
    assert len(measurements) == 3
    model[0].eval()
    step(model, ours(3), ROWS)
    step(perceptron(), ours(3), ROWS)
    assert len(measurements) == 5


class Caller:
    """A callable object that is no module."""

    def __init__(self, block):
        self.block = block

    def __call__(self, x):
        return self.block(x)


class Owner:
    """Neither a module nor callable, with modules and methods."""

    def __init__(self, blocks):
        self.blocks = list(blocks)

    def first(self, x):
        return self.blocks[0](x)

    def others(self, x):
        for block in self.blocks[1:]:
            x = block(x)
        return x


def closure(block):
    def run(x):
        return block(x)

    return run


def default(block):
    return lambda x, block=block: block(x)


WRAPPERS = {
    "module": lambda block: block,
    "closure": closure,
    "default argument": default,
    "partial": lambda block: partial(lambda block, x: block(x), block),
    "bound method of a module": lambda block: block.forward,
    "callable object": Caller,
}


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("input_grad", [False, True])
def test_lists_of_callables(wrapper, input_grad, measurements):
    model, plain = perceptron(), perceptron()
    fired = []
    model[0][0].weight.register_post_accumulate_grad_hook(lambda parameter: fired.append(1))
    x = ROWS.clone().requires_grad_(input_grad)
    for _ in range(2):
        functions = [wrapper(block) for block in model]
        run = lambda _, x, functions=functions: checkpoint_sequential(functions, 3, x)  # noqa: E731
        assert_equal(step(model, run, x), step(plain, lambda m, x: m(x), x))
    assert len(fired) == 2
    assert len(measurements) == 1


def test_methods_of_an_object(measurements):
    model, plain = perceptron(), perceptron()
    owner = Owner(model)
    for _ in range(2):
        run = lambda _, x: checkpoint_sequential([owner.first, owner.others], 2, x)  # noqa: E731
        assert_equal(step(model, run, ROWS), step(plain, lambda m, x: m(x), ROWS))
    assert len(measurements) == 1


GLOBAL = perceptron(2)


def test_functions_that_use_global_modules():
    plain = copy.deepcopy(GLOBAL)
    run = lambda _, x: checkpoint_sequential([lambda x: GLOBAL[0](x), lambda x: GLOBAL[1](x)], 2, x)  # noqa: E731
    assert_equal(step(GLOBAL, run, ROWS), step(plain, lambda m, x: m(x), ROWS))


def test_functions_without_modules():
    weights = [torch.randn(16, 16).requires_grad_() for _ in range(5)]
    functions = [lambda x, weight=weight: (x @ weight).sin() for weight in weights]
    checkpoint_sequential(functions, 2, ROWS).sum().backward()
    found = [weight.grad for weight in weights]
    x = ROWS
    for weight in weights:
        weight.grad = None
        x = (x @ weight).sin()
    x.sum().backward()
    assert_equal(found, [weight.grad for weight in weights])


def test_functions_that_share_a_graph_with_the_caller():
    gradients = []
    for checkpointing in (True, False):
        encoder, blocks = nn.Sequential(nn.Linear(16, 16), nn.Tanh()), perceptron()
        torch.nn.init.eye_(encoder[0].weight)
        torch.nn.init.zeros_(encoder[0].bias)
        context = encoder(ROWS)
        functions = [lambda x, block=block, context=context: block(x) * context for block in blocks]
        torch.manual_seed(3)
        if checkpointing:
            output = checkpoint_sequential(functions, 3, ROWS)
        else:
            output = ROWS
            for function in functions:
                output = function(output)
        output.sum().backward()
        gradients.append([p.grad for p in (*encoder.parameters(), *blocks.parameters())])
    assert_equal(*gradients)


def test_functions_with_equal_code_are_told_apart():
    linear, sigmoid, relu = nn.Linear(16, 16), nn.GELU(), nn.ReLU(inplace=True)
    for order in ([linear, sigmoid, relu, linear, sigmoid, linear], [linear, relu, sigmoid, linear, sigmoid, linear]):
        functions = [closure(module) for module in order]
        output = checkpoint_sequential(functions, 2, ROWS)
        assert torch.equal(output, nn.Sequential(*copy.deepcopy(order))(ROWS))
        output.sum().backward()


def test_a_module_that_occurs_twice_runs_twice():
    layer = nn.Linear(16, 16)
    model = nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh())
    assert torch.equal(checkpoint_sequential(model, 4, ROWS), model(ROWS))
