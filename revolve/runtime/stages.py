"""Stages, and how an nn.Sequential is cut into them: its children, nested ones flattened, some glued together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from revolve.storage.boundary import storage_keys, storages_by_key

from .attributes import STANDARD, Spots
from .exceptions import ModelError, PlanMismatch
from .generators import KINDS, Source, sources_of
from .reaching import reach
from .sharding import gathered_parameters, units_of
from .sights import Sight
from .tables import Contents, Place, Table

if TYPE_CHECKING:
    from .module_hooks import ModuleHooks

__all__ = ["StageModule", "check_model", "flatten", "is_plain_sequential", "is_special", "match_stages"]

INNER = frozenset(("training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"))

# Attributes that let a container do something besides running its children: hooks, a forward of its own.
SPECIAL = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "forward",
)


@dataclass(slots=True)
class Known:
    """What was last seen of a stage's modules: used as long as it is so, and shared by stages of the same modules."""

    contents: Contents | None = None
    spots: Spots | None = None
    sight: Sight | None = None
    hooks: ModuleHooks | None = None  # of the whole chain that begins with the stage
    hidden: list[Source] | None = None  # generators that hooks, containers and functions hold
    hooked: bool = False  # by when so many hooks had ever been registered
    count: int = -1


@dataclass(frozen=True)
class StageModule:
    """One stage: functions applied one after the other.

    Attributes
    ----------
    name
        Paths of the functions in the model, joined by "+".
    functions
        Modules, or any callables of one argument.
    """

    name: str
    functions: tuple[Callable[[Any], Any], ...]

    def __call__(self, value: Any) -> Any:
        """Run the stage."""
        for function in self.functions:
            value = function(value)
        return value

    def join(self, following: StageModule) -> StageModule:
        """Return this stage glued to the one after it."""
        return StageModule(f"{self.name}+{following.name}", self.functions + following.functions)

    def as_called(
        self,
        functions: tuple[Callable[[Any], Any], ...],
        activation: Callable[[Any], Any] | None = None,
        shared: Callable[[Any], list[torch.Tensor]] | None = None,
    ) -> StageModule:
        """Return this stage of modules as functions that call them; it has no loose tensors yet.

        ``activation`` maps its output to what of it counts as the next stage's input, if not all does; ``shared`` to
        the tensors whose gradients outlive its backward, if any do.
        """
        twin = StageModule(self.name, functions)
        names = ("modules", "units", "stops_early", "tables", "known", "owner")
        same = {name: getattr(self, name) for name in names}
        maps = {"activation": activation or self.activation, "shared": shared or self.shared}
        twin.__dict__.update(same, loose=(), loose_functions=(), **maps)
        return twin

    @cached_property
    def activation(self) -> Callable[[Any], Any]:
        """Return what of an output counts as the next stage's input: all of it."""
        return lambda output: output

    @cached_property
    def shared(self) -> Callable[[Any], list[torch.Tensor]]:
        """Return which tensors of an output have gradients that outlive its backward: none."""
        return lambda output: []

    @cached_property
    def output_stays(self) -> bool:
        """Whether the caller still holds its output in its backward, where it is the last stage."""
        return True

    def add_loose(self, tensors: Sequence[torch.Tensor]) -> None:
        """Add tensors that functions of the stage use outside of modules."""
        self.__dict__["loose"] = (*self.loose, *tensors)

    @cached_property
    def modules(self) -> tuple[nn.Module, ...]:
        """Every module of the stage, each once."""
        roots = [root for function in self.functions for root in reach(function, nn.Module)]
        return tuple(dict.fromkeys(module for root in roots for module in root.modules()))

    @cached_property
    def units(self) -> tuple[Any, ...]:
        """The modules whose parameters are sharded."""
        return units_of(self.modules)

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """The modules' own tables: of the parameters of each, then of the buffers of each.

        The tables of sharded parameters are left to FSDP, which replaces their entries around every run.
        """
        if self.units:
            return (*({} for _ in self.modules), *(module._buffers for module in self.modules))
        return (*(module._parameters for module in self.modules), *(module._buffers for module in self.modules))

    @cached_property
    def known(self) -> Known:
        """What was last seen of tables and attributes."""
        return Known()

    def seen(self) -> Sight | None:
        """Return what was last seen of the modules, if they still have the same: their flags may be others."""
        sight = self.known.sight
        return sight if sight is not None and sight.intact() else None

    def sight(self) -> Sight:
        """Return what the modules are now."""
        sight = self.known.sight
        if sight is None or not sight.holds():
            sight = Sight(self.modules, self.contents(), *self.attributes())
            self.known.sight = sight if sight.shared else None
        return sight

    def attributes(self) -> tuple[Spots, list[Any]]:
        """Return where the modules' attributes are, and what; their places are numbered after the tables."""
        spots = self.known.spots
        values = None if spots is None else spots.read()
        if spots is None or values is None:
            spots = self.known.spots = Spots([vars(module) for module in self.modules], 2 * len(self.modules))
            values = spots.read() or []
        return spots, values

    def contents(self) -> Contents:
        """Return what the tables hold now."""
        contents = self.known.contents
        if contents is None or not contents.intact():
            contents = self.known.contents = Contents(self.tables)
        return contents

    @cached_property
    def stops_early(self) -> bool:
        """Whether a rebuild may end where the last tensor is saved: FSDP must see the end of units inside."""
        return not self.units

    @cached_property
    def loose(self) -> tuple[torch.Tensor, ...]:
        """The tensors that functions of the stage use outside of modules."""
        return tuple(value for function in self.loose_functions for value in reach(function, torch.Tensor))

    @cached_property
    def loose_functions(self) -> tuple[Callable[[Any], Any], ...]:
        """The functions that are no modules."""
        return tuple(function for function in self.functions if not isinstance(function, nn.Module))

    def holdings(self) -> tuple[list[torch.Tensor], list[Source]]:
        """Return :meth:`tensors` and :meth:`sources`, by one look at the modules."""
        sight = self.seen()
        return self.tensors(sight), self.find_sources(sight)

    def sources(self) -> list[Source]:
        """Return the random number generators that the user keeps: in attributes, containers, closures, arguments."""
        return self.find_sources(self.seen())

    def find_sources(self, sight: Sight | None) -> list[Source]:
        """Return :meth:`sources` of modules that are so; None where they have to be looked at."""
        known = self.known
        if known.count != RemovableHandle.next_id:  # there are other hooks, somewhere
            known.hooked = any(module._forward_hooks or module._forward_pre_hooks for module in self.modules)
            known.count = RemovableHandle.next_id
        steady = sight is not None and not sight.volatile and not self.loose_functions and not known.hooked
        if not steady or known.hidden != []:  # where there were some, others may be in their place
            known.hidden = self.hidden_sources()
        own = sources_of(self.attributes()[1]) if sight is None else sight.sources
        return [*known.hidden, *own] if own else known.hidden

    def hidden_sources(self) -> list[Source]:
        """Return the random number generators that are not attributes of the stage's modules themselves.

        Modules that are none of these, but can be reached from them, are looked into.
        """
        kinds: tuple[type[Any], ...] = (nn.Module, *KINDS)
        seen, found = set(self.modules), list[Any]()
        waiting: list[Any] = [*self.loose_functions, *self.modules]
        for root in waiting:  # it grows
            own = root in self.modules
            kept = kept_by(root) if isinstance(root, nn.Module) else [root]
            for value in (hit for one in kept if not (own and type(one) in KINDS) for hit in reach(one, kinds)):
                if isinstance(value, nn.Module):
                    waiting += [module for module in value.modules() if module not in seen]
                    seen.update(value.modules())
                else:
                    found.append(value)
        return sources_of(found)

    def tensors(self, sight: Sight | None = None) -> list[torch.Tensor]:
        """Return parameters, buffers and loose tensors; of modules that are so, if that is known."""
        if not self.units:
            contents = self.contents() if sight is None else sight.contents
            return [*self.loose, *contents.tensors] if self.loose else contents.tensors
        found: list[torch.Tensor | None] = [*self.loose, *gathered_parameters(self.units)]
        for module in self.modules:
            found += module._parameters.values()
            found += module._buffers.values()
        return [tensor for tensor in found if tensor is not None]

    def storages(self) -> dict[int, torch.UntypedStorage]:
        """Return the storages of parameters and buffers by their identity."""
        return storages_by_key(self.tensors())

    def is_buffer(self, place: Place) -> bool:
        """Whether a place is in a table of buffers."""
        return len(self.modules) <= place[0] < 2 * len(self.modules)

    def module_of(self, place: Place) -> tuple[int, nn.Module]:
        """Return number and module that a place belongs to."""
        number = place[0] % len(self.modules)
        return number, self.modules[number]

    def describe(self) -> str:
        """Write the stage's functions; those of equal modules print alike."""
        return "\n".join(map(repr, self.functions))

    def name_of(self, place: Place) -> str:
        """Name a parameter or buffer in an error message."""
        number, module = self.module_of(place)
        return f"{place[1]} of module {number} ({type(module).__name__})"

    @cached_property
    def owner(self) -> Callable[[], nn.Module | None]:
        """Return the model whose own forward may hand its buffers to the stage, None if there is none."""
        return lambda: None

    def name_of_loose(self, number: int) -> str:
        """Name a tensor outside of modules in an error message; it may be one that the model's own forward takes."""
        keys, model = storage_keys([self.loose[number]]), self.owner()
        for path, module in () if model is None else model.named_modules():
            for name, value in (*module._buffers.items(), *module._parameters.items(), *vars(module).items()):
                if isinstance(value, torch.Tensor) and not keys.isdisjoint(storage_keys([value])):
                    return f"{f'{path}.' if path else ''}{name} of the {type(model).__name__}"
        return f"tensor {number} outside of modules"


