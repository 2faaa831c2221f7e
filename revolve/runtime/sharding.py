"""Stages whose parameters are sharded by FSDP2 (``fully_shard``): gathered for every run, and given back."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["gathered_for", "units_of"]


def units_of(modules: Iterable[nn.Module]) -> tuple[Any, ...]:
    """Return the modules that ``fully_shard`` was called on."""
    api = sys.modules.get("torch.distributed.fsdp")
    return () if api is None else tuple(module for module in modules if isinstance(module, api.FSDPModule))


def is_sharded(unit: Any) -> bool:
    """Whether the parameters of a unit are spread over the processes now."""
    return not all(group.is_unsharded for group in unit._get_fsdp_state()._fsdp_param_groups)


@contextmanager
def gathered_for(units: Sequence[Any]) -> Iterator[None]:
    """Give the parameters back that running a stage in a backward gathers.

    FSDP gives parameters back after a forward, but not in a backward, where it takes every forward for one whose
    own backward follows at once.
    """
    sharded = [unit for unit in units if is_sharded(unit)]
    try:
        yield
    finally:
        for unit in sharded:
            unit.reshard()
