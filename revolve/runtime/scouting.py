"""Finds out what passes between the stages of a model, and what is held, by a forward pass that keeps nothing.

A plan from a file knows its stages and not which of their tensors later ones hold. That has to be known before these
are made, since what is held stays dense, and what is not is kept in the format that the plan names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from revolve.storage.boundary import tensors_of

from .following import Follower
from .isolation import isolated
from .measurement import copy_of
from .replay import recomputing
from .samples import Arguments
from .saving import Emptying
from .stages import StageModule
from .tracks import Passed, Track

__all__ = ["scout"]


def scout(
    model: nn.Module, modules: Sequence[nn.Module], paths: Sequence[Sequence[str]], arguments: Arguments
) -> list[Passed]:
    """Return what passes between the stages of a model; nothing where it does not call all of them, in order.

    Parameters
    ----------
    model
        The model. Parameters, gradients, buffers and random numbers are as before.
    modules
        The module of every call of the chain, in order.
    paths
        For each stage the paths of its modules.
    arguments
        Of a call of the model.
    """
    whole = StageModule(type(model).__name__, (model,))
    with isolated([whole], arguments), recomputing(), torch.compiler.set_stance("force_eager"):
        args, kwargs = copy_of(arguments)
        follower = Scout(model, modules, paths)
        with follower.following(), Emptying():
            model.forward(*args, **kwargs)
    torch.clear_autocast_cache()  # of casts of what stood in for parameters
    trail = follower.trail
    return trail.track.passed() if trail is not None and trail.position == len(modules) else []


class Scout(Follower):
    """Follows one forward pass."""

    def __init__(self, model: nn.Module, modules: Sequence[nn.Module], paths: Sequence[Sequence[str]]) -> None:
        super().__init__(model, modules)
        self.paths = paths
        self.trail: ScoutTrail | None = None

    def begin(self, arguments: Arguments) -> ScoutTrail:
        """Begin a pass."""
        self.trail = ScoutTrail(self.paths, arguments)
        return self.trail


class ScoutTrail:
    """Runs everything as ever, and notes where tensors come from.

    Attributes
    ----------
    track
        What was noted.
    position
        Number of the next call of a module.
    """

    def __init__(self, paths: Sequence[Sequence[str]], arguments: Arguments) -> None:
        self.track = Track(paths)
        self.track.begin(arguments)
        self.position = 0

    def call(self, forward: Callable[..., Any], arguments: Arguments) -> Any:
        """Make the next call of a module."""
        step = self.track.bind(forward, arguments)
        output = forward(*arguments[0], **arguments[1])
        self.track.note(step, output, module=True)
        self.position += 1
        if self.track.segment.called == len(self.track.segment.calls):
            self.track.advance()
        return output

    def function(self, function: Callable[..., Any], arguments: Arguments) -> Any:
        """Call a function before it."""
        if not any(map(self.track.place, tensors_of(arguments))):
            return function(*arguments[0], **arguments[1])
        step = self.track.bind(function, arguments)
        output = function(*arguments[0], **arguments[1])
        if self.track.foreign():
            self.track.forget()
        else:
            self.track.note(step, output, module=False)
        return output

    def end(self) -> None:
        """Do nothing."""
