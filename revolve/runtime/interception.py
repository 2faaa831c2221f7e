"""Runs the stages of a plan where the model itself calls them, anywhere inside of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any
from warnings import warn
from weakref import WeakKeyDictionary

import torch
from torch import nn

from revolve.schedules.chain import Chain
from revolve.schedules.plans import Plan
from revolve.storage.boundary import bytes_of, tensors_of
from revolve.storage.dense import Enclosing

from .exceptions import BudgetWarning, PlanMismatch
from .executor import Run
from .following import Follower, Forward, ModuleReference, StandIn
from .program import Program
from .refusals import check_surroundings
from .runner import abstract
from .samples import Arguments
from .scouting import scout
from .sharding import agreed, refuse_flat, units_of, units_with
from .situations import Situation, describe_input
from .stages import StageModule
from .state import Habits
from .tracks import Passed
from .trails import PlannedTrail

__all__ = ["PlannedChain", "chain_of", "remember_sample", "run_plainly"]


# The stages of models, which refer to modules that refer to their plan: kept apart, so that there is no cycle.
KNOWN: WeakKeyDictionary[nn.Module, dict[tuple[str, ...], KnownStages]] = WeakKeyDictionary()

# Shapes of the samples that models were measured with, by the names of the stages and the first one's input bytes.
SAMPLES: WeakKeyDictionary[nn.Module, dict[tuple[tuple[str, ...], int], Shapes]] = WeakKeyDictionary()

# What passes between their stages, by the names of these.
PASSED: WeakKeyDictionary[nn.Module, dict[tuple[str, ...], list[Passed]]] = WeakKeyDictionary()

# Calls that are planned for at most; then the least recently used one is forgotten.
CACHE_SIZE = 16

PlanAgain = Callable[[nn.Module, Plan, Arguments], Plan]
Shapes = tuple[torch.Size, ...]


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
    model
        The model.
    """

    def __init__(self, names: Sequence[str], modules: Sequence[tuple[nn.Module, ...]], model: nn.Module) -> None:
        self.stages = [StageModule(name, called) for name, called in zip(names, modules, strict=True)]
        refuse_flat(model)
        self.units = units_of(model.modules())
        for stage in self.stages:
            stops = set(units_of(stage.modules)) <= set(stage.functions)  # the hooks of those are not run again
            units = units_with(model, stage.modules)
            stage.__dict__.update(units=units, stops_early=stops, owner=ModuleReference(model))
        inside = dict.fromkeys(module for stage in self.stages for module in stage.modules)
        self.tables = [(module._modules, list(module._modules.values())) for module in inside]

    def valid(self, model: nn.Module) -> bool:
        """Whether the stages still consist of the same modules, and the same ones are sharded."""
        same = self.units == units_of(model.modules())
        return same and all(list(table.values()) == modules for table, modules in self.tables)


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
    plan_again
        Measures the model with the arguments of a call, and plans for it within the budget of a plan.

    Raises
    ------
    PlanMismatch
        If the plan was made for another model.
    """

    def __init__(self, model: nn.Module, plan: Plan, plan_again: PlanAgain) -> None:
        modules = dict(model.named_modules())
        self.names = tuple(stage.name for stage in plan.chain.stages)
        self.paths = [find_paths(modules, name) for name in self.names]
        called = [modules[path] for paths in self.paths for path in paths]
        super().__init__(model, called)
        KNOWN.get(model, {}).pop(self.names, None)
        self.plan = plan
        self.plan_again = plan_again
        self.owner = ModuleReference(model)
        self.program = Program.from_plan(plan)
        self.habits = Habits(len(self.names))
        self.runs: Callable[..., Run] = Run
        self.shapes = SAMPLES.get(model, {}).get(
            (self.names, plan.chain.input_bytes)
        )  # of the sample, where it is known
        self.passed = [*PASSED.get(model, {}).get(self.names, ())]  # nothing where it is not known
        self.scouted = False  # it was looked for
        self.fitting: list[Situation] = []  # calls of the model that the plan serves
        self.bound = False  # one of them takes as much as the plan was made for
        self.larger: set[Situation] = set()  # calls that take more
        self.present: Situation | None = None  # the call that is going on
        self.others: OrderedDict[Situation, PlannedChain] = OrderedDict()
        self.warned = False
        self.known: KnownStages | None = None  # where parameters are sharded
        self.agreed = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "known": None}

    def stages(self) -> list[StageModule]:
        """Return the stages, anew when modules inside have been replaced; none where the model is gone."""
        owner = self.owner()
        modules = [module for reference in self.modules if (module := reference()) is not None]
        if owner is None or len(modules) < len(self.modules):
            return []
        table = KNOWN.setdefault(owner, {})
        known = self.known or table.get(self.names)
        if known is None or not known.valid(owner):
            waiting = iter(modules)
            known = KnownStages(self.names, [tuple(islice(waiting, len(p))) for p in self.paths], owner)
            table[self.names] = known
            self.known = table.pop(self.names) if known.units else None  # every sharded module refers to the model
        return known.stages

    def planned_stages(self, arguments: Arguments) -> list[StageModule]:
        """Return the stages where a call is to be planned: in training, in grad mode, on tensors with values."""
        stages = self.stages() if torch.is_grad_enabled() and not abstract(arguments) else []
        if not any(module.training for stage in stages for module in stage.modules):
            return []
        self.agree([unit for stage in stages for unit in stage.units])
        return stages

    def agree(self, units: Sequence[Any]) -> None:
        """Follow the plan that all processes follow which parameters are sharded over."""
        if units and not self.agreed:
            self.agreed = True
            self.plan = agreed(self.plan, units)
            self.program = Program.from_plan(self.plan)

    def enclose(self, module: nn.Module, forward: Forward, arguments: Arguments) -> Any:
        """Run a module that has stages inside; the model itself by another plan, where this one does not serve."""
        asking = self.plan.budget is not None or self.program.formats
        if module is not self.owner() or not asking or self.scope() is not None:
            return super().enclose(module, forward, arguments)
        situation, other = self.find_other(module, arguments)
        if other is not None:
            with self.resting(), other.following():
                return Follower.enclose(other, module, forward, arguments)
        if situation is not None:
            self.look_ahead(module, arguments)
        self.present = situation
        try:
            return super().enclose(module, forward, arguments)
        finally:
            self.present = None

    def look_ahead(self, model: nn.Module, arguments: Arguments) -> None:
        """Find out what passes between the stages, before a first call whose plan has to know; not of sharded ones."""
        if not self.program.formats or self.passed or self.scouted or self.known is not None:
            return
        self.scouted = True
        called = [module for reference in self.modules if (module := reference()) is not None]
        with self.resting():
            self.passed += scout(model, called, self.paths, arguments)

    def find_other(self, model: nn.Module, arguments: Arguments) -> tuple[Situation | None, PlannedChain | None]:
        """Return what a call is like, where it is to be planned, and what runs it instead, where this plan does not."""
        stages = self.planned_stages(arguments)
        situation = Situation.current(stages, arguments) if stages else None
        return situation, None if situation is None else self.choose(model, situation, arguments)

    def plan_for(self, model: nn.Module, arguments: Arguments) -> Plan:
        """Return the plan that a call runs by; where there is none yet it is made."""
        _, other = self.find_other(model, arguments)
        return self.plan if other is None else other.plan

    def choose(self, model: nn.Module, situation: Situation, arguments: Arguments) -> PlannedChain | None:
        """Return what runs a call instead; None where this plan serves it, or where that will only be seen.

        Where tensors were nearly as dense as a plan has room for, its next call is planned for anew.
        """
        known = self.bound or situation in self.larger or not self.within(situation)
        sharded = self.known is not None  # cannot be measured
        fits = not self.habits.strained and (not known or self.serves(situation))
        if self.plan.budget is None or sharded or fits:
            return None
        if situation not in self.others or self.others[situation].habits.strained:
            with self.resting():
                plan = self.plan_again(model, self.plan, arguments)
            self.others[situation] = PlannedChain(model, plan, self.plan_again)
            if len(self.others) > CACHE_SIZE:
                self.others.popitem(last=False)
        self.others.move_to_end(situation)
        return self.others[situation]

    def serves(self, situation: Situation) -> bool:
        """Whether the plan was seen to serve such a call, or a larger one."""
        return any(other.covers(situation) for other in self.fitting)

    def within(self, situation: Situation) -> bool:
        """Whether a call may be no larger than the sample; also where that is not known."""
        if self.shapes is None or len(self.shapes) != len(situation.shapes):
            return True
        pairs = [*zip(self.shapes, situation.shapes, strict=True)]
        return all(len(a) == len(b) and all(x >= y for x, y in zip(a, b, strict=True)) for a, b in pairs)

    def begin(self, arguments: Arguments) -> PlannedTrail | None:
        """Begin a run."""
        stages = self.planned_stages(arguments)
        if not stages:
            return None
        check_surroundings(module for stage in stages for module in stage.modules)
        self.compare(arguments)
        return PlannedTrail(stages, self.paths, self.program, self.habits, arguments, self.passed, self.runs)

    def compare(self, arguments: Arguments) -> None:
        """Find out whether a call fits the plan: by what the first stage takes, which is all that a plan knows."""
        present = self.present
        if self.plan.budget is None or (present is not None and self.serves(present)):
            return
        main = [tensor for tensor in tensors_of(arguments) if tensor.requires_grad] or tensors_of(arguments)[:1]
        size = min(bytes_of(main), sum(tensor.numel() * tensor.element_size() for tensor in main))  # a view is no more
        if size <= self.plan.chain.input_bytes and (present is None or self.within(present)):
            if present is not None:
                smaller = [other for other in self.fitting if present.covers(other)]
                self.fitting = [*(other for other in self.fitting if other not in smaller), present][-CACHE_SIZE:]
                self.bound |= size == self.plan.chain.input_bytes
            return
        self.larger |= set() if present is None or len(self.larger) > CACHE_SIZE else {present}
        if not self.warned:
            self.warned = True
            warn(
                f"stage {self.plan.chain.stages[0].name!r} is called with {describe_input(arguments)}, more than the "
                "plan was made for; gradients are right, but the budget may not hold: call revolve.checkpointed again "
                "with such a sample",
                BudgetWarning,
                stacklevel=2,
            )

    def goes_on(self, trail: Any) -> bool:
        """Whether the modes are still those of the run's beginning, and no call has failed."""
        run = trail.run
        same = run.modes.present() and Enclosing.current() == run.enclosing
        return torch.is_grad_enabled() and same and not trail.failed


def remember_sample(model: nn.Module, chain: Chain, arguments: Arguments, passed: Sequence[Passed]) -> None:
    """Remember what a model was measured with, and what was seen to pass between its stages, for plans on it.

    A chain tells only the bytes of its first input.
    """
    names = tuple(stage.name for stage in chain.stages)
    SAMPLES.setdefault(model, {})[names, chain.input_bytes] = tuple(tensor.shape for tensor in tensors_of(arguments))
    PASSED.setdefault(model, {})[names] = [*passed]


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
