"""Follows a model's own calls along a chain of modules, by what stands in for their forward on the instance.

A call belongs to the chain if it takes a tensor that the call before gave: the same object, at the same version. So
several forward passes may go on at a time, and nothing has to be known of where one begins or ends.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from revolve.storage.boundary import tensors_of, version_of

from .parts import fresh_outputs, main_inputs
from .samples import Arguments

__all__ = ["Follower", "ModuleReference", "StandIn", "Trail"]

Forward = Callable[..., Any]

# The chains that a stage is running of: what modules call inside belongs to the stage.
RUNNING: ContextVar[tuple[int, ...]] = ContextVar("running", default=())


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
        Number of the next call.
    """

    position: int

    def call(self, forward: Forward, arguments: Arguments, linked: Mapping[int, int]) -> Any:
        """Make the next call; ``linked`` are the positions of tensors in the output before, by ``id``."""


class Link(NamedTuple):
    """A tensor that the next call of a trail has to take."""

    reference: weakref.ref[torch.Tensor]
    version: int
    position: int
    trail: Trail


class Follower:
    """Follows the calls of some modules.

    Parameters
    ----------
    modules
        The module of every call of the chain, in order.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = [ModuleReference(module) for module in modules]
        self.links: dict[int, Link] = {}

    def begin(self, arguments: Arguments) -> Trail | None:
        """Begin a pass with the arguments of its first call; None, as here, where the chain is not to be followed."""
        return None

    def goes_on(self, trail: Trail) -> bool:
        """Whether a pass may go on under the modes of now."""
        return True

    def call(self, module: nn.Module, forward: Forward, arguments: Arguments) -> Any:
        """Make a call of a module of the chain."""
        trail, linked = (None, {}) if id(self) in RUNNING.get() else self.find(module, arguments)
        if trail is None:
            return forward(*arguments[0], **arguments[1])
        output = trail.call(partial(self.inside, forward), arguments, linked)
        if trail.position < len(self.modules):
            for position, tensor in fresh_outputs(arguments, output):
                self.link(tensor, position, trail)
        return output

    def inside(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        """Make a call whose own calls are not followed."""
        token = RUNNING.set((*RUNNING.get(), id(self)))
        try:
            return forward(*args, **kwargs)
        finally:
            RUNNING.reset(token)

    def find(self, module: nn.Module, arguments: Arguments) -> tuple[Trail | None, Mapping[int, int]]:
        """Return the pass that a call belongs to, and the tensors that link it."""
        tensors = tensors_of(arguments)
        for tensor in tensors:
            link = self.links.get(id(tensor))
            if link is not None and self.leads(link, tensor, module):
                trail = link.trail
                linked = {id(t): self.links[id(t)].position for t in tensors if self.belongs(t, trail)}
                for key in [key for key, other in list(self.links.items()) if other.trail is trail]:
                    self.links.pop(key, None)
                return trail, linked
        if self.modules[0]() is module and tensors:
            return self.begin(arguments), main_inputs(arguments)
        return None, {}

    def leads(self, link: Link, tensor: torch.Tensor, module: nn.Module) -> bool:
        """Whether a link leads to a call of a module with a tensor."""
        same = link.reference() is tensor and link.version == version_of(tensor)
        return same and self.modules[link.trail.position]() is module and self.goes_on(link.trail)

    def belongs(self, tensor: torch.Tensor, trail: Trail) -> bool:
        """Whether a tensor is what the call before in a pass gave, unchanged."""
        link = self.links.get(id(tensor))
        return (
            link is not None
            and link.trail is trail
            and link.reference() is tensor
            and link.version == version_of(tensor)
        )

    def link(self, tensor: torch.Tensor, position: int, trail: Trail) -> None:
        """Let a tensor lead to the next call; when it is gone, so is the pass."""
        links, key = self.links, id(tensor)

        def forget(reference: weakref.ref[torch.Tensor]) -> None:
            if key in links and links[key].reference is reference:
                del links[key]

        self.links[key] = Link(weakref.ref(tensor, forget), version_of(tensor), position, trail)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "links": {}}


class StandIn:
    """Stands in for the ``forward`` of one module, on the instance.

    Parameters
    ----------
    module
        The module.
    follower
        What follows its calls.
    """

    def __init__(self, module: nn.Module, follower: Follower) -> None:
        self.module = ModuleReference(module)
        self.present: Forward | None = None
        self.follower = follower

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

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module."""
        module = self.module()
        assert module is not None
        forward = self.present or type(module).forward.__get__(module)
        return self.follower.call(module, forward, (args, kwargs))
