"""Runs stages outside the user's training: parameters, gradients, buffers and random numbers untouched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from revolve.storage.boundary import tensors_of, version_of

from .exceptions import MeasurementError
from .generators import FOREIGN, RandomState, default_sources, devices_of
from .stages import StageModule
from .state import same
from .written import Written

__all__ = ["Addition", "Belongings", "find_tied", "gradients_present", "isolated", "leaves_kept", "restore_table"]

STANDARD = frozenset((*vars(nn.Module()), "forward"))  # the rest are attributes of the user's
LEAF_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")  # tables of a tensor
HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("hooks"))  # tables that a forward may register in


@contextmanager
def isolated(stages: Sequence[StageModule], *values: Any) -> Iterator[Belongings]:
    """Let stages run on aliases of their parameters and on copies of their buffers.

    The aliases share the parameters' memory but have no hooks and gradients of their own. When the
    block ends, also by an error, parameters, gradients, hooks, buffers, the modules' other attributes and
    random number generators are those of before.

    Parameters
    ----------
    stages
        The stages.
    *values
        Boundaries whose devices' random number generators are put back, too.

    Yields
    ------
    Belongings
        What the modules have, to be put back before the block ends.
    """
    tensors = [*(t for stage in stages for t in stage.tensors()), *(t for value in values for t in tensors_of(value))]
    owned = [source for stage in stages for source in stage.sources()]
    random = RandomState((*default_sources(devices_of(tensors)), *owned, *FOREIGN))
    modules = dict.fromkeys(module for stage in stages for module in stage.modules)
    with ExitStack() as stack:
        stack.callback(random.write, random.read())
        tables = [(table, dict(table)) for module in modules for table in (module.__dict__, module._buffers)]
        registered = [vars(module).get(name) for module in modules for name in HOOKS]
        tables += [(table, dict(table)) for table in registered if table is not None]
        for module in modules:  # put back last: a forward may register parameters and modules
            stack.callback(restore_table, module._parameters, dict(module._parameters))
            stack.callback(restore_table, module._modules, dict(module._modules))
        aliases: dict[int, nn.Parameter] = {}
        for module in modules:
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    if is_lazy(parameter):
                        raise MeasurementError(
                            f"{type(module).__name__}.{name} is not initialised; run the model once before measuring it"
                        )
                    tied = id(parameter) in aliases
                    alias = aliases.setdefault(
                        id(parameter), nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
                    )
                    stack.callback(setattr, module, name, parameter)
                    setattr(module, name, alias)
                    alias.existing = parameter.grad is not None  # type: ignore[attr-defined]
                    alias.tied = tied  # type: ignore[attr-defined]
        for table, old in tables:  # put back before the parameters, which a module may mirror in its attributes
            stack.callback(restore_table, table, old)
        belongings = Belongings(modules)
        stack.callback(belongings.put_back)
        stack.callback(belongings.written.put_back)
        for tensor in dict.fromkeys(t for stage in stages for t in stage.loose if t.is_leaf and t.requires_grad):
            stack.callback(setattr, tensor, "grad", tensor.grad)
            tensor.grad = None
        buffers = dict.fromkeys(
            buffer for module in modules for buffer in module._buffers.values() if buffer is not None
        )
        for buffer in buffers:
            stack.callback(setattr, buffer, "data", buffer.data)
            buffer.data = buffer.data.clone()
        yield belongings


def restore_table(table: dict[str, Any], values: dict[str, Any]) -> None:
    """Put back what a table held."""
    table.clear()
    table.update(values)


class Addition(NamedTuple):
    """A tensor that a run of a module added to it.

    Attributes
    ----------
    table, key
        Where it is.
    tensor, version
        What it is.
    """

    table: dict[str, Any]
    key: str
    tensor: torch.Tensor
    version: int

    def stays(self) -> bool:
        """Whether later runs have left it alone."""
        return self.table.get(self.key) is self.tensor and version_of(self.tensor) == self.version


class Belongings:
    """What some modules have besides parameters and modules: buffers, and attributes with what these contain.

    Their hooks belong to it: a model that registers some in its first forward notes that in an attribute.

    Parameters
    ----------
    modules
        The modules. What stands in for their ``forward`` is not theirs.

    Attributes
    ----------
    written
        Notes the parameters that a first run changes in place.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        modules = list(modules)
        self.written = Written(p for module in modules for p in module._parameters.values() if p is not None)
        self.buffers = [(module._buffers, dict(module._buffers)) for module in modules]
        tables = [vars(module) for module in modules]
        self.tables = [(table, {k: v for k, v in table.items() if k not in STANDARD}) for table in tables]
        found = {id(value): value for _, values in self.tables for value in values.values()}
        hooks = [table[name] for table in tables for name in HOOKS if table.get(name) is not None]
        containers = [*(value for value in found.values() if type(value) in (list, dict, set)), *hooks]
        self.containers = [(value, copy(value)) for value in containers]
        kinds = (torch.Tensor, list, tuple, dict)
        tensors = [t for value in found.values() if type(value) in kinds for t in tensors_of(value) if has_values(t)]
        self.tensors = [(tensor, tensor.detach().clone()) for tensor in dict.fromkeys(tensors)]

    def additions(self) -> list[Addition]:
        """Return buffers, and tensors in attributes, that there were none of."""
        found = []
        for table, before in (*self.buffers, *self.tables):
            for key, value in table.items():
                if isinstance(value, torch.Tensor) and key not in STANDARD and before.get(key) is None:
                    found.append(Addition(table, key, value, version_of(value)))
        return found

    def put_back(self) -> None:
        """Let buffers be the same objects, and attributes too; these contain what they did, lists and tensors alike."""
        for table, buffers in self.buffers:
            restore_table(table, buffers)
        for table, values in self.tables:
            for key in table.keys() - STANDARD - values.keys():
                del table[key]
            table.update(values)
        for container, entries in self.containers:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(entries)
        with torch.no_grad():
            for tensor, value in self.tensors:
                if not same(tensor, value):
                    tensor.copy_(value)


