"""Puts a plan on a model, at the instance level, and takes it back."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

from torch import nn

from revolve.schedules.exceptions import InfeasibleBudget
from revolve.schedules.plans import Plan
from revolve.schedules.units import parse_bytes

from .exceptions import ModelError, PlanMismatch
from .fitting import fit
from .interception import PlannedChain, chain_of
from .memory import free_bytes
from .profiling import measure, rehearse_plan
from .runner import Runner, with_loss_of
from .samples import Arguments, GivenCall
from .situations import describe_input
from .stages import check_model, is_plain_sequential, match_stages

__all__ = ["Instrument", "checkpointed", "fitting_plan", "instrument_of", "plan_of", "put_on", "restore", "take_off"]

Model = TypeVar("Model", bound=nn.Module)
Instrument = Runner | PlannedChain

# Plans that cover plain training leave no trace on the model itself, so they are remembered here.
PLAIN_PLANS: weakref.WeakKeyDictionary[nn.Module, Plan] = weakref.WeakKeyDictionary()


def checkpointed(
    model: Model,
    plan: Plan | None = None,
    *,
    sample: Any = None,
    budget: int | str | None = None,
    loss: Any = None,
    formats: Sequence[str] = ("dense",),
) -> Model:
    """Let a model train by a plan; outputs, gradients, buffers and random numbers stay bit-identical.

    Parameters
    ----------
    model
        Any module. Only this instance and its modules' change: classes, parameter names, state_dict and
        hooks stay as they are, and it can be pickled and deep-copied.
    plan
        A plan for this model, from ``solve(measure(model, sample)).plan(budget)`` or ``Plan.load``.
    sample, budget, loss
        Instead of a plan: measure with this input (and loss), and solve for this budget, in bytes or
        as a string such as ``"2GiB"`` or ``"80%"`` of what the device has free.
    formats
        Storage formats that the plan may keep checkpoints and saved tensors in, such as ``("dense", "bitmap")``;
        with those that are lossy (``"bf16"``, ``"int8"``, ``"int4"``) gradients are no longer bit-identical.

    Returns
    -------
    nn.Module
        The same object.

    Raises
    ------
    InfeasibleBudget
        If the budget is below the least feasible one.
    PlanMismatch
        If the plan was made for another model.
    ModelError, MeasurementError
        If the model cannot be cut into stages or measured.

    Notes
    -----
    In eval mode, under ``torch.no_grad()``, and with a plan that covers plain training, the model
    runs untouched. A call that looks otherwise than the measured one (shapes, dtypes, training flags, frozen
    parameters, autocast) is measured and planned for within the same budget when it comes for the first time;
    where the budget is too small for it, that is an InfeasibleBudget. A plan without a budget serves every call.
    """
    check_model(model)
    if plan is None:
        if sample is None or budget is None:
            raise PlanMismatch("checkpointed(model) needs a plan, or both sample= and budget=")
        limit = parse_bytes(budget, free_bytes(model))
        plan = fitting_plan(model, sample, limit, loss, formats)
    elif sample is not None or budget is not None or loss is not None or formats != ("dense",):
        raise PlanMismatch("checkpointed(model, plan) takes a plan, or sample=, budget= and formats=, not both")
    if not isinstance(plan, Plan):
        raise PlanMismatch(f"the plan is a {type(plan).__name__}; pass a revolve.Plan (Plan.load(path) reads a file)")
    instrument = make_instrument(model, plan)
    restore(model)
    if plan.plain:
        PLAIN_PLANS[model] = plan
    else:
        put_on(model, instrument)
    return model


def fitting_plan(model: nn.Module, sample: Any, budget: int, loss: Any = None, formats: Sequence[str] = ()) -> Plan:
    """Measure a model, and return a plan for a budget in bytes that was seen to keep it with the sample.

    Raises
    ------
    InfeasibleBudget, ModelError, MeasurementError
        As :func:`checkpointed`.
    """
    chain = measure(model, sample, loss, formats=formats)
    return fit(chain, formats, budget, partial(rehearse_plan, model, sample, loss=loss))


def make_instrument(model: nn.Module, plan: Plan) -> Instrument:
    """Return what lets a model train by a plan."""
    if not is_plain_sequential(model):
        return PlannedChain(model, plan, plan_again)
    match_stages(model._modules, [stage.name for stage in plan.chain.stages])
    present = model.__dict__.get("forward")
    if present is not None and not isinstance(present, Runner):
        raise ModelError("the model's forward has been replaced on the instance by something else; undo that first")
    return Runner(model._modules, plan)


def plan_again(model: nn.Module, given: Plan, arguments: Arguments) -> Plan:
    """Measure a model with the arguments of a call, and plan within the budget of a plan.

    Raises
    ------
    InfeasibleBudget
        If that cannot be done; the message names the arguments.
    """
    assert given.budget is not None
    formats, sample = tuple(given.chain.formats), GivenCall(*arguments)
    chain = with_loss_of(given.chain, measure(model, sample, formats=formats))
    try:
        return fit(chain, formats, given.budget, partial(rehearse_plan, model, sample))
    except InfeasibleBudget as error:
        error.add_note(
            f"the model was planned for another call, and called with {describe_input(arguments)}; call it with "
            "smaller inputs, or plan with a larger budget"
        )
        raise


def instrument_of(model: nn.Module) -> Instrument | None:
    """Return what lets a model train by a plan, if anything does."""
    if not is_plain_sequential(model):
        return chain_of(model)
    forward = model.__dict__.get("forward")
    return forward if isinstance(forward, Runner) else None


def put_on(model: nn.Module, instrument: Instrument) -> None:
    """Let a model train by a plan."""
    if isinstance(instrument, Runner):
        model.__dict__["forward"] = instrument
    else:
        instrument.put_on()


def take_off(model: nn.Module, instrument: Instrument) -> None:
    """Let a model train plainly."""
    if isinstance(instrument, Runner):
        model.__dict__.pop("forward", None)
    else:
        instrument.take_off()


def restore(model: Model) -> Model:
    """Take a plan off a model again; does nothing to a model without one.

    Returns
    -------
    nn.Module
        The same object.

    Raises
    ------
    ModelError
        If it is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}; pass the nn.Module that was planned for")
    PLAIN_PLANS.pop(model, None)
    instrument = instrument_of(model)
    if instrument is not None:
        take_off(model, instrument)
    return model


def plan_of(model: nn.Module) -> Plan | None:
    """Return the plan that a model trains by, or None."""
    instrument = instrument_of(model)
    return PLAIN_PLANS.get(model) if instrument is None else instrument.plan
