"""Executes a schedule under ordinary autograd.

The rules, cited as [n] in code and tests:

[1] The first forward runs every stage exactly once and builds an ordinary autograd graph of the whole
    model; only saved-tensor hooks are added. A stage that the schedule saves keeps its saved tensors
    in holders; for any other stage the holders are empty. Parameters and buffers pass through.
[2] When backward unpacks a holder of stage i, the schedule advances to just before ``backward i``.
    Stages are run again there, with the gradient of what lies behind them at hand, never earlier.
[3] The graph owns the holders and the holders own the run: when a node is released its tensors are,
    and when the graph is dropped nothing of the run is left. The run itself refers to holders weakly.
[4] Passing ``backward i`` empties what is left in the holders of stage i (retain_graph).
[5] An empty holder in a later backward of the same graph restarts the schedule from x_0.
[6] An empty holder that the schedule has passed (backward in an unplanned order) is filled by running
    from the nearest stored activation: more time, same result.
[7] A stage is run again in grad mode, on a detached input that requires a gradient where the first
    did, with the random numbers, buffers, training flags and autocast state of its first run, and
    all of these are put back.
[8] A stage that changes its input, or saves something else when run again, is an error that names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from revolve.schedules.actions import Action, Backward, Drop, Forward, Load, Loss, Rebuild, Save, Store
from revolve.schedules.plans import Plan
from revolve.storage.boundary import cut, tensors_of, versions_of
from revolve.storage.dense import DenseSnapshot

from .exceptions import PlanMismatch, RecomputeError
from .saving import Holder, Packer, StopRebuild, hooked
from .stages import StageModule
from .state import AutocastState, RandomState, StageState, devices_of

__all__ = ["Program", "Run", "is_recomputing", "recomputing"]

RECOMPUTING = ContextVar("recomputing", default=False)


def is_recomputing() -> bool:
    """Whether a stage is being measured or run again, for modules that count or log their calls."""
    return RECOMPUTING.get()


@contextmanager
def recomputing() -> Iterator[None]:
    """Let :func:`is_recomputing` be true."""
    token = RECOMPUTING.set(True)
    try:
        yield
    finally:
        RECOMPUTING.reset(token)


@dataclass(frozen=True)
class Program:
    """A schedule split at its turn-around.

    Attributes
    ----------
    sweep
        Actions up to the loss: every stage once, in order.
    rest
        Actions after it.
    """

    sweep: tuple[Action, ...]
    rest: tuple[Action, ...]

    @classmethod
    def from_plan(cls, plan: Plan) -> Program:
        """Split the schedule of a plan.

        Raises
        ------
        PlanMismatch
            If it runs stages again before the loss, or uses a storage format other than dense.
        """
        turn = plan.actions.index(Loss())
        sweep = plan.actions[:turn]
        runs = [action.index for action in sweep if isinstance(action, (Forward, Save))]
        if runs != list(range(len(plan.chain))) or any(isinstance(action, (Load, Rebuild)) for action in sweep):
            raise PlanMismatch(
                "the plan runs stages again before the loss, which autograd cannot execute; "
                "use a schedule whose first sweep runs every stage once"
            )
        foreign = [name for name in plan.formats() if name != "dense"]
        if foreign:
            raise PlanMismatch(f"the plan stores activations in format {foreign[0]!r}; only 'dense' can be executed")
        return cls(sweep, plan.actions[turn + 1 :])


class Run:
    """One forward pass and the backward passes through it.

    Parameters
    ----------
    stages
        The stages.
    program
        The schedule.
    changing
        For each stage the names of the buffers it changes, None before they are known.
    """

    def __init__(self, stages: Sequence[StageModule], program: Program, changing: list[set[str] | None]) -> None:
        self.stages = stages
        self.program = program
        self.changing = changing
        through = {key: storage for stage in stages for key, storage in stage.storages().items()}
        self.packers = [Packer(index, stage.name, through) for index, stage in enumerate(stages)]
        self.states: list[StageState] = []
        self.snapshots: dict[int, DenseSnapshot] = {}
        self.position = 0
        self.front = len(stages)
        self.task = -1
        self.restarted = False

    def forward(self, value: Any) -> Any:
        """Run the first sweep [1] and return the model's output."""
        devices = devices_of([*tensors_of(value), *(t for stage in self.stages for t in stage.tensors())])
        self.random = RandomState(devices)
        self.autocast = AutocastState.current(devices)
        self.snapshots[0] = DenseSnapshot(value)
        before = self.random.read()
        for action in self.program.sweep:
            if isinstance(action, Store):
                self.snapshots[action.index] = DenseSnapshot(value)
            elif isinstance(action, Drop):
                del self.snapshots[action.index]
            elif isinstance(action, (Forward, Save)):
                value = self.first_run(action.index, value, keep=isinstance(action, Save))
                after = self.random.read()
                if after != before:
                    self.states[action.index].random = before
                before = after
        return value

    def first_run(self, index: int, value: Any, *, keep: bool) -> Any:
        """Run a stage for the first time."""
        stage = self.stages[index]
        state = StageState(stage, self.changing[index])
        self.states.append(state)
        versions = versions_of(value)
        with hooked(self.packers[index].record(self, keep=keep)):
            output = stage(value)
        if versions_of(value) != versions:
            raise RecomputeError(
                f"stage {stage.name!r} changes its input in place, so it cannot be run again [8]; "
                "join it with the stage before it, or use inplace=False"
            )
        self.changing[index] = state.finish()
        return output

    def need(self, holder: Holder) -> None:
        """Advance the schedule for a stage whose backward has begun [2], and fill the holder."""
        if holder.kept is None and self.front <= holder.stage:
            task = torch._C._current_graph_task_id()
            if task != self.task:
                self.restart()
            else:
                with self.replaying():
                    self.refill_alone(holder.stage)
                return
        self.task = torch._C._current_graph_task_id()
        if self.front > holder.stage:
            self.advance(holder.stage)

    def restart(self) -> None:
        """Begin the schedule anew, from x_0 [5]."""
        for packer in self.packers:
            packer.empty()
        self.snapshots = {0: self.snapshots[0]}
        self.position = 0
        self.front = len(self.stages)
        self.restarted = True

    def advance(self, stage: int) -> None:
        """Perform actions up to the backward of a stage; after a failure the schedule begins anew [5]."""
        try:
            self.perform(stage)
        except BaseException:
            self.restart()
            raise

    def perform(self, stage: int) -> None:
        """Perform actions up to the backward of a stage."""
        actions = self.program.sweep + self.program.rest if self.restarted else self.program.rest
        cursor: Any = None
        with ExitStack() as stack:
            entered = False
            while True:
                action = actions[self.position]
                if isinstance(action, Backward):
                    if action.index == stage:
                        self.front = stage + 1
                        return
                    cursor = None
                    self.packers[action.index].empty()  # [4]
                    self.front = action.index
                elif isinstance(action, Store):
                    self.snapshots[action.index] = DenseSnapshot(cursor)
                elif isinstance(action, Load):
                    cursor = self.snapshots[action.index].load()
                elif isinstance(action, Drop):
                    del self.snapshots[action.index]
                elif isinstance(action, (Forward, Save, Rebuild)):
                    if not entered:
                        stack.enter_context(self.replaying())
                        entered = True
                    if self.restarted and self.position == 0:
                        cursor = self.snapshots[0].load()
                    cursor = self.run_again(action, cursor)
                self.position += 1

    def refill_alone(self, stage: int) -> None:
        """Fill the holders of one stage from the nearest stored activation [6]."""
        nearest = max(index for index in self.snapshots if index <= stage)
        cursor = self.snapshots[nearest].load()
        for index in range(nearest, stage):
            cursor = self.run_again(Forward(index), cursor)
        self.run_again(Rebuild(stage), cursor)

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Enter what every run of a stage but its first needs [7], and put it back."""
        with ExitStack() as stack:
            stack.callback(self.random.write, self.random.read())
            self.autocast.enter(stack)
            stack.enter_context(torch.enable_grad())
            stack.enter_context(recomputing())
            yield

    def run_again(self, action: Forward | Save | Rebuild, value: Any) -> Any:
        """Run a stage again; return the new cursor, detached."""
        stage, state, packer = self.stages[action.index], self.states[action.index], self.packers[action.index]
        if isinstance(action, Rebuild) and not packer.live():
            return None
        if state.random is not None:
            self.random.write(state.random)
        with state.replayed() as temporary:
            stop = isinstance(action, Rebuild) and stage.stops_early
            pack, check = packer.refill(temporary, keep=not isinstance(action, Forward), stop=stop)
            with suppress(StopRebuild), hooked(pack):
                output = cut(stage(value))
                check()
                return output
        return None
