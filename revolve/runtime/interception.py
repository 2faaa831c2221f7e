"""Runs the stages of a plan where the model itself calls them, anywhere inside of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, islice
from typing import Any
from warnings import warn
from weakref import WeakKeyDictionary

import torch
from torch import nn

from revolve.schedules.plans import Plan
from revolve.storage.boundary import bytes_of, tensors_of, version_of
from revolve.storage.dense import Enclosing

from .exceptions import BudgetWarning, ModelError, PlanMismatch, RecomputeError
from .executor import Run
from .following import Follower, ModuleReference, StandIn
from .modes import Modes
from .parts import PartCall
from .program import Program
from .refusals import check_surroundings
from .runner import abstract
from .samples import Arguments, opaque_leaves
from .situations import Situation, describe_input
from .stages import StageModule
from .state import Habits

__all__ = ["PlannedChain", "chain_of", "run_plainly"]


# The stages of models, which refer to modules that refer to their plan: kept apart, so that there is no cycle.
KNOWN: WeakKeyDictionary[nn.Module, KnownStages] = WeakKeyDictionary()


def find_paths(modules: Mapping[str, nn.Module], name: str) -> list[str]:
    """Return the paths of the modules that a stage is made of.

    Raises
    ------
    PlanMismatch
        If there are no such modules.
    """
    paths: list[str] = []
    pending = ""
    for piece in name.split("+"):
        pending = f"{pending}+{piece}" if pending else piece
        if pending in modules:
            paths.append(pending)
            pending = ""
    if pending:
        raise PlanMismatch(
            f"the plan was made for another model: it has stage {name!r}, and in this {type(modules['']).__name__} "
            f"there is no module {pending!r}; measure and solve this model again"
        )
    return paths


class KnownStages:
    """The stages of a chain, and what must not change for them to stay valid.

    Parameters
    ----------
    names
        Names of the stages.
    modules
        The modules of each.
    """

    def __init__(self, names: Sequence[str], modules: Sequence[tuple[nn.Module, ...]]) -> None:
        self.stages = [StageModule(name, called) for name, called in zip(names, modules, strict=True)]
        inside = dict.fromkeys(module for stage in self.stages for module in stage.modules)
        self.tables = [(module._modules, list(module._modules.values())) for module in inside]

    def valid(self) -> bool:
        """Whether the stages still consist of the same modules."""
        return all(list(table.values()) == modules for table, modules in self.tables)


class PlannedChain(Follower):
    """A plan on a model that calls its stages itself.

    Modules refer to it and it refers to modules weakly, so that it makes no reference cycle; it pickles and
    deep-copies together with the model.

    Parameters
    ----------
    model
        The model.
    plan
        The plan.

    Raises
    ------
    PlanMismatch
        If the plan was made for another model.
    """

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        modules = dict(model.named_modules())
        self.names = [stage.name for stage in plan.chain.stages]
        self.paths = [find_paths(modules, name) for name in self.names]
        called = [modules[path] for paths in self.paths for path in paths]
        super().__init__(called)
        KNOWN.pop(model, None)
        self.plan = plan
        self.owner = ModuleReference(model)
        self.program = Program.from_plan(plan)
        self.habits = Habits(len(self.names))
        self.bound: Situation | None = None
        self.warned: set[Situation] = set()
        self.stand_ins = [StandIn(module, self) for module in dict.fromkeys(called)]

    def put_on(self) -> None:
        """Let the model run by the plan."""
        for stand_in in self.stand_ins:
            stand_in.put_on()

    def take_off(self) -> None:
        """Let the model run plainly."""
        for stand_in in reversed(self.stand_ins):
            stand_in.take_off()

    def stages(self) -> list[StageModule]:
        """Return the stages, anew when modules inside have been replaced; none where the model is gone."""
        owner = self.owner()
        modules = [module for reference in self.modules if (module := reference()) is not None]
        if owner is None or len(modules) < len(self.modules):
            return []
        known = KNOWN.get(owner)
        if known is None or not known.valid():
            waiting = iter(modules)
            known = KNOWN[owner] = KnownStages(self.names, [tuple(islice(waiting, len(p))) for p in self.paths])
        return known.stages

    def begin(self, arguments: Arguments) -> PlannedTrail | None:
        """Begin a run where it is to be planned: in training, in grad mode, on tensors with values."""
        stages = self.stages() if torch.is_grad_enabled() and not abstract(arguments) else []
        if not any(module.training for stage in stages for module in stage.modules):
            return None
        check_surroundings(module for stage in stages for module in stage.modules)
        sharded = next((stage.name for stage in stages if stage.units), None)
        if sharded is not None:
            raise ModelError(
                f"the parameters of stage {sharded!r} are sharded by fully_shard, which works for plans of an "
                "nn.Sequential only; write the model as one, or call revolve.restore(model)"
            )
        self.compare(Situation.current(stages, arguments), arguments)
        return PlannedTrail(self, stages)

    def compare(self, situation: Situation, arguments: Arguments) -> None:
        """Warn of a call that the plan was not made for."""
        if self.plan.budget is None or situation in self.warned:
            return
        main = [tensor for tensor in tensors_of(arguments) if tensor.requires_grad] or tensors_of(arguments)[:1]
        size = min(bytes_of(main), sum(tensor.numel() * tensor.element_size() for tensor in main))  # a view is no more
        if self.bound is None and size == self.plan.chain.input_bytes:
            self.bound = situation
        known = size <= self.plan.chain.input_bytes if self.bound is None else self.bound.covers(situation)
        if not known:
            self.warned.add(situation)
            warn(
                f"stage {self.plan.chain.stages[0].name!r} is called with {describe_input(arguments)}, or in other "
                "modes than the plan was made for; gradients are right, but the budget may not hold: call "
                "revolve.checkpointed again with such a sample",
                BudgetWarning,
                stacklevel=2,
            )

    def goes_on(self, trail: Any) -> bool:
        """Whether the modes are still those of the run's beginning."""
        run: Run = trail.run
        same = Modes.current(run.devices) == run.modes and Enclosing.current() == run.enclosing
        return torch.is_grad_enabled() and same


