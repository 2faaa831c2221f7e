"""What every run of a stage but its first is surrounded by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from .generators import Source
from .modes import Modes

__all__ = ["Replay", "is_recomputing", "questions", "recomputing"]

RECOMPUTING = ContextVar("recomputing", default=False)
QUESTIONS = [0]


def is_recomputing() -> bool:
    """Whether a stage is being measured or run again, for modules that count or log their calls.

    The attributes of a stage that asks are left to it; those of others are put back to what they were in its first run.
    """
    QUESTIONS[0] += 1
    return RECOMPUTING.get()


def questions() -> int:
    """Return how often :func:`is_recomputing` was asked."""
    return QUESTIONS[0]


@contextmanager
def recomputing() -> Iterator[None]:
    """Let :func:`is_recomputing` be true."""
    token = RECOMPUTING.set(True)
    try:
        yield
    finally:
        RECOMPUTING.reset(token)


class Replay:
    """Lets stages run again under the modes of their first run, and puts modes and generators back [7].

    Parameters
    ----------
    modes
        The modes of the first run; None where those of now are the same.
    """

    __slots__ = ("modes", "present", "previous", "stack", "token")

    def __init__(self, modes: Modes | None) -> None:
        self.modes = modes
        self.present: dict[Source, Any] | None = None
        self.stack: ExitStack | None = None

    def __enter__(self) -> Replay:
        if self.modes is not None:
            with ExitStack() as stack:
                self.modes.enter(stack)
                self.stack = stack.pop_all()
        self.previous = torch.is_grad_enabled()
        torch._C._set_grad_enabled(True)
        self.token = RECOMPUTING.set(True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.stack is not None:
            self.stack.close()
        if self.present is not None:
            for source, state in self.present.items():
                source.write(state)
        RECOMPUTING.reset(self.token)
        torch._C._set_grad_enabled(self.previous)

    def draw(self, states: tuple[tuple[Source, Any], ...]) -> None:
        """Set the generators that a stage draws from to what they were before its first run."""
        if self.present is None:
            self.present = {}
        for source, state in states:
            if source not in self.present:
                self.present[source] = source.read()
            source.write(state)
