"""Rehearses a schedule on a measured chain: where a step takes more than the judge says, the chain is corrected.

Stages are measured one by one, and what surrounds them without their own backward. What only a whole step shows, such
as gradients that are added out of place since a skip has them as well, is seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from revolve.schedules.actions import Action, Backward, Drop, Forward, Loss, Rebuild, Save
from revolve.schedules.chain import Chain
from revolve.schedules.plans import Plan
from revolve.schedules.segments import schedule_from_cuts, schedule_from_segments, segment_starts
from revolve.storage.accounts import DenserThanPlanned
from revolve.storage.dense import Enclosing

from .allocations import Phase, Tracer, trace_allocations
from .bench import ROOT_BYTES, clear_gradients, run_loss
from .exceptions import RecomputeError
from .executor import Run
from .first_runs import FirstRun
from .instruments import instruments
from .replay import Replay

__all__ = ["Runs", "rehearse"]

Runs = Callable[..., Run]

EXTRAS: Mapping[type[Action], str] = {
    Forward: "forward_extra",
    Save: "save_extra",
    Rebuild: "rebuild_extra",
    Backward: "backward_extra",
}


class Journal:
    """Which actions of a plan are done at the end of each phase of a trace.

    Parameters
    ----------
    plan
        The plan.

    Attributes
    ----------
    ends
        For each phase how many actions are done when it ends.
    left
        Whether the step has left the schedule.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.begin(None)

    def begin(self, tracer: Tracer | None) -> None:
        """Begin a step."""
        self.tracer = tracer
        self.done = 0
        self.ends: list[int] = []
        self.left = False

    def mark(self) -> None:
        """End a phase, unless nothing was done since the one before."""
        if self.done > (self.ends[-1] if self.ends else 0):
            self.ends.append(self.done)
            if self.tracer is not None:
                self.tracer.mark()

    def ran(self, kinds: tuple[type[Action], ...], stage: int) -> None:
        """Take note that a stage was run; backward passes of stages that have none are passed over."""
        actions = self.plan.actions
        for position in range(self.done, len(actions)):
            action = actions[position]
            if isinstance(action, kinds) and action.index == stage:  # type: ignore[attr-defined]
                self.done = position + 1
                return
        self.left = True

    def turn(self, stage: int) -> None:
        """Take note that the backward of a stage is about to be prepared: what lies behind it is done."""
        actions = self.plan.actions
        while isinstance(actions[self.done], (Loss, Drop)) or (
            isinstance(action := actions[self.done], Backward) and action.index > stage
        ):
            self.done += 1
        self.mark()

    def end(self) -> None:
        """End the step."""
        self.done = len(self.plan.actions)
        self.mark()


def list_cuts(length: int) -> Iterator[list[int]]:
    """Yield the starts of 1, 2, 4, ... segments of equal length, and of one a stage."""
    count = 1
    while count < length:
        yield segment_starts(length, count, balanced=True)
        count *= 2
    yield segment_starts(length, length)


def save_last(starts: list[int], length: int) -> Iterator[Action]:
    """Yield the schedule that saves the last segment at once, and runs the others again."""
    return schedule_from_cuts([*starts], length)


def run_last_again(starts: list[int], length: int) -> Iterator[Action]:
    """Yield the schedule that runs every segment again, also the last one."""
    return schedule_from_segments(list(pairwise([*starts, length])), length, hold=False)


def least(schedule: Callable[[list[int], int], Iterator[Action]], chain: Chain) -> Plan:
    """Return the plan of segments that takes the least memory."""
    plans = (Plan.from_actions(chain, schedule(starts, len(chain))) for starts in list_cuts(len(chain)))
    return min(plans, key=lambda plan: plan.peak)


# What is rehearsed of every chain.
USUAL = (partial(least, save_last), partial(least, run_last_again))


