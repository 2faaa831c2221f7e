"""Stages whose parameters are sharded by FSDP2 (``fully_shard``): gathered for every run, and given back."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn

from revolve.schedules.plans import Plan

from .exceptions import ModelError, PlanMismatch

__all__ = ["agreed", "gathered_for", "gathered_parameters", "original", "refuse_flat", "units_of", "units_with"]

# Nodes that pass gradients on: what tells FSDP that those of a unit are done, and what calls a module's backward hooks.
PASSING = ("RegisterPostBackwardFunctionBackward", "BackwardHookFunctionBackward")


def units_of(modules: Iterable[nn.Module]) -> tuple[Any, ...]:
    """Return the modules that ``fully_shard`` was called on; there are none without a process group."""
    api = sys.modules.get("torch.distributed.fsdp")
    if api is None or not (distributed.is_available() and distributed.is_initialized()):
        return ()
    return tuple(module for module in modules if isinstance(module, api.FSDPModule))


def units_with(model: nn.Module, modules: Iterable[nn.Module]) -> tuple[Any, ...]:
    """Return the units of a model that some of its modules may use parameters of: those in them and around them."""
    found = set(modules)
    return tuple(unit for unit in units_of(model.modules()) if not found.isdisjoint(unit.modules()))


def refuse_flat(model: nn.Module) -> None:
    """Refuse a model with modules inside that FSDP's first version is wrapped around.

    Raises
    ------
    ModelError
        If there are any.
    """
    api = sys.modules.get("torch.distributed.fsdp")
    if api is not None and any(isinstance(module, api.FullyShardedDataParallel) for module in model.modules()):
        raise ModelError(
            f"the {type(model).__name__} has modules inside of FullyShardedDataParallel, whose parameters cannot be "
            "gathered to run a single stage again; use fully_shard (FSDP2), or call revolve.restore(model)"
        )


def groups_of(unit: Any) -> list[Any]:
    """Return FSDP's groups of the parameters of a unit, of which older torch has one or none."""
    state = unit._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [state._fsdp_param_group] if state._fsdp_param_group else []


def is_sharded(unit: Any) -> bool:
    """Whether the parameters of a unit are spread over the processes now."""
    return not all(group.is_unsharded for group in groups_of(unit))


def spread_over(units: Iterable[Any]) -> list[Any]:
    """Return FSDP's books of the parameters of some units."""
    return [p for unit in units for group in groups_of(unit) for p in group.fsdp_params]


def gathered_parameters(units: Iterable[Any]) -> list[torch.Tensor]:
    """Return the tensors that parameters are gathered into, empty in between, as far as that has been done."""
    return [p._unsharded_param for p in spread_over(units) if hasattr(p, "_unsharded_param")]


def agreed(plan: Plan, units: Iterable[Any]) -> Plan:
    """Return the plan of least peak among those of the processes that some units are spread over.

    Running a stage again gathers parameters, in which all of them have to take part: they need the same schedule,
    and plans that each process made for itself differ with the times that it measured.

    Raises
    ------
    PlanMismatch
        If they have other stages.
    """
    units = list(dict.fromkeys(units))
    for mesh in dict.fromkeys(p.sharded_param.device_mesh for p in spread_over(units)):
        for group in mesh.get_all_groups():
            plans: list[Any] = [plan] * group.size()
            distributed.all_gather_object(plans, plan, group)
            names = {tuple(stage.name for stage in other.chain.stages) for other in plans}
            if len(names) > 1:
                raise PlanMismatch(
                    f"the processes that parameters are sharded over have plans with other stages: {sorted(names)}; "
                    "measure on one of them, and broadcast its plan"
                )
            plan = min(plans, key=lambda other: other.peak)
    for unit in units:
        with gathered_for([unit]):  # so that what it is gathered into exists, and is known for parameters
            pass
    return plan


@contextmanager
def gathered_for(units: Sequence[Any]) -> Iterator[None]:
    """Gather the parameters that running a stage in a backward needs, and give them back.

    A stage may be called without FSDP's hooks, which belong to a module's call and to the units around it. And they
    give parameters back after a forward, but not in a backward, where FSDP takes every forward for one whose own
    backward follows at once.
    """
    sharded = [unit for unit in units if is_sharded(unit)]
    try:
        for unit in sharded:
            unit.unshard()
        yield
    finally:
        for unit in sharded:
            unit.reshard()


def original(tensor: torch.Tensor, others: Iterable[torch.Tensor | None]) -> torch.Tensor:
    """Return which of some others a tensor is an alias of, made for a hook; the tensor itself if none.

    FSDP calls a unit with aliases of its inputs, by whose place in the graph it learns that its backward is done. A
    module with backward hooks takes and gives aliases, too.
    """
    node, number = tensor.grad_fn, tensor.output_nr
    if node is None or node.name() not in PASSING:
        return tensor
    while node is not None and node.name() in PASSING:
        node, number = node.next_functions[number]
    made = (other for other in others if other is not None and other.grad_fn is node and other.output_nr == number)
    return next(made, tensor)
