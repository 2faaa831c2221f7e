"""The first run of a stage, from when it is entered to when it is left."""

from __future__ import annotations

from typing import Any

from revolve.storage.boundary import versions_of

from .encoding import Encoder, saves_late
from .exceptions import RecomputeError
from .packing import Recording
from .state import StageState

__all__ = ["FirstRun"]


class FirstRun(Recording):
    """A stage's first run, and the context of all that belongs to it.

    Attributes
    ----------
    start
        When it began, by the numbers of the graph's nodes.
    versions, state
        Of its input, and what the stage sees, once it has the input.
    """

    __slots__ = ("start", "state", "versions")

    start: int
    state: StageState
    versions: tuple[int, ...]

    def check(self, value: Any, output: Any) -> None:
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
            self.keep.finish(output, self.packer.live())
        if versions_of(value) != self.versions:
            raise RecomputeError(
                f"stage {name!r} changes its input in place, so it cannot be run again [8]; "
                "join it with the stage before it, or use inplace=False"
            )
