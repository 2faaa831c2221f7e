"""What sizes and times are measured with, where it is not the device itself: a model of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .allocations import Tracer

__all__ = ["Instruments", "instruments", "measuring_with"]


class Instruments(Protocol):
    """Stands in for the allocator and the clock of a device."""

    def tracer(self) -> Tracer:
        """Return a tracer that begins now."""

    def seconds(self) -> float:
        """Return seconds that have passed on the device."""


CURRENT: ContextVar[Instruments | None] = ContextVar("instruments", default=None)


def instruments() -> Instruments | None:
    """Return what stands in for the device; None where it is measured itself."""
    return CURRENT.get()


@contextmanager
def measuring_with(others: Instruments) -> Iterator[None]:
    """Measure with other instruments until the block ends."""
    token = CURRENT.set(others)
    try:
        yield
    finally:
        CURRENT.reset(token)
