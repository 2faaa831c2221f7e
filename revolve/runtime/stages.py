"""Cuts an nn.Sequential into stages: its children, nested ones flattened, some glued together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from .exceptions import ModelError, PlanMismatch

__all__ = ["StageModule", "check_sequential", "flatten", "match_stages"]

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@dataclass(frozen=True)
class StageModule:
    """One stage: functions applied one after the other.

    Attributes
    ----------
    name
        Paths of the functions in the model, joined by "+".
    functions
        Modules, or any callables of one argument.
    """

    name: str
    functions: tuple[Callable[[Any], Any], ...]

    def __call__(self, value: Any) -> Any:
        """Run the stage."""
        for function in self.functions:
            value = function(value)
        return value

    def join(self, following: StageModule) -> StageModule:
        """Return this stage glued to the one after it."""
        return StageModule(f"{self.name}+{following.name}", self.functions + following.functions)

    @cached_property
    def modules(self) -> tuple[nn.Module, ...]:
        """Every module of the stage, each once."""
        roots = [function for function in self.functions if isinstance(function, nn.Module)]
        return tuple(dict.fromkeys(module for root in roots for module in root.modules()))

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield parameters and buffers."""
        for module in self.modules:
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    yield tensor


def check_sequential(model: Any) -> nn.Sequential:
    """Check that a model can be cut into stages.

    Raises
    ------
    ModelError
        Unless it is an nn.Sequential with children, running them one after the other.
    """
    kind = type(model).__name__
    if not isinstance(model, nn.Sequential) or type(model).forward is not nn.Sequential.forward:
        raise ModelError(
            f"the model is a {kind}, and only an nn.Sequential can be cut into stages; "
            "write the model as nn.Sequential(*blocks) (nested ones are flattened)"
        )
    if not len(model):
        raise ModelError("the model is an nn.Sequential without children; there is nothing to train")
    return model


def flatten(
    functions: Sequence[tuple[str, Callable[[Any], Any]]], whole: frozenset[str] = frozenset()
) -> list[StageModule]:
    """Return one stage a function, nested nn.Sequential containers flattened.

    A nested container that is a subclass, has hooks, or is named in ``whole`` stays one stage.

    Parameters
    ----------
    functions
        Pairs of path and function, in order.
    whole
        Paths of containers that are not to be flattened.
    """
    stages: list[StageModule] = []
    for path, function in functions:
        hooked = any(getattr(function, hooks, None) for hooks in HOOKS)
        if type(function) is nn.Sequential and len(function) and not hooked and path not in whole:
            nested = [(f"{path}.{name}", child) for name, child in function._modules.items() if child is not None]
            stages += flatten(nested, whole)
        else:
            stages.append(StageModule(path, (function,)))
    return stages


def match_stages(model: nn.Sequential, names: Sequence[str]) -> list[StageModule]:
    """Find the stages of a plan in a model by their names.

    Raises
    ------
    PlanMismatch
        If the model has other children than the names say.
    """
    paths = [name.split("+") for name in names]
    wanted = [path for group in paths for path in group]
    found = {stage.name: stage for stage in flatten(list(model._modules.items()), frozenset(wanted))}
    if list(found) != wanted:
        different = next((a for a, b in zip(wanted, found, strict=False) if a != b), None)
        reason = f"its stage part {different!r} is not there" if different else "it has more or fewer stages"
        raise PlanMismatch(
            f"the plan was made for another model ({len(wanted)} parts in {len(names)} stages, this model has "
            f"{len(found)}): {reason}; measure and solve this model again"
        )
    return [
        StageModule(name, sum((found[path].functions for path in group), ()))
        for name, group in zip(names, paths, strict=True)
    ]