def check_model(model: Any) -> nn.Module:
    """Check that something is a model with anything in it.

    Raises
    ------
    ModelError
        If it is no nn.Module, has parts made by torch.jit, or is an nn.Sequential without children.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}; pass an nn.Module, such as nn.Sequential(*blocks)")
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{f'module {path!r} of the model' if path else 'the model'} is a {type(module).__name__} of "
                f"torch.jit, which runs outside of Python; pass the {module.original_name} that it was made of"
            )
    if is_plain_sequential(model) and not len(model):
        raise ModelError("the model is an nn.Sequential without children; there is nothing to train")
    return model


def kept_by(module: nn.Module) -> list[Any]:
    """Return a module's own attributes, hooks included, and the forward of its class, if that is not torch's."""
    attributes = [item for item in vars(module).items() if item[0] not in INNER]
    forward = type(module).forward
    own = [value for name, value in attributes if name not in STANDARD or value]
    return own if forward.__module__.startswith("torch.") else [*own, forward]


def is_plain_sequential(model: Any) -> TypeGuard[nn.Sequential]:
    """Whether a model is an nn.Sequential, running its children one after the other."""
    return isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward


def is_special(container: nn.Module) -> bool:
    """Whether a container does something of its own besides running its children."""
    attributes = container.__dict__
    return any(attributes.get(name) for name in SPECIAL)


def flatten(
    functions: Sequence[tuple[str, Callable[[Any], Any]]], whole: frozenset[str] = frozenset()
) -> list[StageModule]:
    """Return one stage a function, nested nn.Sequential containers flattened.

    A nested container that is a subclass, has hooks or a forward of its own, or is named in ``whole``
    stays one stage.

    Parameters
    ----------
    functions
        Pairs of path and function, in order.
    whole
        Paths of containers that are not to be flattened.
    """
    stages: list[StageModule] = []
    for path, function in functions:
        if type(function) is nn.Sequential and len(function) and not is_special(function) and path not in whole:
            nested = [(f"{path}.{name}", child) for name, child in function._modules.items() if child is not None]
            stages += flatten(nested, whole)
        else:
            stages.append(StageModule(path, (function,)))
    return stages


def match_stages(children: Mapping[str, nn.Module | None], names: Sequence[str]) -> list[StageModule]:
    """Find the stages of a plan in a model's table of children by their names.

    Raises
    ------
    PlanMismatch
        If the model has other children than the names say.
    """
    whole = frozenset(names) | {path for name in names for path in name.split("+")}
    parts = flatten([(name, child) for name, child in children.items() if child is not None], whole)
    waiting = parts[::-1]
    stages: list[StageModule] = []
    for name in names:
        stage = waiting.pop() if waiting else None
        while stage and waiting and name.startswith(f"{stage.name}+"):
            stage = stage.join(waiting.pop())
        if stage is None or stage.name != name:
            found = f"{stage.name!r} stands" if stage else "nothing stands"
            raise PlanMismatch(
                f"the plan was made for another model: where it has stage {name!r}, {found} in this model "
                f"({len(parts)} parts); measure and solve this model again"
            )
        stages.append(stage)
    if waiting:
        raise PlanMismatch(
            f"the plan was made for another model: it has nothing for {waiting[-1].name!r} of this model "
            f"({len(parts)} parts); measure and solve this model again"
        )
    return stages
