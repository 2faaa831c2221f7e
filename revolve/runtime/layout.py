"""The stages of a model, kept from call to call for as long as its modules stay the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from .stages import StageModule, is_special, match_stages

__all__ = ["Layout"]


class Layout:
    """Stages matched to the names in a plan, and what must not change for them to stay valid.

    Parameters
    ----------
    children
        A model's table of children.
    names
        Names of the plan's stages.
    """

    def __init__(self, children: Mapping[str, nn.Module | None], names: Sequence[str]) -> None:
        self.stages: list[StageModule] = match_stages(children, names)
        inside = dict.fromkeys(module for stage in self.stages for module in stage.modules)
        self.flattened = [module for module in containers(children) if module not in inside]
        tables: list[Mapping[str, Any]] = [children, *(module._modules for module in (*self.flattened, *inside))]
        self.tables = [(table, list(table.values())) for table in tables if table]
        self.empty = [table for table in tables if not table]

    def valid(self) -> bool:
        """Whether the model still consists of the same modules, and its containers do nothing of their own."""
        if any(self.empty) or any(list(table.values()) != modules for table, modules in self.tables):
            return False
        return not any(map(is_special, self.flattened))


def containers(children: Mapping[str, nn.Module | None]) -> Iterator[nn.Sequential]:
    """Yield the containers among a table of children, and those in them."""
    for child in children.values():
        if isinstance(child, nn.Sequential):
            yield child
            yield from containers(child._modules)
