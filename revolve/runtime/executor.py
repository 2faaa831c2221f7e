"""Executes a schedule under ordinary autograd.

The rules, cited as [n] in code and tests:

[1] The first forward runs every stage exactly once and builds an ordinary autograd graph of the whole
    model; only saved-tensor hooks are added. A stage that the schedule saves keeps its saved tensors
    in holders; for any other stage the holders are empty. Parameters and buffers pass through.
[2] When backward unpacks a holder of stage i, the schedule advances to just before ``backward i``.
    Stages are run again there, with the gradient of what lies behind them at hand, never earlier. Nor later: where the
    stage's output is made by functions that save nothing, their node says that its backward begins.
[3] The graph owns the holders and the holders own the run: when a node is released its tensors are,
    and when the graph is dropped nothing of the run is left. The run itself refers to holders weakly.
[4] Passing ``backward i`` empties what is left in the holders of stage i (retain_graph).
[5] The schedule is followed for one graph task at a time. A full holder serves any of them; an empty one
    that the schedule has passed restarts it from x_0 for a new graph task (a second backward, a part of the
    graph, another thread), which it then follows as far as that task goes.
[6] An empty holder that the schedule has passed within its own graph task (backward in an unplanned order)
    is filled by running from the nearest stored activation. With [5] and [6] gradients are right whatever
    the order and number of backward passes; the budget was planned for one in order, and a BudgetWarning
    says once that it may not hold.
[7] A stage is run again in grad mode, on a detached input that requires a gradient where the first
    did, with the random numbers, parameters, buffers, attributes, training flags, modes (autocast, default dtype
    and device, deterministic algorithms, attention kernels, the user's own) and module hooks of its first run, and all
    are put back.
[8] A stage that changes its input, or saves something else when run again, is an error that names it.
[9] Under saved-tensor hooks of somebody else (save_on_cpu, torch's checkpoint), whatever the first sweep
    keeps is kept by those hooks.
[10] One thread at a time advances a run; a failure in between makes the schedule begin anew [5].
[11] What the schedule names a format for is encoded at once, each storage once however many tensors and stages
    share it, and decoded anew for each use. Before a form takes more than plan and budget have room for,
    the step fails.
[12] Stages may be called by the model itself, one by one. Where it does not call all of them, the schedule is not
    followed: every stage is filled as in [6], with the same warning.
[13] Functions that the model calls between its stages' modules belong to the stage behind them, and are called again
    with it: as they were called, on what they took. What cannot be called again is left outside, its results held.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from threading import RLock
from typing import Any

import torch
from torch import distributed

from revolve.schedules.actions import Backward, Drop, Forward, Load, Rebuild, Save, Store
from revolve.storage.boundary import cut, storage_keys, storages_by_key, tensors_of, versions_of
from revolve.storage.dense import DenseSnapshot, Enclosing
from revolve.storage.shared_forms import FormSnapshot

from .draws import Surprise, Watch
from .encoding import Encoder, Encoding, saves_late
from .exceptions import BudgetWarning, RecomputeError
from .first_runs import FirstRun
from .generators import devices_of
from .modes import Modes
from .module_hooks import ModuleHooks
from .packing import Packer, Refilling, StopRebuild
from .program import Program
from .refusals import differentiated_within
from .replay import Replay
from .saving import Content, Holder, Keep, Kept, KeptElsewhere, graph_clock
from .sharding import gathered_for
from .stages import StageModule
from .state import Habits, StageState
from .tails import announce
from .user_modes import UserModes

__all__ = ["Run"]


class Run:
    """One forward pass and the backward passes through it.

    Parameters
    ----------
    stages
        The stages.
    program
        The schedule.
    habits
        What earlier runs saw the stages do.
    """

    def __init__(self, stages: Sequence[StageModule], program: Program, habits: Habits) -> None:
        self.stages = stages
        self.program = program
        self.habits = habits
        holdings = [stage.holdings() for stage in stages]
        self.tensors = [tensor for tensors, _ in holdings for tensor in tensors]
        self.sources = [source for _, sources in holdings for source in sources]
        through = storages_by_key(self.tensors)
        self.packers = [Packer(index, stage.name, through) for index, stage in enumerate(stages)]
        self.states: list[StageState] = []
        self.left = 0  # stages whose first run has come to its end
        self.snapshots: dict[int, DenseSnapshot | FormSnapshot] = {}
        self.sweep_position = 0
        self.swept = False
        self.actions = program.rest
        self.position = 0
        self.ready = len(stages)  # the schedule stands just before the backward of this stage
        self.task = -2  # none yet; -1 is a look at saved tensors outside of any backward
        self.lock = RLock()
        self.busy = False  # a backward pass waits for what it is being filled with

    def forward(self, value: Any) -> Any:
        """Run the first sweep [1] and return the model's output."""
        self.begin(value)
        for stage in self.stages:
            first = self.enter(value)
            with first:
                output = stage(value)
            self.leave(first, value, output)
            value = output
        self.finish(value)
        return value

    def begin(self, value: Any, *, apart: bool = False) -> None:
        """Begin the first sweep at the model's input; ``apart`` if anything else happens between stages."""
        self.devices = devices_of([*tensors_of(value), *self.tensors])
        self.modes = Modes.current(self.devices)
        self.user_modes = UserModes.current()
        self.module_hooks = ModuleHooks.current(self.stages)
        self.enclosing = Enclosing.current()
        self.snapshots[0] = DenseSnapshot(value, self.enclosing)
        if self.program.formats:
            program, own = self.program, storage_keys(value)
            self.encoding = Encoding(self.stages, program.chain, program.slack, own, self.habits.strain)
        # Other processes, or hooks around the model, would have to take part if stages were looked at again.
        apart = apart or self.enclosing is not None or (distributed.is_available() and distributed.is_initialized())
        drawing: list[bool | None] = [None] * len(self.stages) if apart else self.habits.drawing
        self.watching = Watch.over(self.devices, [*self.user_modes.sources(), *self.sources], drawing)
        del self.tensors, self.sources

    def enter(self, value: Any) -> FirstRun:
        """Open the next stage's first run, on a value."""
        first = self.open(value)
        self.receive(first, value)
        return first

    def open(self, value: Any = None) -> FirstRun:
        """Open the first run of the next stage; what runs under its hooks belongs to it.

        Its state is that of when its input is received. The value is needed only for a stage that is saved in another
        format than dense: ``Inputs`` that grow do as well.
        """
        index = len(self.states)
        action = self.program.runs[index]
        if self.watching.drawing[index] is not False:
            self.watching.reach(index)
        keep = None if type(action) is Forward else self.keep(action, value, self.enclosing)
        first = FirstRun(self.packers[index], self, keep)
        first.start = graph_clock()
        return first

    def receive(self, first: FirstRun, value: Any) -> None:
        """Take note of the input of a stage whose first run is open, and follow the sweep beyond that run."""
        self.follow_sweep(value)
        self.sweep_position += 1
        index = len(self.states)
        first.versions = versions_of(value)
        first.state = StageState(self.stages[index], self.habits.changing[index])
        self.states.append(first.state)

    def follow_sweep(self, value: Any) -> None:
        """Store and drop activations as the sweep says, up to the next action of another kind."""
        sweep = self.program.sweep
        while self.sweep_position < len(sweep):
            action = sweep[self.sweep_position]
            if type(action) is Store:
                self.snapshots[action.index] = self.store(action, value, self.enclosing)
            elif type(action) is Drop:
                del self.snapshots[action.index]
            else:
                return
            self.sweep_position += 1

    def leave(self, first: FirstRun, value: Any, output: Any, states: tuple[Any, ...] | None = None) -> None:
        """Take note of what a stage did that was entered with a value; of generators' states too, where known."""
        index, state = first.packer.stage, first.state
        first.check(value, output)
        self.habits.changing[index] = state.finish()
        self.left = index + 1
        if self.watching.drawing[index] is not False:
            state.random = self.watching.leave(index, states)
        if self.program.stops[index]:
            state.late = saves_late(output, max(first.start, first.packer.clock()))
        if index in self.program.prepared and self.habits.tailed[index] is not False:
            self.habits.tailed[index] = announce(self, first.packer, output, first.start)

    def finish(self, value: Any) -> None:
        """End the first sweep with the model's output."""
        self.follow_sweep(value)
        self.swept = True
        watch = self.watching
        del self.watching
        watch.reach(len(self.stages))
        for surprise in watch.surprises:
            self.look_again(surprise, watch)

    def look_again(self, surprise: Surprise, watch: Watch) -> None:
        """Find which of some stages draw by running them again, from the generators' states before the first."""
        first = surprise.stages[0]
        nearest = max(index for index in self.snapshots if index <= first)
        cursor = self.snapshots[nearest].load()
        with Replay() as replay:
            for index in range(nearest, first):
                cursor = self.run_again(Forward(index), cursor, replay)
            replay.draw(tuple(zip(watch.random.sources, surprise.before, strict=True)))
            again = Watch(watch.random.sources, self.habits.drawing)
            for index in surprise.stages:
                cursor = self.run_again(Forward(index), cursor, replay)
                self.states[index].random = again.leave(index)
                self.habits.drawing[index] = True
        if again.states not in (surprise.before, surprise.after):  # before: the numbers were drawn by another thread
            names = ", ".join(self.stages[index].name for index in surprise.stages)
            raise RecomputeError(
                f"one of the stages {names} cannot be run again: it draws other random numbers each time; let it draw "
                "from a torch.Generator in an attribute, from torch, random or numpy.random"
            )

    def store(self, action: Store, value: Any, enclosing: Enclosing | None = None) -> DenseSnapshot | FormSnapshot:
        """Return what an activation is kept as."""
        if action.format == "dense" or enclosing:
            return DenseSnapshot(value, enclosing)
        return self.encoding.store(action.index, value, action.format)

    def keep(self, action: Forward | Save | Rebuild, value: Any, enclosing: Enclosing | None = None) -> Keep | None:
        """Return what fills the holders in a run of a stage."""
        if type(action) is Forward:
            return None
        if enclosing:  # [9]
            return partial(KeptElsewhere, enclosing=enclosing)
        if type(action) is Save and action.format != "dense":
            return self.encoding.encoder(action.index, value, action.format)
        return Kept

    def fetch(self, holder: Holder) -> Content:
        """Return what belongs into a holder, to a backward pass."""
        with self.lock:  # [10]
            stage = holder.stage
            if self.busy:
                raise differentiated_within(self.stages[stage].name)
            self.busy = True
            try:
                self.fill(holder)
            finally:
                self.busy = False
            if holder.kept is None:
                raise RecomputeError(f"internal error: a saved tensor of stage {stage} was not rebuilt")
            return holder.kept

    def reach(self, stage: int) -> None:
        """Advance to a stage whose backward begins."""
        with self.lock:  # [10]
            if not self.busy and self.swept and stage < self.ready and self.packers[stage].last() >= 0:
                self.busy = True
                try:
                    self.go_on(stage)
                finally:
                    self.busy = False

    def go_on(self, stage: int) -> None:
        """Advance to a stage, in the graph task of now."""
        task = torch._C._current_graph_task_id()
        if task != self.task or task == -1:
            self.follow(task)
        if self.swept:
            self.advance(stage)
        else:
            self.warn(stage)

    def fill(self, holder: Holder) -> None:
        """Fill a holder that is empty, or whose stage's turn it is."""
        stage = holder.stage
        if stage < self.ready:
            self.go_on(stage)
        if holder.kept is None:
            self.recover(stage)

    def follow(self, task: int) -> None:
        """Follow the schedule for a graph task, all of which runs under the same modes."""
        self.task = task
        settings = self.modes, self.user_modes, self.module_hooks
        self.entered = [setting for setting in settings if not setting.active()]

    def recover(self, stage: int) -> None:
        """Fill the holders of a stage that the schedule has passed."""
        task = torch._C._current_graph_task_id()
        self.warn(stage)
        if task != self.task or task == -1:
            self.restart()
            self.follow(task)
            self.advance(stage)
        else:
            self.refill_alone(stage)

    def warn(self, stage: int) -> None:
        """Say once that the budget was made for another order of backward."""
        if not self.habits.warned:
            self.habits.warned = True
            reason = (
                f"backward asked again for stage {self.stages[stage].name!r}, which the plan was done with (a second "
                "backward, a part of the graph, another order)"
            )
            if not self.swept:
                missing = self.stages[self.left].name
                reason = f"the model did not run stage {missing!r} on the output of the one before, as the plan has it"
            message = f"{reason}; gradients are right, but time and memory may exceed the plan's"
            warnings.warn(message, BudgetWarning, stacklevel=2)

    def restart(self) -> None:
        """Begin the schedule anew, from x_0 [5]."""
        for packer in self.packers:
            packer.empty()
        self.snapshots = {0: self.snapshots[0]}
        self.actions = self.program.whole
        self.position = 0
        self.ready = len(self.stages)

    def advance(self, stage: int) -> None:
        """Perform actions up to the backward of a stage; after a failure the schedule begins anew [10]."""
        actions, position, cursor = self.actions, self.position, None
        try:
            with Replay(self.entered) as replay:
                if actions is self.program.whole and not position:
                    cursor = self.snapshots[0].load()
                while True:
                    action = actions[position]
                    if type(action) is Backward:
                        if action.index == stage:
                            self.ready, self.position = stage, position
                            return
                        cursor = None
                        self.packers[action.index].empty()  # [4]
                    elif type(action) is Load:
                        cursor = self.snapshots[action.index].load()
                    elif type(action) is Drop:
                        del self.snapshots[action.index]
                    elif type(action) is Store:
                        self.snapshots[action.index] = self.store(action, cursor)
                    elif isinstance(action, (Forward, Save, Rebuild)):
                        cursor = self.run_again(action, cursor, replay)
                    position += 1
        except BaseException:
            self.restart()
            raise

    def refill_alone(self, stage: int) -> None:
        """Fill the holders of one stage from the nearest stored activation [6]."""
        nearest = max(index for index in self.snapshots if index <= stage)
        cursor = self.snapshots[nearest].load()
        with Replay(self.entered) as replay:
            for index in range(nearest, stage):
                cursor = self.run_again(Forward(index), cursor, replay)
            self.run_again(Rebuild(stage), cursor, replay)

    def run_again(self, action: Forward | Save | Rebuild, value: Any, replay: Replay) -> Any:
        """Run a stage again; return the new cursor, detached, None after a rebuild."""
        index = action.index
        stage, state, packer = self.stages[index], self.states[index], self.packers[index]
        rebuild, stop = type(action) is Rebuild, -1
        if rebuild:
            last = packer.last()
            if last < 0:
                return None
            if self.program.stops[index] and stage.stops_early and not state.late and last == len(packer.holders) - 1:
                stop = last
        if state.random:
            replay.draw(state.random)
        keep = Kept if rebuild else self.keep(action, value)
        if stage.units:
            with gathered_for(stage.units):
                output = self.run_into(packer, state, value, keep, stop)
        else:
            output = self.run_into(packer, state, value, keep, stop)
        return None if rebuild else cut(output)

    def run_into(self, packer: Packer, state: StageState, value: Any, keep: Keep | None, stop: int) -> Any:
        """Run a stage in the state of its first run, into its holders; return its output, None if stopped early."""
        with state:
            try:
                with Refilling(packer, keep, state.temporary, stop) as refilling:
                    output = state.stage(value)
            except StopRebuild:
                state.clear_up()
                self.clear_up()
                return None
            refilling.check()
            if isinstance(keep, Encoder):
                keep.finish(output, packer.live())
            return output

    def clear_up(self) -> None:
        """Put back modes and hooks that a stage had set for a while when it was stopped."""
        if not self.modes.present():
            self.modes.put_back()
        if not self.module_hooks.active():
            self.module_hooks.put_back()
