"""Measures what a step takes outside of a chain of stages: before it, between its stages, behind it, and in the loss.

One real step is traced in which the stages keep nothing, and their backward gives zeros without computing. What is
alive when a stage begins, besides its input, is what the model itself holds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from revolve.storage.boundary import cut, map_tensors, tensors_of

from .allocations import Phase, Tracer, trace_allocations
from .bench import GENERATOR_BYTES, clear_gradients, run_loss, step_clock
from .detours import Detour, Lost
from .exceptions import ModelError
from .following import Follower
from .gradients import GradientLayout
from .modes import Modes
from .samples import Arguments
from .saving import key_of
from .segments import Slot
from .stages import StageModule
from .surroundings import Surroundings
from .tracks import Track
from .turns import Remains, Turn, users_alone
from .user_modes import UserModes

__all__ = ["survey"]

REPEATED = ("between", "pause")  # marks that a stage may have several of: the phase with the highest peak counts


def survey(
    model: nn.Module,
    stages: Sequence[StageModule],
    arguments: Callable[[], Arguments],
    loss: Callable[[Any], torch.Tensor],
    device: torch.device,
    *,
    carries: bool = False,
) -> Surroundings:
    """Run steps of a model whose stages are replaced: one for their arguments, one traced, one timed.

    Parameters
    ----------
    model
        The model; to be called where it is isolated.
    stages
        Its stages.
    arguments
        Returns fresh arguments of a call.
    loss
        Maps the output to a scalar.
    device
        Where the memory is.
    carries
        Whether what leaps over stages is carried by the activations, not held.

    Raises
    ------
    ModelError
        If the model does not call its stages once each, in order.
    """
    users_alone()  # known before anything is traced
    first, traced, timed = (Surveyor(model, stages, device, carries=carries) for _ in range(3))
    run_step(model, first, arguments(), loss)
    trail = first.trail()
    traced.layouts = timed.layouts = trail.layouts
    given = arguments()
    clear_gradients(model.parameters())
    with trace_allocations(device) as traced.tracer:
        run_step(model, traced, given, loss)
    traced.trail()
    given = arguments()
    clear_gradients(model.parameters())
    start = step_clock(device)
    run_step(model, timed, given, loss)
    seconds = max(0.0, step_clock(device) - start - timed.stage_seconds)
    for parameter in model.parameters():
        parameter.grad = None
    phases: dict[tuple[str, int], Phase] = {}
    alive: dict[tuple[str, int], int] = {}
    for label, phase, left in zip(traced.labels, traced.tracer.phases, traced.left, strict=True):
        if label[0] not in REPEATED or label not in phases or phase.peak > phases[label].peak:
            phases[label], alive[label] = phase, left
    passed, copies, gradients = trail.track.passed(), traced.copies, traced.gradients
    called, settings = trail.called(stages, traced.remains), (trail.modes, trail.user_modes)
    return Surroundings(called, trail.value, settings, seconds, phases, alive, copies, gradients, passed)


def run_step(model: nn.Module, surveyor: Surveyor, arguments: Arguments, loss: Callable[[Any], torch.Tensor]) -> None:
    """Run a step; output and loss live to its end, as a caller's."""
    with ExitStack() as stack:
        stack.callback(surveyor.take_off)
        surveyor.put_on()
        stack.enter_context(torch.enable_grad())
        output = model(*arguments[0], **arguments[1])
        surveyor.mark("returned", 0)
        _result = run_loss(loss, output, stack)
        surveyor.mark("done", 0)