def has_values(tensor: torch.Tensor) -> bool:
    """Whether a tensor may be changed in place and put back: an ordinary one, outside of any graph."""
    ordinary = type(tensor) is torch.Tensor and tensor.layout is torch.strided and not tensor.is_meta
    return ordinary and tensor.grad_fn is None and not tensor.is_inference() and not tensor.is_nested


@contextmanager
def leaves_kept(result: torch.Tensor, others: Iterable[torch.Tensor] = ()) -> Iterator[None]:
    """Put the gradients of leaves that a result hangs on back at the end; none of their hooks fires in between.

    Those that are no aliases, and not among ``others``: a loss may have parameters of its own, and modules may use
    tensors of the user's.
    """
    kept, known = [], set(map(id, others))
    for leaf in leaves_of(result):
        if not hasattr(leaf, "existing") and id(leaf) not in known:
            tables = [table for name in LEAF_HOOKS if (table := getattr(leaf, name))]
            kept.append((leaf, leaf.grad, [(table, dict(table)) for table in tables]))
            leaf.grad = None
            for table in tables:
                table.clear()
    try:
        yield
    finally:
        for leaf, gradient, entries in kept:
            leaf.grad = gradient
            for table, hooks in entries:
                table.update(hooks)


def leaves_of(result: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the leaves that a result hangs on."""
    seen: set[Any] = set()
    todo: list[Any] = [result.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        if node.name() == "torch::autograd::AccumulateGrad":
            yield node.variable


def find_tied(stages: Sequence[StageModule]) -> None:
    """Mark the aliases that several stages use, each of which may be the same module."""
    users = Counter(id(tensor) for stage in stages for tensor in dict.fromkeys(stage.tensors()))
    for tensor in (tensor for stage in stages for tensor in stage.tensors()):
        if hasattr(tensor, "tied"):
            tensor.tied |= users[id(tensor)] > 1


@contextmanager
def gradients_present(stage: StageModule, later: Sequence[StageModule]) -> Iterator[list[torch.Tensor]]:
    """Give those aliases a gradient that have one when the stage's backward begins.

    These are the parameters whose own ``.grad`` exists, and those that a later stage shares. Of a tied one the engine
    keeps what its last user gives until the first one has added to it, in new memory, also beside a ``.grad``. Yields
    the stage's parameters that require a gradient; their gradients are gone when the block ends.
    """
    shared = {id(tensor) for other in later for tensor in other.tensors()}
    parameters = [t for t in dict.fromkeys(stage.tensors()) if t.is_leaf and t.requires_grad]
    handles = []
    for parameter in parameters:
        if id(parameter) in shared:
            handles.append(parameter.register_hook(torch.clone))
        if id(parameter) in shared or (getattr(parameter, "existing", False) and not getattr(parameter, "tied", False)):
            parameter.grad = torch.zeros_like(parameter)
    try:
        yield list(parameters)
    finally:
        for handle in handles:
            handle.remove()
        for parameter in parameters:
            parameter.grad = None
