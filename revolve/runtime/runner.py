"""Runs a model by its plan, and plans again for calls that look otherwise than the measured one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from revolve.schedules.chain import Chain
from revolve.schedules.exceptions import InfeasibleBudget
from revolve.schedules.plans import Plan, with_carried
from revolve.storage.boundary import tensors_of

from .executor import Run
from .fitting import fit
from .layout import Layout
from .likeness import Likeness, uncompiled
from .measurement import bytes_seen, measure_children, rehearse_children
from .program import Program
from .refusals import check_surroundings
from .samples import Arguments
from .sharding import agreed
from .situations import Situation, describe_input
from .state import Habits

__all__ = ["Planned", "Runner"]

# Calls that are planned for at most; then the least recently used one is forgotten, unless a plan for
# larger inputs serves.
CACHE_SIZE = 16


class Planned:
    """A plan, and what was learned while it was executed.

    Parameters
    ----------
    plan
        The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.program = Program.from_plan(plan)
        self.names = [stage.name for stage in plan.chain.stages]
        self.habits = Habits(len(self.names))
        self.layout: Layout | None = None

    def stages(self, children: Mapping[str, nn.Module | None]) -> Layout:
        """Return the stages of the plan, anew when modules have been replaced."""
        if self.layout is None or not self.layout.valid():
            self.layout = Layout(children, self.names)
        return self.layout

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "layout": None}


class Runner(Likeness):
    """Stands in for the ``forward`` of one model instance.

    It refers to the model's children, not to the model, so that it makes no reference cycle and
    pickles and deep-copies together with it.

    Parameters
    ----------
    children
        The model's own table of children.
    plan
        The plan to execute. Calls that look otherwise than the first one of the measured size are measured
        and planned for, within its budget; without a budget it serves every call.
    """

    def __init__(self, children: Mapping[str, nn.Module | None], plan: Plan) -> None:
        self.children = children
        self.given = Planned(plan)
        self.bound = False
        self.planned: OrderedDict[Situation, Planned] = OrderedDict()
        self.agreed = False

    @property
    def plan(self) -> Plan:
        """Return the plan that was given."""
        return self.given.plan

    def likeness(self) -> Callable[..., Any]:
        """Return the forward of an nn.Sequential."""
        return nn.Sequential().forward

    @uncompiled
    def __call__(self, input: Any) -> Any:
        """Run the model: by a plan in training, untouched in eval mode, under no_grad and where nothing is computed."""
        children = [child for child in self.children.values() if child is not None]
        if torch.is_grad_enabled() and any(child.training for child in children) and not abstract(input):
            check_surroundings(module for child in children for module in child.modules())
            planned = self.choose(input)
            if not planned.program.plain:
                return Run(planned.stages(self.children).stages, planned.program, planned.habits).forward(input)
        for child in children:
            input = child(input)
        return input

    def plan_for(self, model: nn.Module, arguments: Arguments) -> Plan:
        """Return the plan that a call runs by; where there is none yet it is made."""
        return self.choose(arguments[0][0]).plan

    def choose(self, input: Any) -> Planned:
        """Return the plan for a call, from earlier calls if there is one."""
        stages = self.given.stages(self.children).stages
        self.agree([unit for stage in stages for unit in stage.units])
        if self.plan.budget is None:
            return self.given
        situation = Situation.current(stages, input)
        known = situation if situation in self.planned else self.covering(situation)
        if known is not None and self.planned[known].habits.strained:  # as dense as the plan has room for
            del self.planned[known]
            self.planned[situation] = Planned(self.plan_again(input))
            return self.planned[situation]
        if known is None:
            self.planned[situation] = self.find(input)
            while len(self.planned) > CACHE_SIZE:
                self.planned.popitem(last=False)
            return self.planned[situation]
        self.planned.move_to_end(known)
        return self.planned[known]

    def agree(self, units: Sequence[Any]) -> None:
        """Follow the plan that all processes follow which parameters are sharded over."""
        if units and not self.agreed:
            self.agreed = True
            plan = agreed(self.plan, units)
            self.given = self.given if plan == self.plan else Planned(plan)

    def covering(self, situation: Situation) -> Situation | None:
        """Return a call with larger inputs that there is a plan for, once there are many plans."""
        if len(self.planned) < CACHE_SIZE:
            return None
        return next((other for other in self.planned if other.covers(situation)), None)

    def find(self, input: Any) -> Planned:
        """Return a plan for a call that there was none of yet."""
        chain = self.plan.chain
        if not self.bound and bytes_seen(input) == chain.input_bytes and requires_grad(input) is chain.input_grad:
            self.bound = True
            return self.given
        return Planned(self.plan_again(input))

    def plan_again(self, input: Any) -> Plan:
        """Measure the stages with another input, and plan within the same budget.

        Raises
        ------
        InfeasibleBudget
            If that cannot be done; the message names the input.
        """
        given = self.plan
        assert given.budget is not None
        formats = tuple(given.chain.formats)
        measured = measure_children(self.children, input, given.chain.name, formats=formats)
        chain = with_loss_of(given.chain, measured)
        try:
            return fit(chain, formats, given.budget, partial(rehearse_children, self.children, input))
        except InfeasibleBudget as error:
            error.add_note(
                f"the model was planned for an input of {given.chain.input_bytes} bytes, and called with "
                f"{describe_input(input)}; call it with smaller inputs, or plan with a larger budget"
            )
            raise


def with_loss_of(given: Chain, measured: Chain) -> Chain:
    """Return a chain with the loss of another one, scaled to its own output."""
    before, now = (chain.activation_bytes(len(chain)) for chain in (given, measured))
    scale = max(1.0, now / before) if before else 1.0
    extra = max(int(given.loss_extra * scale), measured.loss_extra)
    chain = replace(measured, loss_time=given.loss_time * scale, loss_extra=extra)
    return with_carried(chain, with_loss_of(given.carried or given, measured.carried)) if measured.carried else chain


def requires_grad(value: Any) -> bool:
    """Whether a boundary has a tensor that requires a gradient."""
    return any(tensor.requires_grad for tensor in tensors_of(value))


def abstract(value: Any) -> bool:
    """Whether nothing is trained: an input only has shapes, as in the dry runs of pipelines, or torch.jit traces."""
    fake = torch._subclasses.FakeTensor
    return torch._C._is_tracing() or any(t.is_meta or isinstance(t, fake) for t in tensors_of(value))