class Surveyor(Follower):
    """Follows a step whose stages keep nothing.

    Parameters
    ----------
    model
        The model.
    stages
        Its stages.
    device
        Where they run.
    carries
        Whether what leaps over stages is carried.

    Attributes
    ----------
    tracer
        What traces the step, if anything does.
    labels, left
        What each of its marks stands for, and the bytes of the last stage's output that were alive then.
    copies
        Bytes of the gradients that each stage's backward begins with and may copy, since they are not dense, and of
        those that come for what leaves the stage beside its output.
    remains
        What outlives the backward passes.
    leaks
        Bytes that each call saves for what leaves it beside its output, such as a loss in an attribute.
    stage_seconds
        Seconds spent in stages.
    layouts
        Of the gradients for each call's inputs, from an earlier step; None where they are to be found.
    """

    def __init__(
        self, model: nn.Module, stages: Sequence[StageModule], device: torch.device, *, carries: bool = False
    ) -> None:
        self.stages = stages
        self.carries = carries
        self.found: list[Any] = [module for stage in stages for module in stage.functions]
        super().__init__(model, self.found)
        self.device = device
        paths = {module: path for path, module in model.named_modules()}
        self.names = [paths[module] for module in self.found]
        self.begins = {sum(len(s.functions) for s in stages[:number]): number for number in range(len(stages))}
        self.ends = {begin + len(stages[number].functions) - 1: number for begin, number in self.begins.items()}
        self.tracer: Tracer | None = None
        self.labels: list[tuple[str, int]] = []
        self.left: list[int] = []
        self.remains = Remains()
        self.copies: dict[int, int] = {}
        self.gradients: dict[int, int] = {}
        self.leaks: list[int] = []
        self.stage_seconds = 0.0
        self.layouts: list[GradientLayout] | None = None
        self.token = torch.zeros((), device=device, requires_grad=True)
        self.trails: list[SurveyTrail] = []

    def begin(self, arguments: Arguments) -> SurveyTrail:
        """Begin a pass."""
        self.trails.append(SurveyTrail(self, arguments))
        return self.trails[-1]

    def mark(self, kind: str, stage: int) -> None:
        """End a phase of the trace."""
        if self.tracer is not None:
            self.tracer.mark()
            self.labels.append((kind, stage))
            self.left.append(self.remains.output_bytes())

    def mark_ran(self, kind: str, stage: int) -> None:
        """End the phase of a call; behind it a planned pass reads the generators, while its own is still held."""
        self.mark(kind, stage)
        torch.empty(GENERATOR_BYTES, dtype=torch.uint8)

    def trail(self) -> SurveyTrail:
        """Return the only pass.

        Raises
        ------
        ModelError
            If there are more, or it has not come to its end.
        """
        if len(self.trails) > 1:
            raise ModelError(
                f"the model calls its stages ({self.names[0]!r} ...) {len(self.trails)} times in one forward pass, "
                "and a plan covers one; call revolve.checkpointed on the module that is called again, with a budget "
                "for one of its calls"
            )
        position = self.trails[0].position if self.trails else 0
        if position < len(self.names):
            raise ModelError(
                f"the model did not call {self.names[position]!r} as it did when it was recorded (does it leave "
                "out modules at random?); switch that off"
            )
        return self.trails[0]


