"""Random number generators of the user's, wherever they are kept."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import torch
from steps import PLANNERS, assert_same, batch, perceptron, run_step, twins
from torch import nn
from twins import forgetful_plan

import revolve
from revolve.runtime.stages import StageModule


class Noise:
    """A callable that a module keeps."""

    def __init__(self):
        self.generator = torch.Generator()

    def __call__(self):
        return torch.rand((), generator=self.generator)


class Owning(nn.Module):
    """Draws from a generator of its own, wherever it keeps it."""

    def __init__(self, kept, draw):
        super().__init__()
        self.kept, self.draw = kept, draw

    def forward(self, x):
        return x * float(self.draw(self.kept))


GLOBAL = torch.Generator()


class Sharing(nn.Module):
    """Draws from a generator among the global names."""

    def forward(self, x):
        return x * torch.rand((), generator=GLOBAL)


OWNING = {
    "numpy generator": lambda: Owning(np.random.default_rng(3), lambda kept: kept.random()),
    "numpy generator, old algorithm": lambda: Owning(
        np.random.Generator(np.random.MT19937(3)), lambda kept: kept.normal()
    ),
    "numpy random state": lambda: Owning(np.random.RandomState(3), lambda kept: kept.normal()),
    "numpy random state of another kind": lambda: Owning(
        np.random.RandomState(np.random.PCG64(3)), lambda kept: kept.normal()
    ),
    "python": lambda: Owning(random.Random(3), lambda kept: kept.gauss(0, 1)),
    "container": lambda: Owning({"a": [torch.Generator()]}, lambda kept: torch.rand((), generator=kept["a"][0])),
    "callable": lambda: Owning(Noise(), lambda kept: kept()),
    "global": Sharing,
}


@pytest.mark.parametrize("kind", OWNING)
@pytest.mark.parametrize("planner", PLANNERS.values(), ids=PLANNERS)
def test_generators_of_the_user(planner, kind):
    planned, plain = twins(perceptron(OWNING[kind]), planner)
    found = []
    for model in (planned, plain):
        GLOBAL.manual_seed(3)
        found.append([run_step(model, batch(seed=turn)) for turn in range(2)])
    for ours, theirs in zip(*found, strict=True):
        assert_same(ours, theirs)


def exchange(model, turn):
    """Give every stage another generator, in the same dictionary."""
    for number, module in enumerate(model.modules()):
        if isinstance(module, Owning):
            module.kept["a"] = torch.Generator().manual_seed(10 * turn + number)


def rebind(model, turn):
    """Give every stage another dictionary."""
    for number, module in enumerate(model.modules()):
        if isinstance(module, Owning):
            module.kept = {"a": torch.Generator().manual_seed(10 * turn + number)}


def hook_again(model, turn):
    """Give every stage another hook that draws."""
    for number, module in enumerate(model.modules()):
        if isinstance(module, nn.Linear):
            module._forward_hooks.clear()  # without its count
            generator = torch.Generator().manual_seed(10 * turn + number)
            module.register_forward_hook(lambda _m, _a, y, g=generator: y * torch.rand((), generator=g))


class Hook:
    """Draws from a generator of its own."""

    def __call__(self, module, arguments, output):
        return output * torch.rand((), generator=self.generator)


def give_hooks_another(model, turn):
    """Give the hooks, which stay, other generators."""
    for number, module in enumerate(model.modules()):
        if isinstance(module, nn.Linear):
            if not module._forward_hooks:
                module.register_forward_hook(Hook())
            for hook in module._forward_hooks.values():
                hook.generator = torch.Generator().manual_seed(10 * turn + number)


def share_another(model, turn):
    """Bind a global name anew."""
    globals()["GLOBAL"] = torch.Generator().manual_seed(turn)


BETWEEN = {
    exchange: lambda: Owning({}, lambda kept: torch.rand((), generator=kept["a"])),
    rebind: lambda: Owning({}, lambda kept: torch.rand((), generator=kept["a"])),
    share_another: Sharing,
    hook_again: nn.Identity,
    give_hooks_another: nn.Identity,
}


class Calling(nn.Module):
    """Calls its layers itself."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("calling", [False, True])
@pytest.mark.parametrize("change", BETWEEN, ids=lambda change: change.__name__)
def test_generators_that_are_exchanged_between_steps(change, calling):
    model = perceptron(BETWEEN[change])
    change(model, 0)
    if calling:
        model = Calling(model)
    planned, plain = twins(model, lambda model: forgetful_plan(revolve.measure(model, batch())))
    for turn in range(3):
        found = []
        for model in (planned, plain):
            change(model, turn)
            found.append(run_step(model, batch(seed=turn)))
        assert_same(*found)


@pytest.mark.parametrize("patched", [False, True])
def test_models_that_call_their_stages_are_searched_for_generators_once(patched, monkeypatch):
    """What follows the calls of a stage is no function that may hold others later, unlike a patch."""
    noise = {"a": torch.Generator()}
    planned, plain = Calling(perceptron()), Calling(perceptron())
    for model in (planned, plain) if patched else ():
        own = model.layers[0].forward
        model.layers[0].forward = lambda x, own=own: own(x) * torch.rand((), generator=noise["a"])
    revolve.checkpointed(planned, forgetful_plan(revolve.measure(planned, batch())))
    searched = []
    search = StageModule.hidden_sources
    monkeypatch.setattr(StageModule, "hidden_sources", lambda self: searched.append(self.name) or search(self))
    for turn in range(3):
        found = []
        for model in (planned, plain):
            noise["a"] = torch.Generator().manual_seed(turn)
            found.append(run_step(model, batch(seed=turn)))
        assert_same(*found)
    assert len(searched) - len(set(searched)) == (2 if patched else 0)


class Noisy(nn.Module):
    """Has a generator of its own, and lies outside of the model's tables."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x):
        return x * torch.rand((), generator=self.generator)


HIDING = {
    "attribute": lambda layer, noisy: vars(layer).update(forward=lambda x: layer.noisy(x.sin()), noisy=noisy),
    "forward": lambda layer, noisy: vars(layer).update(forward=noisy.forward),
    "module": lambda layer, noisy: vars(layer).update(forward=noisy),
    "closure": lambda layer, noisy: vars(layer).update(forward=lambda x: noisy(x) + 1),
    "partial": lambda layer, noisy: vars(layer).update(forward=partial(noisy.forward)),
}


@pytest.mark.parametrize("calling", [False, True])
@pytest.mark.parametrize("way", HIDING)
def test_generators_of_modules_that_are_not_registered(way, calling):
    found = []
    for planned in (True, False):
        model = perceptron()
        for layer in model:
            if isinstance(layer, nn.Tanh):
                HIDING[way](layer, Noisy())
        if calling:
            model = Calling(model)
        if planned:
            revolve.checkpointed(model, forgetful_plan(revolve.measure(model, batch())))
        found.append([run_step(model, batch(seed=turn)) for turn in range(2)])
    for ours, theirs in zip(*found, strict=True):
        assert_same(ours, theirs)


def test_a_generator_of_the_operating_system_has_no_state():
    generator = random.SystemRandom()
    planned, _ = twins(perceptron(lambda: Owning(None, lambda kept: 2 + 0 * generator.random())))
    planned(batch())
