"""Rule [7] of the executor: the user's own function and dispatch modes are those of the first run again."""

from __future__ import annotations

import copy
from contextlib import ExitStack, nullcontext

import pytest
import torch
from branching import Layers, make
from steps import PLANNERS, batch, perceptron, square, twins
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.flop_counter import FlopCounterMode
from twins import assert_equal, forgetful_plan, loss_of

import revolve
from revolve.runtime.exceptions import BudgetWarning
from revolve.runtime.user_modes import UserModes


class Louder(TorchFunctionMode):
    """Scales what linear layers give, and counts how often it is entered."""

    def __init__(self, scale=1.5):
        super().__init__()
        self.scale = scale
        self.entered = 0

    def __enter__(self):
        self.entered += 1
        return super().__enter__()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result * self.scale if func is nn.functional.linear else result


class Shifted(Louder):
    """Adds where the other one scales: their order matters."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result + self.scale if func is nn.functional.linear else result


class Rounded(TorchDispatchMode):
    """Rounds what ``addmm`` gives."""

    def __init__(self, digits=1):
        super().__init__()
        self.digits = digits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result.round(decimals=self.digits) if func is torch.ops.aten.addmm.default else result


class Truncated(Rounded):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return (result * 3).trunc() / 3 if func is torch.ops.aten.addmm.default else result


MODES = {
    "function": lambda: [Louder()],
    "dispatch": lambda: [Rounded()],
    "two functions": lambda: [Louder(), Shifted()],
    "two dispatches": lambda: [Rounded(), Truncated()],
    "all, and a device": lambda: [torch.device("cpu"), Louder(), Rounded(), Shifted(), Truncated()],
}


def stacks():
    return _get_current_function_mode_stack(), _get_current_dispatch_mode_stack()


def step(model, x, around, behind=()):
    """Return what a step leaves, whose forward and backward run under some modes."""
    with ExitStack() as stack:
        for mode in around:
            stack.enter_context(mode)
        output = model(x)
    with ExitStack() as stack:
        for mode in behind:
            stack.enter_context(mode)
        before = stacks()
        loss_of(output).backward()
        assert stacks() == before
    return [output.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("name", MODES)
def test_modes_around_the_forward(name, planner):
    found = []
    for model in twins(perceptron(lambda: nn.Dropout(0.3)), PLANNERS[planner]):
        torch.manual_seed(3)
        found.append(step(model, batch(), MODES[name]()))
    assert_equal(*found)
    torch.manual_seed(3)
    assert not torch.equal(found[0][0], perceptron(lambda: nn.Dropout(0.3))(batch()))


class Dithered(Louder):
    """Adds noise from a generator of its own to what linear layers give."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result + torch.rand((), generator=self.generator) if func is nn.functional.linear else result


def test_a_mode_that_draws_from_a_generator_of_its_own():
    for_both = [[*step(m, batch(), [Dithered()]), *step(m, batch(), [Dithered()])] for m in twins(perceptron())]
    assert_equal(*for_both)


def test_a_mode_around_a_whole_step():
    """Torch takes a function mode off while it hands ``Tensor.backward`` to it."""
    found = []
    for model in twins(perceptron()):
        with Louder(), Rounded():
            square(model(batch())).backward()
        found.append([p.grad for p in model.parameters()])
    assert_equal(*found)


def test_modes_are_not_entered_again():
    model, mode = perceptron(), Louder()
    revolve.checkpointed(model, PLANNERS["forgetful"](model))
    step(model, batch(), [mode])
    assert mode.entered == 1


