"""Plans for a module when it is first called in training: with that call's arguments, device and modes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from revolve.runtime.exceptions import MeasurementError, ModelError
from revolve.runtime.following import StandIn
from revolve.runtime.instrumentation import checkpointed, fitting_plan
from revolve.runtime.linearization import linearize
from revolve.runtime.memory import free_bytes
from revolve.runtime.samples import Arguments
from revolve.runtime.stages import is_plain_sequential
from revolve.schedules.plans import Plan
from revolve.schedules.units import parse_bytes

__all__ = ["FirstCall", "PlannedModule", "plan_module", "sample_of"]

Loss = Callable[[Any], torch.Tensor]


class PlannedModule:
    """What planning for a module gave.

    Attributes
    ----------
    plan
        The plan that the module has.
    coverage
        Share of the bytes that autograd saves in the module which it saves in the plan's stages.
    """

    def __init__(self, plan: Plan, coverage: float) -> None:
        self.plan = plan
        self.coverage = coverage


def plan_module(
    module: nn.Module, sample: Any, budget: int | str, loss: Loss | None = None, formats: Sequence[str] = ()
) -> PlannedModule:
    """Measure a module, solve for a budget, and put the plan on it.

    Parameters
    ----------
    module
        Any module, in training mode.
    sample
        The input, as for :func:`revolve.measure`.
    budget
        Bytes, or a string as ``"2GiB"`` or ``"80%"`` of what the device has free.
    loss, formats
        As for :func:`revolve.measure`.

    Raises
    ------
    InfeasibleBudget
        If the budget is below the least feasible one.
    ModelError, MeasurementError
        If the module cannot be cut into stages or measured.
    """
    limit = parse_bytes(budget, free_bytes(module))
    coverage = linearize(module, sample).coverage
    plan = fitting_plan(module, sample, limit, loss, formats)
    checkpointed(module, plan)
    return PlannedModule(plan, coverage)


def sample_of(module: nn.Module, arguments: Arguments) -> Any:
    """Return a sample that stands for the arguments of a call.

    Raises
    ------
    MeasurementError
        If the call has positional and keyword arguments, and the former have no names.
    """
    args, kwargs = arguments
    if is_plain_sequential(module):
        return (*args, *kwargs.values())[0]
    if not args or not kwargs:
        return kwargs or args
    parameters = list(inspect.signature(module.forward).parameters.values())[: len(args)]
    if len(parameters) < len(args) or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters):
        raise MeasurementError(
            f"the {type(module).__name__} is called with {len(args)} positional arguments and {', '.join(kwargs)}, and "
            f"its forward{inspect.signature(module.forward)} has no names for the former; pass all of them by name"
        )
    return {**{p.name: value for p, value in zip(parameters, args, strict=True)}, **kwargs}


class FirstCall:
    """Waits for the first call of a module in training, and lets it be planned for before that call runs.

    Parameters
    ----------
    module
        The module.
    plan_now
        Puts a plan on the module, given the module and a sample that stands for the arguments of the call.

    Raises
    ------
    ModelError
        If the module waits already.

    Notes
    -----
    While it waits it stands in for the ``forward`` of the module, on the instance. A copy of the module made
    meanwhile is not planned for.
    """

    def __init__(self, module: nn.Module, plan_now: Callable[[nn.Module, Any], None]) -> None:
        present = vars(module).get("forward")
        if isinstance(present, StandIn) and isinstance(present.follower, FirstCall):
            present.take_off()
            raise ModelError(
                f"the {type(module).__name__} already waits to be planned for at its first batch; pass one "
                "RevolveCallback"
            )
        self.plan_now: Callable[[nn.Module, Any], None] | None = plan_now
        self.stand_in = StandIn(module, self, "call")
        self.stand_in.put_on()

    def call(self, module: nn.Module, forward: Callable[..., Any], arguments: Arguments) -> Any:
        """Make a call of the module."""
        args, kwargs = arguments
        if self.plan_now is None or not module.training or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        self.give_up()
        self.plan_now(module, sample_of(module, arguments))
        return module.forward(*args, **kwargs)

    def give_up(self) -> None:
        """Wait no longer."""
        self.stand_in.take_off()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "plan_now": None}
