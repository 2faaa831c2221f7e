"""What every run of a stage but its first is surrounded by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch

from .generators import Source

__all__ = ["QUESTIONS", "Replay", "Setting", "is_recomputing", "recomputing"]

RECOMPUTING = ContextVar("recomputing", default=False)
QUESTIONS = [0]  # how often is_recomputing was asked


def is_recomputing() -> bool:
    """Whether a stage is being measured or run again, for modules that count or log their calls.

    The attributes of a stage that asks are left to it; those of others are put back to what they were in its first run.
    """
    QUESTIONS[0] += 1
    return RECOMPUTING.get()


@contextmanager
def recomputing() -> Iterator[None]:
    """Let :func:`is_recomputing` be true."""
    token = RECOMPUTING.set(True)
    try:
        yield
    finally:
        RECOMPUTING.reset(token)


class Setting(Protocol):
    """Something that was so in the first run, and can be so again: modes, hooks."""

    def enter(self, stack: ExitStack) -> None:
        """Let it be so until ``stack`` closes."""


class Replay:
    """Lets stages run again under the modes of their first run, and puts modes and generators back [7].

    Parameters
    ----------
    settings
        Modes and hooks of the first run, where those of now are others.
    """

    __slots__ = ("present", "previous", "settings", "stack", "token")

    def __init__(self, settings: Sequence[Setting] = ()) -> None:
        self.settings = settings
        self.present: dict[Source, Any] = {}
        self.stack: ExitStack | None = None

    def __enter__(self) -> Replay:
        if self.settings:
            with ExitStack() as stack:
                for setting in self.settings:
                    setting.enter(stack)
                self.stack = stack.pop_all()
        self.previous = torch.is_grad_enabled()
        torch._C._set_grad_enabled(True)
        self.token = RECOMPUTING.set(True)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.stack is not None:
                self.stack.close()
            for source, state in self.present.items():
                source.write(state)
        finally:
            RECOMPUTING.reset(self.token)
            torch._C._set_grad_enabled(self.previous)

    def draw(self, states: tuple[tuple[Source, Any], ...]) -> None:
        """Set the generators that a stage draws from to what they were before its first run."""
        for source, state in states:
            if source not in self.present:
                self.present[source] = source.read()
            source.write(state)
