"""Which stages draw random numbers: found by reading generators around stages, and around none that never drew."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from .generators import FOREIGN, RandomState, Source, default_sources

__all__ = ["Drawn", "Surprise", "Watch"]

Drawn = tuple[tuple[Source, Any], ...]  # generators that a stage draws from, each with its state before


@dataclass(frozen=True, slots=True)
class Surprise:
    """Stages, none of which drew in earlier steps, between whose first and last a generator moved.

    Attributes
    ----------
    stages
        Their indices.
    before, after
        States of the generators before the first and after the last.
    """

    stages: range
    before: tuple[Any, ...]
    after: tuple[Any, ...]


class Watch:
    """Reads generators while stages run one after the other.

    Parameters
    ----------
    sources
        The generators.
    drawing
        For each stage whether it was seen to draw, None before it has run; kept up to date. Where it is False, the
        generators are read only before the next stage that may draw, and at the end.
    """

    def __init__(self, sources: Iterable[Source], drawing: list[bool | None]) -> None:
        self.random = RandomState(tuple(sources))
        self.drawing = drawing
        self.states = self.random.read()
        self.start = 0  # the stage that the states were read before
        self.surprises: list[Surprise] = []

    @classmethod
    def over(cls, devices: Iterable[torch.device], owned: Iterable[Source], drawing: list[bool | None]) -> Watch:
        """Watch torch's generators on some devices, those that the user keeps, Python's and NumPy's."""
        return cls(dict.fromkeys([*default_sources(devices), *owned, *FOREIGN]), drawing)

    def look(self) -> None:
        """Read the generators anew: whoever drew meanwhile was no stage."""
        self.states = self.random.read()

    def moved(self, states: tuple[Any, ...] | None = None) -> Drawn:
        """Return the generators that moved, each with its state before; their states are known, or read."""
        before, self.states = self.states, states or self.random.read()
        if before == self.states:
            return ()
        pairs = zip(self.random.sources, before, self.states, strict=True)
        return tuple((source, old) for source, old, new in pairs if old != new)

    def reach(self, stage: int) -> None:
        """Read the generators before a stage that may draw, or at the end, if stages have run since the last time."""
        before, start, self.start = self.states, self.start, stage
        if start < stage and self.moved():
            self.surprises.append(Surprise(range(start, stage), before, self.states))

    def leave(self, stage: int, states: tuple[Any, ...] | None = None) -> Drawn:
        """Return what a stage has drawn from; the states of the generators are known, or read."""
        drawn = self.moved(states)
        self.drawing[stage] = bool(drawn or self.drawing[stage])
        self.start = stage + 1
        return drawn
