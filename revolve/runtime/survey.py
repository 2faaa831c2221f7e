"""Measures what a step takes outside of a chain of stages: before it, between its stages, behind it, and in the loss.

One real step is traced in which the stages keep nothing, and their backward gives zeros without computing. What is
alive when a stage begins, besides its input, is what the model itself holds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from revolve.storage.boundary import cut, map_tensors, tensors_of

from .allocations import Tracer, trace_allocations
from .bench import run_loss, step_clock
from .detours import Detour, Lost, is_dense
from .exceptions import ModelError
from .following import Follower, StandIn
from .gradients import GradientLayout
from .modes import Modes
from .parts import PartCall
from .samples import Arguments
from .stages import StageModule
from .surroundings import Surroundings

__all__ = ["survey"]


def survey(
    model: nn.Module,
    stages: Sequence[StageModule],
    arguments: Callable[[], Arguments],
    loss: Callable[[Any], torch.Tensor],
    device: torch.device,
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

    Raises
    ------
    ModelError
        If the model does not call its stages once each, in order.
    """
    first, traced, timed = (Surveyor(model, stages, device) for _ in range(3))
    run_step(model, first, arguments(), loss)
    trail = first.trail()
    trail.note_extras()
    traced.layouts = timed.layouts = trail.layouts
    given = arguments()
    clear_gradients(model)
    with trace_allocations(device) as traced.tracer:
        run_step(model, traced, given, loss)
    traced.trail()
    given = arguments()
    clear_gradients(model)
    start = step_clock(device)
    run_step(model, timed, given, loss)
    seconds = max(0.0, step_clock(device) - start - timed.stage_seconds)
    for parameter in model.parameters():
        parameter.grad = None
    phases = dict(zip(traced.labels, traced.tracer.phases, strict=True))
    return Surroundings(trail.called(stages), trail.value, trail.modes, seconds, phases, traced.copies)


def clear_gradients(model: nn.Module) -> None:
    """Let a step begin with gradients where the user's own parameters have some."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if getattr(parameter, "existing", False) else None


def run_step(model: nn.Module, surveyor: Surveyor, arguments: Arguments, loss: Callable[[Any], torch.Tensor]) -> None:
    """Run a step; output and loss live to its end, as a caller's."""
    with ExitStack() as stack:
        for module in dict.fromkeys(surveyor.found):
            stand_in = StandIn(module, surveyor)
            stack.callback(stand_in.take_off)
            stand_in.put_on()
        stack.enter_context(torch.enable_grad())
        output = model(*arguments[0], **arguments[1])
        _result = run_loss(loss, output)
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

    Attributes
    ----------
    tracer
        What traces the step, if anything does.
    labels
        What each of its marks stands for.
    copies
        Bytes of the gradients that each stage's backward begins with and may copy, since they are not dense, and of
        those that come for what leaves the stage beside its output.
    leaks
        Bytes that each call saves for what leaves it beside its output, such as a loss in an attribute.
    stage_seconds
        Seconds spent in stages.
    layouts
        Of the gradients for each call's inputs, from an earlier step; None where they are to be found.
    """

    def __init__(self, model: nn.Module, stages: Sequence[StageModule], device: torch.device) -> None:
        self.stages = stages
        self.found: list[Any] = [module for stage in stages for module in stage.functions]
        super().__init__(self.found)
        self.device = device
        paths = {module: path for path, module in model.named_modules()}
        self.names = [paths[module] for module in self.found]
        self.begins = {sum(len(s.functions) for s in stages[:number]): number for number in range(len(stages))}
        self.ends = {begin + len(stages[number].functions) - 1: number for begin, number in self.begins.items()}
        self.tracer: Tracer | None = None
        self.labels: list[tuple[str, int]] = []
        self.copies: dict[int, int] = {}
        self.leaks: list[int] = []
        self.stage_seconds = 0.0
        self.layouts: list[GradientLayout] | None = None
        self.token = torch.zeros((), device=device, requires_grad=True)
        self.trails: list[SurveyTrail] = []

    def begin(self, arguments: Arguments) -> SurveyTrail:
        """Begin a pass."""
        self.trails.append(SurveyTrail(self))
        return self.trails[-1]

    def mark(self, kind: str, stage: int) -> None:
        """End a phase of the trace."""
        if self.tracer is not None:
            self.tracer.mark()
            self.labels.append((kind, stage))

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
        (trail,) = self.trails or [SurveyTrail(self)]
        if trail.position < len(self.names):
            raise ModelError(
                f"the model did not call {self.names[trail.position]!r} as it did when it was recorded (does it leave "
                "out modules at random?); switch that off"
            )
        return trail


class SurveyTrail:
    """The pass of a surveyor; it holds the first stage's input and all side inputs, as a run does.

    Attributes
    ----------
    value
        The first stage's input.
    modes
        Those of its first call.
    """

    def __init__(self, surveyor: Surveyor) -> None:
        self.surveyor = surveyor
        self.position = 0
        self.parts: list[PartCall] = []
        self.value: Any = None
        self.modes = Modes.current([surveyor.device])
        self.layouts = [*(surveyor.layouts or ())]
        self.lost: list[weakref.ref[Lost]] = []  # of the last call
        self.turns: list[Turn] = []

    def note_extras(self) -> None:
        """Let every call give what it was asked gradients for, also where the next call does not take it."""
        for number, (part, turn) in enumerate(zip(self.parts, self.turns, strict=True)):
            if part.picks is not None:
                part.extras = [position for position in turn.reached if position not in part.picks]
            if number not in self.surveyor.begins:
                before = self.parts[number - 1]
                part.inherited = len(before.extras) + before.inherited

    def called(self, stages: Sequence[StageModule]) -> list[StageModule]:
        """Return the stages as functions of their input alone."""
        waiting = iter(self.parts)
        called = [stage.as_called(tuple(next(waiting) for _ in stage.functions)) for stage in stages]
        for stage in called:
            for part in stage.functions:
                stage.add_loose(part.side)  # type: ignore[attr-defined]
            for tensor in stage.loose:  # its gradient is one of the surroundings
                tensor.existing = True  # type: ignore[attr-defined]
        return called

    def call(self, forward: Callable[..., Any], arguments: Arguments, linked: Mapping[int, int]) -> Any:
        """Make the next call and keep nothing of it."""
        surveyor, number = self.surveyor, self.position
        part = PartCall(surveyor.names[number])
        value, picks = part.bind(forward, arguments, linked)
        if number:
            self.parts[-1].picks = picks
        else:
            self.value = cut(value)
        self.parts.append(part)
        self.position += 1
        if number in surveyor.begins:
            surveyor.mark("start", surveyor.begins[number])
        start = step_clock(surveyor.device)
        output = self.run(forward, part.arguments(map_tensors(self.as_made, value)), arguments)
        surveyor.stage_seconds += step_clock(surveyor.device) - start
        others = [tensor for tensor in tensors_of(arguments) if id(tensor) not in linked]
        passed = {id(side): tensor for side, tensor in zip(part.side, others, strict=True)}
        detour = Turn(surveyor, number, self.layouts[number])
        self.turns.append(detour)
        inputs = [tensor for tensor in tensors_of(arguments) if tensor.requires_grad]
        output = map_tensors(lambda tensor: passed.get(id(tensor), tensor), detour.apply(output, passed, inputs))
        surveyor.leaks.append(sum(left.nbytes for reference in self.lost if (left := reference()) is not None))
        self.lost = []
        if number in surveyor.ends:
            surveyor.mark("end", surveyor.ends[number])
        return output

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
                f"stage {self.surveyor.names[self.position - 1]!r} puts tensors into a list or dict that it is called "
                "with, or takes them out, which cannot be done again; let it return them"
            )
        self.layouts.append(GradientLayout.probe(output, inputs))
        return output

    def lose(self, tensor: torch.Tensor) -> Lost:
        """Keep only what a saved tensor looks like."""
        lost = Lost(tensor)
        self.lost.append(weakref.ref(lost))
        return lost

    def as_made(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor outside of its graph, but no leaf: the call may work in place."""
        if not tensor.requires_grad:
            return tensor.detach()
        (made,) = Detour.apply(None, [tensor.detach()], self.surveyor.token)  # type: ignore[no-untyped-call]
        return made  # type: ignore[no-any-return]