class Rehearsed(Run):
    """A run that keeps a journal.

    Parameters
    ----------
    journal
        The journal.
    *parts
        As for :class:`Run`.
    """

    def __init__(self, journal: Journal, *parts: Any) -> None:
        super().__init__(*parts)
        self.journal = journal

    def open(self, value: Any = None) -> FirstRun:
        """Open the first run of the next stage."""
        self.journal.mark()
        return super().open(value)

    def leave(self, first: FirstRun, value: Any, output: Any, states: tuple[Any, ...] | None = None) -> None:
        """Take note of what a stage did that was entered with a value."""
        super().leave(first, value, output, states)
        self.journal.ran((Forward, Save), first.packer.stage)

    def finish(self, value: Any) -> None:
        """End the first sweep with the model's output."""
        self.journal.mark()
        super().finish(value)

    def go_on(self, stage: int) -> None:
        """Advance to a stage, in the graph task of now."""
        self.journal.turn(stage)
        super().go_on(stage)
        self.journal.mark()

    def recover(self, stage: int) -> None:
        """Fill the holders of a stage that the schedule has passed."""
        self.journal.left = True
        super().recover(stage)

    def run_again(self, action: Forward | Save | Rebuild, value: Any, replay: Replay) -> Any:
        """Run a stage again."""
        self.journal.mark()
        cursor = super().run_again(action, value, replay)
        self.journal.ran((type(action),), action.index)
        return cursor


def rehearse(
    chain: Chain,
    follow: Callable[[Plan, Runs], Callable[[Any], Any]],
    arguments: Callable[[], Any],
    loss: Callable[[Any], torch.Tensor],
    parameters: Sequence[torch.Tensor],
    device: torch.device,
    plans: Iterable[Callable[[Chain], Plan]] = USUAL,
) -> Chain:
    """Run steps by some plans; return the chain with the peaks that it was seen to have.

    Where a stage cannot be run again, or there is no room for such a step, nothing is learned: plans that do so fail,
    and others serve.

    Parameters
    ----------
    chain
        The chain.
    follow
        Given a plan and what makes its runs, returns the forward pass by it; of all plans with the same habits.
    arguments
        Returns fresh arguments of a forward pass.
    loss
        Maps the output to a scalar.
    parameters
        Aliases of what gets gradients.
    device
        Where the memory is.
    plans
        What makes the plans of a chain.
    """
    if instruments() is not None or Enclosing.current() is not None:  # without values, or as somebody else keeps it
        return chain
    warm = False
    for make in plans:
        journal = Journal(make(chain))
        forward = follow(journal.plan, partial(Rehearsed, journal))
        try:
            if not warm:  # what is allocated and found out on first use is not the step's
                run_step(forward, arguments(), loss, journal)
                warm = True
            given = arguments()
            clear_gradients(parameters)
            with trace_allocations(device) as tracer:
                run_step(forward, given, loss, journal, tracer)
        except (RecomputeError, DenserThanPlanned, torch.OutOfMemoryError):
            return chain
        if not journal.left:
            chain = corrected(chain, journal, tracer.phases)
    return chain


def run_step(
    forward: Callable[[Any], Any],
    given: Any,
    loss: Callable[[Any], torch.Tensor],
    journal: Journal,
    tracer: Tracer | None = None,
) -> None:
    """Run a step; output and loss live to its end, as a caller's."""
    journal.begin(tracer)
    with ExitStack() as stack, torch.enable_grad():
        output = forward(given)
        _result = run_loss(loss, output, stack)
        journal.end()


def corrected(chain: Chain, journal: Journal, phases: Sequence[Phase]) -> Chain:
    """Return a chain whose peaks are those of the phases of a step at least, with room for the caller's scalars.

    What the last stage's backward takes more where it was run again is part of that run's peak.
    """
    timeline = journal.plan.simulation.timeline
    begin = 0
    for end, phase in zip(journal.ends, phases, strict=True):
        again = timeline[end - 1].action == Backward(len(chain) - 1) and timeline[end - 2].action != Loss()
        entries = [e for e in timeline[min(begin, end - 1 - again) : end] if type(e.action) in (*EXTRAS, Loss)]
        begin = end
        highest = max(entries, key=lambda entry: entry.peak)
        if phase.peak + ROOT_BYTES // 2 > highest.peak:
            size = phase.peak + ROOT_BYTES - highest.peak
            chain = raise_peak(chain, type(highest.action), getattr(highest.action, "index", 0), size)
    return chain


def raise_peak(chain: Chain, kind: type[Action], index: int, size: int) -> Chain:
    """Return a chain in which an action of a stage takes more bytes for a while, in every format."""
    if kind is Loss:
        return replace(chain, loss_extra=chain.loss_extra + size)
    name = EXTRAS[kind]
    stages = list(chain.stages)
    stages[index] = replace(stages[index], **{name: getattr(stages[index], name) + size})
    formats = dict(chain.formats)
    if kind in (Save, Backward):
        for format_, costs in formats.items():
            if costs.saves:
                sizes = list(getattr(costs, name))
                sizes[index] += size
                formats[format_] = replace(costs, **{name: tuple(sizes)})
    return replace(chain, stages=tuple(stages), formats=formats)
