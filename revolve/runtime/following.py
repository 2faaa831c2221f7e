"""Follows a model's own calls along a chain of modules, by what stands in for their forward on the instance.

While the forward of a module runs that has stages inside, the next call of the chain is the next of its modules that
is called, and functions of torch that such a forward calls itself belong to the chain as well. Modules beside the chain
run as ever. Any number of forward passes may go on at a time.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import nn

from .glue import Function, Glue, Suspended, recordable
from .likeness import Likeness, uncompiled
from .samples import Arguments

__all__ = ["Follower", "Forward", "ModuleReference", "StandIn", "Trail"]

Forward = Callable[..., Any]


def nothing() -> None:
    """Stand for a module that is gone."""


class ModuleReference:
    """A weak reference to a module that is copied and pickled together with it."""

    __slots__ = ("reference",)

    def __init__(self, module: nn.Module) -> None:
        self.reference: Callable[[], nn.Module | None] = weakref.ref(module)

    def __call__(self) -> nn.Module | None:
        """Return the module, None if it is gone."""
        return self.reference()

    def __getstate__(self) -> tuple[nn.Module | None]:
        return (self.reference(),)

    def __setstate__(self, state: tuple[nn.Module | None]) -> None:
        self.reference = nothing if state[0] is None else weakref.ref(state[0])


class Trail(Protocol):
    """How far one forward pass has come along a chain.

    Attributes
    ----------
    position
        Number of the next call of a module.
    """

    position: int

    def call(self, forward: Forward, arguments: Arguments) -> Any:
        """Make the next call of a module."""

    def function(self, function: Function, arguments: Arguments) -> Any:
        """Call a function before it."""

    def end(self) -> None:
        """Take note that no more is called."""


class Scope(Glue):
    """One call of the forward of a module that has stages inside.

    Attributes
    ----------
    resting
        Whether nothing is to be followed.
    trail
        How far it has come; None before the first stage, and where the chain is not to be followed.
    """

    def __init__(self, follower: Follower, *, resting: bool = False) -> None:
        super().__init__()
        self.follower = follower
        self.resting = resting
        self.trail: Trail | None = None

    def take(self, function: Function, arguments: Arguments) -> Any:
        """Call a function, as a part of the chain where it is one."""
        trail, follower = self.trail, self.follower
        inside = trail is not None and 0 < trail.position < len(follower.modules)
        if trail is not None and inside and recordable(function, arguments) and follower.goes_on(trail):
            return trail.function(function, arguments)
        return function(*arguments[0], **arguments[1])


SCOPES: ContextVar[tuple[Scope, ...]] = ContextVar("scopes", default=())


class Follower:
    """Follows the calls of some modules.

    Parameters
    ----------
    model
        The module that they are in.
    modules
        The module of every call of the chain, in order.
    """

    def __init__(self, model: nn.Module, modules: Sequence[nn.Module]) -> None:
        self.modules = [ModuleReference(module) for module in modules]
        called = dict.fromkeys(modules)
        inside = stages_inside(model, called)
        around = [module for module, has_stages in inside.items() if has_stages and runs(module)]
        tasks = {"call": called, "enclose": around, "leave": dict.fromkeys(beside(model, inside))}
        self.stand_ins = [StandIn(module, self, task) for task, found in tasks.items() for module in found]

    def put_on(self) -> None:
        """Follow the calls of the model from now on."""
        for stand_in in self.stand_ins:
            stand_in.put_on()

    def take_off(self) -> None:
        """Follow them no more."""
        for stand_in in reversed(self.stand_ins):
            stand_in.take_off()

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow the calls of the model in this block."""
        self.put_on()
        try:
            yield
        finally:
            self.take_off()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Follow no calls of this thread in this block."""
        token = SCOPES.set((*SCOPES.get(), Scope(self, resting=True)))
        try:
            yield
        finally:
            SCOPES.reset(token)

    def begin(self, arguments: Arguments) -> Trail | None:
        """Begin a pass with the arguments of its first call; None, as here, where the chain is not to be followed."""
        return None

    def goes_on(self, trail: Trail) -> bool:
        """Whether a pass may go on under the modes of now."""
        return True

    def scope(self) -> Scope | None:
        """Return the call that is going on, None if there is none, or one that a stage makes."""
        return next((scope for scope in reversed(SCOPES.get()) if scope.follower is self), None)

    def enclose(self, module: nn.Module, forward: Forward, arguments: Arguments) -> Any:
        """Run a module that has stages inside."""
        if self.scope() is not None:
            return forward(*arguments[0], **arguments[1])
        scope = Scope(self)
        token = SCOPES.set((*SCOPES.get(), scope))
        try:
            with scope:
                output = forward(*arguments[0], **arguments[1])
            if scope.trail is not None:
                scope.trail.end()
            return output
        finally:
            SCOPES.reset(token)

    def leave(self, module: nn.Module, forward: Forward, arguments: Arguments) -> Any:
        """Run a module beside the chain."""
        with Suspended(self.scope()):
            return forward(*arguments[0], **arguments[1])

    def call(self, module: nn.Module, forward: Forward, arguments: Arguments) -> Any:
        """Make a call of a module of the chain; inside of one that is going on, and out of order, it runs as ever."""
        scope = self.scope()
        if scope is None or scope.resting:
            return forward(*arguments[0], **arguments[1])
        with Suspended(scope):
            trail = self.find(scope, module, arguments)
            inside = SCOPES.set(tuple(other for other in SCOPES.get() if other is not scope))
            try:
                return forward(*arguments[0], **arguments[1]) if trail is None else trail.call(forward, arguments)
            finally:
                SCOPES.reset(inside)

    def find(self, scope: Scope, module: nn.Module, arguments: Arguments) -> Trail | None:
        """Return the pass that a call belongs to."""
        trail = scope.trail
        if trail is not None and trail.position < len(self.modules) and self.modules[trail.position]() is module:
            return trail if self.goes_on(trail) else None
        if self.modules[0]() is module:
            scope.trail = self.begin(arguments)
            return scope.trail
        return None


class StandIn(Likeness):
    """Stands in for the ``forward`` of one module, on the instance.

    Parameters
    ----------
    module
        The module.
    follower
        What follows its calls.
    task
        Name of the follower's method that is given them.
    """

    def __init__(self, module: nn.Module, follower: Any, task: str) -> None:
        self.module = ModuleReference(module)
        self.present: Forward | None = None
        self.follower = follower
        self.task = task

    def put_on(self) -> None:
        """Stand in for the forward from now on."""
        module = self.module()
        if module is not None and vars(module).get("forward") is not self:
            self.present = vars(module).get("forward")
            vars(module)["forward"] = self

    def take_off(self) -> None:
        """Give the module its forward back, unless something else stands there by now."""
        module = self.module()
        if module is not None and vars(module).get("forward") is self:
            del vars(module)["forward"]
            if self.present is not None:
                vars(module)["forward"] = self.present

    def likeness(self) -> Forward:
        """Return the forward."""
        module = self.module()
        assert module is not None
        return self.present or type(module).forward.__get__(module)

    @uncompiled
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module."""
        return getattr(self.follower, self.task)(self.module(), self.likeness(), (args, kwargs))


def runs(module: nn.Module) -> bool:
    """Whether a module has a forward: an nn.ModuleList has none."""
    return type(module).forward is not nn.Module.forward or "forward" in vars(module)


def stages_inside(model: nn.Module, called: Container[nn.Module]) -> dict[nn.Module, bool]:
    """Return for a model and all modules in it, but not in those called, whether some of these are inside."""
    inside: dict[nn.Module, bool] = {}

    def look(module: nn.Module) -> bool:
        if module not in inside:
            inside[module] = False
            for child in module.children():
                inside[module] |= child in called or look(child)
        return inside[module]

    look(model)
    return inside


def beside(module: nn.Module, inside: Mapping[nn.Module, bool]) -> Iterator[nn.Module]:
    """Yield the largest modules in one that have no stages inside and are none."""
    for child in module.children():
        if child in inside and (inside[child] or not runs(child)):
            yield from beside(child, inside)
        elif child in inside and not isinstance(child, torch.jit.ScriptModule):
            yield child