@dataclass
class Turn:
    """Where the backward of one call turns round without running it.

    Attributes
    ----------
    positions
        Of the tensors in the call's output that hang on the inputs.
    reached
        Those of them that got a gradient.
    """

    surveyor: Surveyor
    number: int
    layout: GradientLayout
    positions: Sequence[int] = ()
    reached: Sequence[int] = ()

    def apply(self, output: Any, passed: Mapping[int, torch.Tensor], inputs: Sequence[torch.Tensor]) -> Any:
        """Return an output whose tensors hang on the inputs by a detour, where they require a gradient."""
        given = tensors_of(output)
        self.positions = [n for n, t in enumerate(given) if t.requires_grad and id(t) not in passed]
        outside = [given[position] for position in self.positions]
        made: Any = ()
        if outside:
            aliases = [t.detach() for t in outside]
            made = Detour.apply(self, aliases, self.surveyor.token, *inputs)  # type: ignore[no-untyped-call]
        replaced = dict(zip(map(id, outside), made, strict=True))
        return map_tensors(lambda t: t if id(t) in passed else replaced.get(id(t), t.detach()), output)

    def reverse(self, gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Return zeros for the inputs."""
        surveyor = self.surveyor
        self.reached = [position for position, g in zip(self.positions, gradients, strict=True) if g is not None]
        if self.number in surveyor.ends:
            stage = surveyor.ends[self.number]
            begin = self.number + 1 - len(surveyor.stages[stage].functions)
            leaks = sum(surveyor.leaks[begin : self.number + 1])
            summed = len(self.reached) > 1  # what they share inside of the stage gets one added to the other
            copied = [g for g in gradients if g is not None and (summed or not is_dense(g))]
            surveyor.copies[stage] = leaks + sum(g.nbytes for g in copied)
            surveyor.mark("back", stage)
        zeros = self.layout.make()
        if self.number in surveyor.begins:
            surveyor.mark("backed", surveyor.begins[self.number])
        return zeros