class PlannedTrail:
    """One forward pass by a plan: the model calls the stages, and the run is told of each.

    Parameters
    ----------
    chain
        The chain and its plan.
    stages
        Its stages.
    """

    def __init__(self, chain: PlannedChain, stages: Sequence[StageModule]) -> None:
        self.parts = [PartCall(path) for paths in chain.paths for path in paths]
        sizes = [len(stage.functions) for stage in stages]
        ends = list(accumulate(sizes))
        bounds = zip(stages, ends, sizes, strict=True)
        self.stages = [stage.as_called(tuple(self.parts[end - size : end])) for stage, end, size in bounds]
        self.first, self.last = {end - size for end, size in zip(ends, sizes, strict=True)}, {end - 1 for end in ends}
        self.run = Run(self.stages, chain.program, chain.habits)
        self.position = 0
        self.between: tuple[Any, ...] = ()  # states of the generators where a stage goes on

    def call(self, forward: Callable[..., Any], arguments: Arguments, linked: Mapping[int, int]) -> Any:
        """Make the next call, as part of a stage's first run."""
        run, number = self.run, self.position
        part = self.parts[number]
        opaque = next(opaque_leaves(arguments), None)
        if opaque is not None:
            raise ModelError(
                f"stage {part.name!r} is called with a {type(opaque).__name__}, which it may change, so that it could "
                "not be run again; pass use_cache=False if that is a cache, or call revolve.restore(model)"
            )
        value, picks = part.bind(forward, arguments, linked)
        if number:
            self.parts[number - 1].picks = picks
        stage = self.stages[len(run.states) - (number not in self.first)]
        stage.add_loose(part.side)
        if number in self.first:
            if not number:
                run.begin(value, apart=True)
            run.watching.look()
            self.value, self.entered = value, run.enter(value)
        else:
            self.entered.state.loose += map(version_of, part.side)
            if run.watching.random.read() != self.between:
                raise RecomputeError(f"random numbers are drawn before {part.name!r}, in the middle of a stage")
        with self.entered.hooks:
            output = forward(*arguments[0], **arguments[1])
        if number in self.last:
            run.leave(self.entered, self.value, output)
            del self.value, self.entered
        else:
            self.between = run.watching.random.read()
        self.position += 1
        if self.position == len(self.parts):
            run.finish(None)
        return output


def chain_of(model: nn.Module) -> PlannedChain | None:
    """Return what runs a model by its plan, None if nothing does."""
    for module in model.modules():
        stand_in = vars(module).get("forward")
        while isinstance(stand_in, StandIn):
            follower = stand_in.follower
            if isinstance(follower, PlannedChain) and follower.owner() is model:
                return follower
            stand_in = stand_in.present
    return None


def run_plainly(model: nn.Module) -> None:
    """Take a model's plan off where the model is isolated, which puts it back."""
    chain = chain_of(model)
    if chain is not None:
        chain.take_off()