class SurveyTrail:
    """The pass of a surveyor; it holds the first stage's input and all side inputs, as a run does.

    Attributes
    ----------
    value
        The first stage's input.
    modes, user_modes
        Those of its first call.
    """

    def __init__(self, surveyor: Surveyor, arguments: Arguments) -> None:
        self.surveyor = surveyor
        self.position = 0
        paths = iter(surveyor.names)
        called = [[next(paths) for _ in stage.functions] for stage in surveyor.stages]
        self.track = Track(called, carries=surveyor.carries)
        self.track.begin(arguments)
        self.value = cut(self.track.value)
        self.modes = Modes.current([surveyor.device])
        self.user_modes = UserModes.current()
        self.layouts = [*(surveyor.layouts or ())]
        self.lost: list[weakref.ref[Lost]] = []  # of the last call
        self.turns: list[Turn] = []
        self.begun = False  # the present stage has
        self.leaving: set[tuple[int, int]] = set()  # stage and number of what outlives its stage

    def called(self, stages: Sequence[StageModule], remains: Remains) -> list[StageModule]:
        """Return the stages as functions of their input alone, that give what leaves the chain besides."""
        for turn in self.turns:
            self.leaving |= {(turn.stage, turn.made + position) for position in turn.reached}
        called = []
        for number, (stage, segment) in enumerate(zip(stages, self.track.segments, strict=True)):
            segment.give_besides(n for owner, n in sorted(self.leaving) if owner == number)
            segment.shared = {n for owner, n in remains.shared if owner == number}
            called.append(stage.as_called((segment,), segment.activation, segment.shared_of))
            called[-1].add_loose(segment.side)
        called[-1].__dict__["output_stays"] = remains.output_stays
        seen: set[int] = set()
        for segment in reversed(self.track.segments):
            for tensor in segment.side:  # its gradient is one of the surroundings, from when the last stage has made it
                tensor.passing, tensor.existing = True, key_of(tensor) in seen  # type: ignore[attr-defined]
            seen |= {key_of(tensor) for tensor in segment.side}
        return called

    def begin_step(self) -> None:
        """Mark what lies before a call: the beginning of a stage, or a pause in it, in which others may run."""
        if not self.begun:
            self.end()
        self.surveyor.mark("pause" if self.begun else "start", self.track.stage)
        self.begun = True

    def function(self, function: Callable[..., Any], arguments: Arguments) -> Any:
        """Call a function before the next module; what it saves is lost, and its own backward runs on zeros."""
        if not any(map(self.track.place, tensors_of(arguments))):
            return function(*arguments[0], **arguments[1])
        self.begin_step()
        step = self.track.bind(self.user_modes.bound(function), arguments)
        start = step_clock(self.surveyor.device)
        kept: list[Lost] = []
        with saved_tensors_hooks(partial(self.keep, kept), Lost.zeros):
            output = function(*arguments[0], **arguments[1])
        self.surveyor.stage_seconds += step_clock(self.surveyor.device) - start
        if self.track.foreign():
            self.track.forget()
        else:
            self.track.note(step, output, module=False)
            for lost in kept:
                lost.kept = None
        self.surveyor.mark_ran("ran", self.track.stage)
        return output

    def call(self, forward: Callable[..., Any], arguments: Arguments) -> Any:
        """Make the next call and keep nothing of it."""
        surveyor, number, track = self.surveyor, self.position, self.track
        self.begin_step()
        step = track.bind(self.user_modes.bound(forward), arguments)
        given = tensors_of(arguments)
        passed = {id(leaf): tensor for leaf, tensor in zip(step.leaves(), given, strict=True) if leaf is not None}
        made = iter([self.as_made(tensor) for leaf, tensor in zip(step.leaves(), given, strict=True) if leaf is None])
        start = step_clock(surveyor.device)
        output = self.run(forward, map_tensors(lambda _: next(made), step.template, Slot), arguments)
        surveyor.stage_seconds += step_clock(surveyor.device) - start
        turn = Turn(surveyor, number, self.layouts[number], track.stage, step.made)
        self.turns.append(turn)
        inputs = [tensor for tensor in given if tensor.requires_grad]
        output = map_tensors(lambda tensor: passed.get(id(tensor), tensor), turn.apply(output, passed, inputs))
        surveyor.leaks.append(sum(left.nbytes for reference in self.lost if (left := reference()) is not None))
        self.lost = []
        track.note(step, output, module=True)
        self.position += 1
        if self.position == len(surveyor.names):
            surveyor.remains.take(output)
        if number in surveyor.ends:
            surveyor.mark_ran("end", surveyor.ends[number])
            self.leaving |= {(track.stage, place.number) for place in track.given_by_functions()}
            track.advance()
            self.begun = False
        else:
            surveyor.mark_ran("ran", track.stage)
        return output

    def end(self) -> None:
        """Note what the model has returned or holds by now: no gradient may come to it, but it keeps its graph."""
        places = [place for place in self.track.places.values() if place.stage >= 0]
        held = [place for place in places if (tensor := place.reference()) is not None and tensor.requires_grad]
        self.leaving |= {(place.stage, place.number) for place in held}

    def run(self, forward: Callable[..., Any], arguments: Arguments, given: Arguments) -> Any:
        """Run a call that keeps nothing; the first time, see how the gradients lie that its backward gives."""
        args, kwargs = arguments
        if self.surveyor.layouts:
            with saved_tensors_hooks(self.lose, Lost.zeros):
                return forward(*args, **kwargs)
        pairs = zip(tensors_of(arguments), tensors_of(given), strict=True)
        inputs = [tensor for tensor, original in pairs if original.requires_grad]
        before = len(tensors_of(arguments))
        output = forward(*args, **kwargs)
        if len(tensors_of(arguments)) != before:
            raise ModelError(
                f"stage {self.surveyor.names[self.position]!r} puts tensors into a list or dict that it is called "
                "with, or takes them out, which cannot be done again; let it return them"
            )
        self.layouts.append(GradientLayout.probe(output, inputs))
        return output

    def lose(self, tensor: torch.Tensor) -> Lost:
        """Keep only what a saved tensor looks like."""
        lost = Lost(tensor)
        self.lost.append(weakref.ref(lost))
        return lost

    @staticmethod
    def keep(kept: list[Lost], tensor: torch.Tensor) -> Lost:
        """Keep a saved tensor until it is known to whom it belongs."""
        kept.append(Lost(tensor))
        kept[-1].kept = tensor.detach()
        return kept[-1]

    def as_made(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor outside of its graph, but no leaf: the call may work in place."""
        if not tensor.requires_grad:
            return tensor.detach()
        (made,) = Detour.apply(None, [tensor.detach()], self.surveyor.token)  # type: ignore[no-untyped-call]
        return made  # type: ignore[no-any-return]
