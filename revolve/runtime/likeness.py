"""What stands in for a forward looks like it to tools that read functions: their signature, where their code stands."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch import nn

__all__ = ["UNCOMPILED", "Likeness", "forwarding", "uncompiled"]

UNCOMPILED = "the model has a revolve plan, which is not compiled: call revolve.restore(model) before it is exported"


class Likeness(ABC):
    """Has the signature and the code of another function: transformers' Trainer and ``torch.export`` ask for them."""

    @abstractmethod
    def likeness(self) -> Callable[..., Any]:
        """Return the function that this looks like."""

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.likeness())

    @property
    def __code__(self) -> CodeType:
        code: CodeType = self.likeness().__code__
        return code

    @property
    def __globals__(self) -> dict[str, Any]:
        """Refuse to be read as source code.

        Raises
        ------
        AttributeError
            Always: ``torch.jit.script`` would leave the plan out.
        """
        raise AttributeError(
            "torch.jit.script reads the source of a forward, and this model's is replaced by a revolve plan; call "
            "revolve.restore(model) first"
        )


def forwarding(function: Any) -> nn.Module | None:
    """Return the module whose class's forward is called in the end, None if some other function is."""
    while isinstance(function, Likeness):
        function = function.likeness()
    module = getattr(function, "__self__", None)
    own = isinstance(module, nn.Module) and getattr(function, "__func__", None) is type(module).forward
    return module if own else None


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function be a break in what torch compiles, with the reason; where none may be, the reason is the error."""
    disabled: Callable[..., Any] = torch.compiler.disable(function, reason=UNCOMPILED)
    return disabled
