"""The user's function and dispatch modes: torch hands them every call, so that they too decide what a stage computes.

A mode that was active in the first run of a stage and is no more is pushed again, without its ``__enter__``: a mode may
count or print there. One that is active now and was not then stays: it was put around the backward pass on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from .generators import KINDS, Source, sources_of
from .reaching import reach

__all__ = ["UserModes"]

# Modes that are not the user's, by where their classes are: what follows a model's calls here, the default device (it
# belongs to the other modes), torch's own checkpoint, its compiler, and what only watches while it is entered.
OTHERS = (
    "revolve.runtime.",
    "torch._",
    "torch.autograd.graph",
    "torch.cuda._sanitizer",
    "torch.distributed._tools.",
    "torch.distributed.tensor.debug.",
    "torch.export.",
    "torch.fx.",
    "torch.utils._",
    "torch.utils.checkpoint",
    "torch.utils.flop_counter",
)


@dataclass(frozen=True, slots=True)
class UserModes:
    """The user's modes of one moment, the innermost last.

    Attributes
    ----------
    functions, dispatches
        Those that torch's functions are handed to, and its operators.
    """

    functions: tuple[TorchFunctionMode, ...] = ()
    dispatches: tuple[TorchDispatchMode, ...] = ()

    @classmethod
    def current(cls) -> UserModes:
        """Read the modes."""
        if not torch._C._len_torch_function_stack() and not torch._C._len_torch_dispatch_stack():
            return NONE
        functions = tuple(filter(is_user_mode, _get_current_function_mode_stack()))
        return cls(functions, tuple(filter(is_user_mode, dispatch_stack())))

    def sources(self) -> list[Source]:
        """Return the random number generators that the modes keep."""
        kinds: tuple[type[Any], ...] = tuple(KINDS)
        return sources_of(found for mode in (*self.functions, *self.dispatches) for found in reach(vars(mode), kinds))

    def active(self) -> bool:
        """Whether these are the modes of now."""
        now = UserModes.current()
        return now is self or now == self

    def enter(self, stack: ExitStack, leaving: UserModes | None = None) -> None:
        """Let these be active until ``stack`` closes, above those of now; these stay, but for those to be left."""
        left = leaving or NONE
        present = _get_current_function_mode_stack()
        wanted = arranged(present, self.functions, left.functions)
        if wanted != present:
            put_functions(present, wanted)
            stack.callback(put_functions, wanted, present)
        self.enter_dispatches(stack, left.dispatches)

    def enter_dispatches(self, stack: ExitStack, leaving: Iterable[Any]) -> None:
        """Let the dispatch modes be active; torch counts those that are, for its compiler."""
        present = dispatch_stack()
        wanted = arranged(present, self.dispatches, leaving)
        if wanted == present:
            return
        added = [mode for mode in wanted if not among(mode, present)]
        for mode in added:
            TorchDispatchMode.__enter__(mode)  # not its own
            stack.callback(TorchDispatchMode.__exit__, mode, None, None, None)
        put_dispatches([*present, *added], wanted)
        stack.callback(put_dispatches, wanted, [*present, *added])

    def bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function, as it is to be called where these modes are active: under those of now, if they differ.

        A function that a model calls between its modules is seen below the modes that the model itself has entered.
        """
        now = UserModes.current()
        return function if now is self or now == self else Under(now, self, function)


NONE = UserModes()


class Under:
    """A function that is called under other modes than those around it.

    Parameters
    ----------
    modes, instead
        Which, and instead of which.
    function
        The function.
    """

    __slots__ = ("function", "instead", "modes")

    def __init__(self, modes: UserModes, instead: UserModes, function: Callable[..., Any]) -> None:
        self.modes = modes
        self.instead = instead
        self.function = function

    def __repr__(self) -> str:
        return repr(self.function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        with ExitStack() as stack:
            self.modes.enter(stack, self.instead)
            return self.function(*args, **kwargs)


def is_user_mode(mode: Any) -> bool:
    """Whether a mode is the user's."""
    infrastructure = isinstance(mode, TorchDispatchMode) and mode.is_infra_mode()
    return not infrastructure and not type(mode).__module__.startswith(OTHERS)


def dispatch_stack() -> list[Any]:
    """Return the active dispatch modes, without those that torch keeps in slots of their own."""
    return [mode for mode in _get_current_dispatch_mode_stack() if getattr(mode, "_mode_key", None) is None]


def among(mode: Any, modes: Iterable[Any]) -> bool:
    """Whether a mode is one of some."""
    return any(mode is other for other in modes)


def arranged(present: list[Any], modes: tuple[Any, ...], leaving: Iterable[Any]) -> list[Any]:
    """Return the stack in which some modes are above those of now."""
    others = (*modes, *leaving)
    return [*(mode for mode in present if not among(mode, others)), *modes]


def put_functions(present: list[Any], wanted: list[Any]) -> None:
    """Replace the function modes that are active."""
    for _ in present:
        torch._C._pop_torch_function_stack()
    for mode in wanted:
        torch._C._push_on_torch_function_stack(mode)


def put_dispatches(present: list[Any], wanted: list[Any]) -> None:
    """Replace the dispatch modes that are active."""
    for _ in present:
        torch._C._pop_torch_dispatch_stack(None)
    for mode in wanted:
        torch._C._push_on_torch_dispatch_stack(mode)
