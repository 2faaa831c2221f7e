"""One forward pass of a model that calls its stages itself, as the first run of a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from revolve.storage.boundary import tensors_of, version_of
from revolve.storage.dense import DenseSnapshot

from .encoding import Encoder
from .exceptions import ModelError
from .executor import Run
from .glue import writes
from .packing import Recording
from .program import Program
from .samples import Arguments, opaque_leaves
from .saving import Kept
from .segments import Step
from .stages import StageModule
from .state import Habits
from .tracks import Passed, Track

__all__ = ["PlannedTrail"]


class PlannedTrail:
    """One forward pass by a plan: the model calls the stages, and the run is told of each.

    Parameters
    ----------
    stages, paths
        The stages, and the paths of the modules that each calls.
    program, habits
        The schedule, and what earlier runs saw the stages do.
    arguments
        Of the first call.
    passed
        What earlier passes saw to pass between stages: updated at the end, where storage formats need it.
    runs
        Makes the run.
    """

    def __init__(
        self,
        stages: Sequence[StageModule],
        paths: Sequence[Sequence[str]],
        program: Program,
        habits: Habits,
        arguments: Arguments,
        passed: list[Passed],
        runs: Callable[..., Run] = Run,
    ) -> None:
        self.passed = passed
        self.track = Track(paths, passed if program.formats else (), carries=program.chain.carries)
        self.track.begin(arguments)
        pairs = zip(stages, self.track.segments, strict=True)
        called = [stage.as_called((segment,), segment.activation) for stage, segment in pairs]
        self.run = runs(called, program, habits)
        self.run.begin(self.track.value, apart=True)
        self.run.watching.look()
        self.position = 0
        self.failed = False
        self.open()

    def open(self) -> None:
        """Begin the next stage: what runs from now on belongs to it."""
        self.first = self.run.open(self.track.inputs)
        self.behind = self.run.watching.states  # of the generators, behind the step before
        self.versions: list[int] = []  # of the tensors that the stage takes from elsewhere

    def call(self, forward: Callable[..., Any], arguments: Arguments) -> Any:
        """Call the next module, as part of a stage's first run."""
        run, segment = self.run, self.track.segment
        check_opaque(segment.calls[segment.called], arguments)
        step = self.bind(forward, arguments)
        if not segment.called:
            self.track.check()
            self.value = self.track.value
            run.receive(self.first, self.value)
        self.first.state.loose = self.versions
        number = len(run.packers[self.track.stage].holders)
        try:
            with self.first:
                output = forward(*arguments[0], **arguments[1])
        except BaseException:
            self.failed = True
            self.forget(number)
            raise
        self.note(step, output, module=True)
        self.position += 1
        if segment.called == len(segment.calls):
            self.leave(output)
        return output

    def leave(self, output: Any) -> None:
        """End the present stage, and the run with the last one."""
        run, track, keep = self.run, self.track, self.first.keep
        if isinstance(keep, Encoder) and self.passed:
            picks, held = self.passed[track.stage]
            dense = held if keep.encoded_output else held | picks
            keep.refer(track.living(dense), run.packers[track.stage].live())
        run.leave(self.first, self.value, output, self.behind)
        del self.value, self.first
        track.advance()
        if len(run.states) < len(run.stages):
            self.open()
            return
        run.finish(None)
        if run.program.formats:
            self.passed[:] = track.passed()

    def function(self, function: Callable[..., Any], arguments: Arguments) -> Any:
        """Call a function between modules, as part of the first run of the stage behind it.

        One that takes nothing of the chain does not belong to it. Nor does one that turns out to change what its stage
        has not made: what it saves is kept, and dense.
        """
        if not any(map(self.track.place, tensors_of(arguments))):
            return function(*arguments[0], **arguments[1])
        packer, keep = self.run.packers[self.track.stage], self.first.keep
        number = len(packer.holders)
        later = isinstance(keep, Encoder) and writes(function, arguments)
        step = self.bind(function, arguments)
        try:
            with Recording(packer, self.run, Kept if keep is None or later else keep):
                output = function(*arguments[0], **arguments[1])
        except BaseException:
            self.forget(number)
            raise
        if self.track.foreign():
            self.forget(number)
            return output
        if keep is None:
            packer.empty(number)
        elif later:
            packer.keep(keep, number)
        self.note(step, output, module=False)
        return output

    def forget(self, number: int) -> None:
        """Leave the call that was bound out of the stage, and what it has saved, from some holder on, to the graph."""
        self.run.packers[self.track.stage].forget(number)
        self.track.forget()

    def end(self) -> None:
        """Let functions behind the last module that was called be called again, also if the next never was."""
        segment = self.track.segment
        if not self.run.swept and segment.steps and not segment.called:
            if not self.failed:
                self.run.receive(self.first, self.track.value)
            self.first.state.loose = self.versions
            self.first.state.random = self.run.watching.leave(self.track.stage)
            segment.calls = ()

    def bind(self, forward: Callable[..., Any], arguments: Arguments) -> Step:
        """Note a call before it is made, and what the model has drawn since the one before."""
        watching = self.run.watching
        step = self.track.bind(self.run.user_modes.bound(forward), arguments)
        self.taken = [(alias, version_of(alias)) for alias in self.track.segment.side[len(self.versions) :]]
        now = watching.random.read()
        if now != self.behind:
            if watching.states == self.behind:
                watching.states = now
            else:
                drawn = zip(watching.random.sources, self.behind, now, strict=True)
                step.draws = tuple((source, new) for source, old, new in drawn if old != new)
        return step

    def carry(self) -> None:
        """Store what has come to be carried with the activations that are stored already: the model still holds it."""
        for index, tensor in self.track.grown:
            snapshot = self.run.snapshots.get(index)
            if isinstance(snapshot, DenseSnapshot):
                snapshot.add(tensor, self.run.enclosing)

    def note(self, step: Step, output: Any, *, module: bool) -> None:
        """Note a call that was made."""
        self.run.stages[self.track.stage].add_loose([tensor for tensor, _ in self.taken])
        self.versions += [version for _, version in self.taken]
        self.carry()
        self.track.note(step, output, module=module)
        self.behind = self.run.watching.random.read()


def check_opaque(path: str, arguments: Arguments) -> None:
    """Refuse to plan a call with objects that it may change.

    Raises
    ------
    ModelError
        If it takes one; the message names it.
    """
    opaque = next(opaque_leaves(arguments), None)
    if opaque is not None:
        raise ModelError(
            f"stage {path!r} is called with a {type(opaque).__name__}, which it may change, so that it could "
            "not be run again; pass use_cache=False if that is a cache, or call revolve.restore(model)"
        )
