"""What a stage takes, by the identities of storages: its input, and what is held anyway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from revolve.storage.boundary import storage_keys

from .stages import StageModule

__all__ = ["Inputs", "held_anyway"]


class Inputs:
    """Identities of the storages that a stage takes; they grow while a stage that the model calls itself is under way.

    Attributes
    ----------
    passing
        Of what counts as the stage's input.
    held
        Of what is held for the whole step whatever is planned, and so never encoded: what comes from elsewhere, and
        what of the input goes elsewhere, too.
    """

    __slots__ = ("held", "passing")

    def __init__(self, passing: set[int] | None = None, held: set[int] | None = None) -> None:
        self.passing = set() if passing is None else passing
        self.held = set() if held is None else held

    @classmethod
    def of(cls, stages: Sequence[StageModule], index: int, value: Any) -> Inputs:
        """Return what one of some stages takes with a value."""
        held = held_anyway(stages, index, value)
        return cls(storage_keys(value) - held, held | storage_keys(stages[index].loose))


def held_anyway(stages: Sequence[StageModule], index: int, value: Any) -> set[int]:
    """Return the identities of the storages in x_index that later stages hold, or that only leave the chain there."""
    if not index:
        return set()
    return storage_keys(value) - storage_keys(stages[index - 1].activation(value))