def test_modes_of_backward_stay_below():
    """One that counts what backward does sees what is run again; one of the forward is above it, as it was."""

    class Counting(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += func is torch.ops.aten.addmm.default
            return func(*args, **(kwargs or {}))

    found = []
    for planned in (True, False):
        model, counting, rounded, louder = perceptron(), Counting(), Rounded(), Louder()
        if planned:
            revolve.checkpointed(model, PLANNERS["forgetful"](model))
        found.append(step(model, batch(), [louder, rounded], [rounded, counting, louder, Shifted(0.0)]))
        assert (counting.seen > 0) is planned
    assert_equal(*found)


def test_a_mode_that_only_watches_is_left_out():
    model, counter = perceptron(), FlopCounterMode(display=False)
    revolve.checkpointed(model, PLANNERS["forgetful"](model))
    with counter:
        output = model(batch())
    before = counter.get_total_flops()
    square(output).backward()
    assert counter.get_total_flops() == before > 0


class Inside(nn.Module):
    """Enters modes in its own forward, with functions between the layers."""

    def __init__(self, modes, where):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(5))
        self.modes, self.where = modes, where

    def forward(self, x):
        with self.modes() if self.where == "around" else nullcontext():
            for number, layer in enumerate(self.layers):
                alternate = self.where == "each" or (self.where == "some" and number % 2)
                with self.modes() if alternate else nullcontext():
                    x = nn.functional.linear(x * 2, torch.eye(16)) + layer(x)
        return x


@pytest.mark.parametrize("where", ["around", "each", "some"])
@pytest.mark.parametrize("kind", [Louder, Rounded])
def test_modes_that_a_model_enters_itself(kind, where, recwarn):
    model = Inside(kind, where)
    plain = copy.deepcopy(model)
    x = torch.randn(64, 16)
    chain = revolve.measure(model, x)
    revolve.checkpointed(model, forgetful_plan(chain))
    assert_equal(step(model, x, []), step(plain, x, []))
    assert not [warning for warning in recwarn if issubclass(warning.category, BudgetWarning)]
    frontier = revolve.solve(chain)
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    report = revolve.verify(model, x, repeats=1)
    assert report.exact, report.differences
    assert report.measured_peak <= 1.03 * report.budget  # a mode's own frame holds what it was handed


@pytest.mark.parametrize("name", ["transformer", "dense lists", "u-net"])
def test_modes_around_models_that_call_their_stages(name):
    """Also functions between stages are called again below the modes that they were called below."""
    found = []
    for planned in (True, False):
        model, sample = make(name)
        if planned:
            revolve.checkpointed(model, forgetful_plan(revolve.measure(model, sample)))
        torch.manual_seed(2)
        with Scaled(), Noisy():
            output = model(**sample) if isinstance(sample, dict) else model(sample)
        loss_of(output).backward()
        found.append([p.grad for p in model.parameters()])
    assert_equal(*found)


class Scaled(TorchFunctionMode):
    """Scales what these functions give, wherever they are called."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return (
            result * 1.25 if getattr(func, "__name__", "") in ("linear", "cat", "conv2d", "add", "dropout") else result
        )


class Noisy(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result + 0.125 if func is torch.ops.aten.cat.default else result


def test_a_mode_below_functions_between_stages():
    """It is active around the model, and is handed what the model calls between its stages, too."""

    class Doubled(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            return result * 2 if func is torch.Tensor.tanh else result

    class Glued(Layers):
        def forward(self, x):
            for layer in self.layers:
                x = layer(x.tanh())
            return x

    found = []
    for planned in (True, False):
        torch.manual_seed(0)
        model = Glued(lambda: nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 16)), None, 5)
        if planned:
            revolve.checkpointed(model, forgetful_plan(revolve.measure(model, batch())))
        found.append(step(model, batch(), [Doubled()]))
    assert_equal(*found)


def test_nothing_is_recorded_where_no_mode_is_the_users():
    assert UserModes.current() is UserModes.current()
    with torch.device("meta"), FlopCounterMode(display=False), torch._subclasses.FakeTensorMode():
        assert UserModes.current() == UserModes()
    with Louder() as first, Rounded() as second, torch.device("meta"):
        assert UserModes.current() == UserModes((first,), (second,))


def test_a_compiled_stage_under_a_mode():
    found = []
    for planned in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))
        for layer in model[1:3]:
            layer.compile(backend="aot_eager")
        if planned:
            revolve.checkpointed(model, PLANNERS["forgetful"](model))
        found.append([step(model, batch(), [kind()]) for kind in (Louder, Rounded)])
    for ours, theirs in zip(*found, strict=True):
        assert_equal(ours, theirs)
