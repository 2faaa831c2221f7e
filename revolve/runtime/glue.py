"""Sees the functions of torch that a model's own forward calls between its modules: ``torch.cat``, ``x + y`` ..."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .samples import Arguments, opaque_leaves

__all__ = ["Function", "Glue", "Suspended", "name_of", "recordable", "transforming", "writes"]

Function = Callable[..., Any]

# They run backward passes, whose graph is another one when they are called again.
DIFFERENTIATING = (torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward)

# They change running statistics among their arguments without raising their versions.
CHANGING = frozenset(
    (
        *("batch_norm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "instance_norm"),
        *("_fused_moving_avg_obs_fq_helper", "fused_moving_avg_obs_fake_quant"),
    )
)


class Glue(TorchFunctionMode):
    """A context in which every function of torch goes through :meth:`take`.

    Inside of custom autograd functions, compiled code and C++ nothing is seen.
    """

    def take(self, function: Function, arguments: Arguments) -> Any:
        """Run a function and return what it returns."""
        return function(*arguments[0], **arguments[1])

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Take a function over."""
        return self.take(func, (args, kwargs or {}))


class Suspended:
    """The context in which functions are not handed over to a mode; others stay as they are, also those entered since.

    Parameters
    ----------
    mode
        The mode; nothing is done where it is not active.
    """

    __slots__ = ("above", "active", "mode")

    def __init__(self, mode: Glue | None) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        depth = torch._C._len_torch_function_stack()
        positions = reversed(range(depth))
        position = next((n for n in positions if torch._C._get_function_stack_at(n) is self.mode), depth)
        self.active = position < depth
        self.above = [torch._C._pop_torch_function_stack() for _ in range(depth - position)][:-1]
        for other in reversed(self.above):
            torch._C._push_on_torch_function_stack(other)

    def __exit__(self, *_: object) -> None:
        if self.active:
            for _ in self.above:
                torch._C._pop_torch_function_stack()
            for other in (self.mode, *reversed(self.above)):
                torch._C._push_on_torch_function_stack(other)


def recordable(function: Function, arguments: Arguments) -> bool:
    """Whether a function can be called again later, to do the same: it takes nothing that may change unnoticed."""
    if function in DIFFERENTIATING or name_of(function) in CHANGING or transforming():
        return False
    return next(opaque_leaves(arguments), None) is None


def writes(function: Function, arguments: Arguments) -> bool:
    """Whether a function may change tensors among its arguments, by its name: ``add_``, ``__iadd__``, ``out=``."""
    name, options = name_of(function), arguments[1]
    inplace = name.startswith("__i") or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    return inplace or options.get("out") is not None or options.get("inplace") is True


def transforming() -> bool:
    """Whether a transform of torch.func is going on, whose tensors are none of the model's."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def name_of(function: Function) -> str:
    """Return the name of a function."""
    return str(getattr(function, "__name__", function))
