"""Forward hooks of modules, and those of all modules: a stage is run again with those of its first run."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.nn.modules import module as shared
from torch.utils.hooks import RemovableHandle

from .stages import StageModule

__all__ = ["ModuleHooks"]

NAMES = (
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)

# The tables of hooks that are registered for all modules: torch changes them in place.
GLOBAL: tuple[dict[int, Any], ...] = (
    shared._global_forward_hooks,
    shared._global_forward_hooks_always_called,
    shared._global_forward_hooks_with_kwargs,
    shared._global_forward_pre_hooks,
)

Items = list[tuple[int, Any]]


class ModuleHooks:
    """The hooks of some modules at one moment.

    Registering any hook, also one of a tensor, raises a counter of torch's, so that it costs next to nothing to see
    that there is none more; that there is none less is seen by those that there are, mostly none.

    Parameters
    ----------
    modules
        The modules.

    Attributes
    ----------
    count
        Of the hooks that were registered ever, when these were last seen to be all.
    """

    __slots__ = ("count", "entries", "tables")

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.count = RemovableHandle.next_id
        own = (vars(module).get(name) for module in modules for name in NAMES)
        self.tables = [*GLOBAL, *(table for table in own if table is not None)]
        self.entries = {id(table): (table, list(table.items())) for table in self.tables if table}

    @classmethod
    def current(cls, stages: Iterable[StageModule]) -> ModuleHooks:
        """Read the hooks of a chain's stages; what was last read is kept by the first."""
        stages = list(stages)
        known = stages[0].known
        if known.hooks is None or not known.hooks.active():
            known.hooks = cls(dict.fromkeys(module for stage in stages for module in stage.modules))
        return known.hooks

    def active(self) -> bool:
        """Whether these are the hooks of now."""
        if self.entries and any(list(table.items()) != items for table, items in self.entries.values()):
            return False
        if self.count != RemovableHandle.next_id:
            if self.others():
                return False
            self.count = RemovableHandle.next_id
        return True

    def others(self) -> list[tuple[dict[int, Any], Items]]:
        """Return the tables that hold other hooks now, each with what it held."""
        known = [table for table in self.tables if table or id(table) in self.entries]
        held = [(table, self.entries[id(table)][1] if id(table) in self.entries else []) for table in known]
        return [(table, items) for table, items in held if list(table.items()) != items]

    def put_back(self) -> None:
        """Let these be the hooks again."""
        for table, items in self.others():
            put(table, items)

    def enter(self, stack: ExitStack) -> None:
        """Let these be the hooks until ``stack`` closes."""
        for table, items in self.others():
            stack.callback(put, table, list(table.items()))
            put(table, items)


def put(table: dict[int, Any], items: Items) -> None:
    """Set what a table holds."""
    table.clear()
    table.update(items)
