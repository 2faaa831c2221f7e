"""The first run of a stage, from when it is entered to when it is left."""

from __future__ import annotations

from typing import Any

from revolve.storage.boundary import versions_of

from .encoding import Encoder, saves_late
from .exceptions import RecomputeError
from .saving import Hooks, Keep, Packer
from .state import StageState

__all__ = ["FirstRun"]


class FirstRun:
    """A stage's first run, while it lasts.

    Parameters
    ----------
    index
        The stage.
    keep
        What fills its holders.
    hooks
        What it has to run under.
    start
        When it began, by the numbers of the graph's nodes.

    Attributes
    ----------
    versions, state
        Of its input, and what the stage sees, once it has the input.
    """

    __slots__ = ("hooks", "index", "keep", "start", "state", "versions")

    def __init__(self, index: int, keep: Keep | None, hooks: Hooks, start: int) -> None:
        self.index = index
        self.keep = keep
        self.hooks = hooks
        self.start = start
        self.versions: tuple[int, ...] = ()
        self.state: StageState

    def check(self, value: Any, output: Any, packer: Packer) -> None:
        """Finish what is encoded, and check that the stage can be run again on its input [8].

        Raises
        ------
        RecomputeError
            If it changed its input, or saved a tensor in another format than dense before it was written.
        """
        name = self.state.stage.name
        if isinstance(self.keep, Encoder):
            if self.state.changing is None and saves_late(output, self.start):
                raise RecomputeError(
                    f"stage {name!r} saves a tensor before it is written, as F.rrelu does, so that it "
                    "cannot be kept in another format than dense; measure and plan again"
                )
            self.keep.finish(output, packer.live())
        if versions_of(value) != self.versions:
            raise RecomputeError(
                f"stage {name!r} changes its input in place, so it cannot be run again [8]; "
                "join it with the stage before it, or use inplace=False"
            )
