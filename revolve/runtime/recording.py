"""Records one call of a model: what each module and function takes, what it gives, and what autograd saves in it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import networkx as nx
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from revolve.storage.boundary import bytes_of, storages_of, tensors_of, version_of
from revolve.storage.dense import Enclosing

from .exceptions import ModelError
from .glue import Function, Glue, name_of, recordable, transforming
from .modes import Modes
from .samples import Arguments, opaque_leaves
from .saving import key_of

__all__ = ["Call", "Mark", "Recording", "record", "replaced_forwards"]

Mark = tuple[int, int]  # serial number of a tensor object, and its version
Replacement = Callable[..., Any]


@dataclass(eq=False, slots=True)
class Call:
    """One call of a module's forward, or of a function of torch that a module calls itself.

    Attributes
    ----------
    number, path, module
        Position in order of the calls' beginning; the module, and its path in the model. None for a function, and its
        name.
    inputs, outputs
        The tensors of arguments and output, in order; a function also gives what it changes in place.
    changed
        Serial numbers of the inputs that the call changes in place.
    saved
        Bytes that autograd saves in this call itself, not in a module that it calls; each storage where it is
        saved first, without parameters, buffers and the model's input.
    setting
        What has to be the same for all stages of a chain: grad mode, modes, hooks around the model.
    obstacle
        Why the call cannot be a stage, if it cannot.
    """

    number: int
    path: str
    module: nn.Module | None
    inputs: tuple[Mark, ...]
    outputs: tuple[Mark, ...] = ()
    changed: frozenset[int] = frozenset()
    saved: int = 0
    setting: Any = None
    obstacle: str | None = None

    @property
    def fresh(self) -> tuple[Mark, ...]:
        """Return the outputs that are not passed on; all of them where there are no others."""
        return tuple(mark for mark in self.outputs if mark not in self.inputs) or self.outputs


@dataclass
class Recording:
    """What one call of a model did.

    Attributes
    ----------
    graph
        Nodes are the numbers of calls, with the ``Call`` as their attribute ``call``; edges lead from a call to
        those that it makes. Number 0 is the model itself.
    storages
        Identity and bytes of every tensor's storage, by its serial number.
    graded
        The tensors that require a gradient.
    """

    graph: nx.DiGraph = field(default_factory=nx.DiGraph)
    storages: dict[int, tuple[int, int]] = field(default_factory=dict)
    graded: set[Mark] = field(default_factory=set)

    def call(self, number: int) -> Call:
        """Return a call by its number."""
        found: Call = self.graph.nodes[number]["call"]
        return found

    def children(self, call: Call) -> list[Call]:
        """Return the calls that a call makes itself, of modules and functions, in order."""
        return [self.call(number) for number in sorted(self.graph.successors(call.number))]

    def parts(self, call: Call) -> list[Call]:
        """Return the calls of modules that a call makes itself, in order."""
        return [child for child in self.children(call) if child.module is not None]

    def saved_bytes(self, call: Call) -> int:
        """Return the bytes saved in a call and in all that it calls."""
        return sum(self.call(n).saved for n in (call.number, *nx.descendants(self.graph, call.number)))


@contextmanager
def replaced_forwards(replacements: Mapping[nn.Module, Replacement]) -> Iterator[None]:
    """Let modules run something else than their forward, at the instance level, until the block ends."""
    present = [(module, "forward" in vars(module), vars(module).get("forward")) for module in replacements]
    try:
        for module, replacement in replacements.items():
            vars(module)["forward"] = replacement
        yield
    finally:
        for module, was_there, forward in present:
            if was_there:
                vars(module)["forward"] = forward
            else:
                vars(module).pop("forward", None)


def record(model: nn.Module, arguments: Arguments, *, through: Iterable[torch.Tensor]) -> Recording:
    """Run a model once in grad mode, keeping nothing for backward, and write down what its modules do.

    Parameters
    ----------
    model
        The model; to be called where it is isolated.
    arguments
        Of its call.
    through
        Tensors whose bytes do not count as saved: parameters, buffers, the model's input.
    """
    recorder = Recorder(through)
    forwards = {
        module: recorder.stand_in(module, path)
        for path, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
    }
    with replaced_forwards(forwards), torch.enable_grad(), saved_tensors_hooks(recorder.pack, refuse), recorder:
        recorder.hooks = Enclosing.current()
        model(*arguments[0], **arguments[1])
    return recorder.recording


def refuse(packed: None) -> torch.Tensor:
    """Refuse to give a saved tensor back.

    Raises
    ------
    ModelError
        Always.
    """
    raise ModelError(
        "the model runs a backward pass in its own forward (torch.autograd.grad?), so that its modules are no chain; "
        "call revolve.checkpointed on the part of it that is differentiated there"
    )


class Recorder(Glue):
    """Writes a recording while a model runs.

    It holds no tensor: objects and storages are told apart by weak references.
    """

    def __init__(self, through: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.recording = Recording()
        self.numbers = count()
        self.stack: list[Call] = []
        self.serials: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}
        self.seen = {storage._cdata for tensor in through for storage in storages_of(tensor)}
        self.references: list[StorageWeakRef] = []  # so that no other storage takes over an identity
        self.known: set[int] = set()
        self.hooks: Enclosing | None = None

    def mark(self, tensor: torch.Tensor) -> Mark:
        """Return serial number and version of a tensor object."""
        reference, serial = self.serials.get(id(tensor), (None, -1))
        if reference is None or reference() is not tensor:
            serial = len(self.recording.storages)
            self.serials[id(tensor)] = weakref.ref(tensor), serial
            self.recording.storages[serial] = self.identity(tensor), bytes_of(tensor)
        mark = serial, version_of(tensor)
        if tensor.requires_grad:
            self.recording.graded.add(mark)
        return mark

    def identity(self, tensor: torch.Tensor) -> int:
        """Return the identity of a tensor's storage, which no other one gets as long as this object lives."""
        key = key_of(tensor)
        if key not in self.known:
            self.known.add(key)
            self.references.append(StorageWeakRef(storages_of(tensor)[-1]))
        return key

    def pack(self, tensor: torch.Tensor) -> None:
        """Count a saved tensor where it is saved first, and keep nothing."""
        key = self.identity(tensor)
        if key not in self.seen:
            self.seen.add(key)
            if self.stack:
                self.stack[-1].saved += bytes_of(tensor)

    def stand_in(self, module: nn.Module, path: str) -> Replacement:
        """Return what runs instead of a module's forward."""
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self.follow(module, path, original, args, kwargs)

        return forward

    def follow(
        self, module: nn.Module, path: str, forward: Replacement, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a module's forward and write down the call."""
        inputs = tensors_of((args, kwargs))
        call = self.begin(path, module, inputs)
        call.obstacle = obstacle_of(call, args, kwargs)
        output = self.run(call, forward, (args, kwargs))
        call.outputs = tuple(map(self.mark, tensors_of(output)))
        after = map(self.mark, inputs)
        call.changed = frozenset(old[0] for old, new in zip(call.inputs, after, strict=True) if old != new)
        if not call.outputs:
            call.obstacle = call.obstacle or f"it returns no tensor, but {type(output).__name__}"
        return output

    def take(self, function: Function, arguments: Arguments) -> Any:
        """Run a function and write down the call."""
        inputs = tensors_of(arguments)
        if not inputs or not self.stack or transforming():  # with no call on the stack it is a hook of the model's
            return function(*arguments[0], **arguments[1])
        call = self.begin(name_of(function), None, inputs)
        call.obstacle = None if recordable(function, arguments) else "it may do something else when called again"
        output = self.run(call, function, arguments)
        changed = [
            (old, new) for old, tensor in zip(call.inputs, inputs, strict=True) if old != (new := self.mark(tensor))
        ]
        call.changed = frozenset(old[0] for old, _ in changed)
        call.outputs = tuple(dict.fromkeys((*map(self.mark, tensors_of(output)), *(new for _, new in changed))))
        if not call.outputs:  # it asks for a shape, a device ...
            self.recording.graph.remove_node(call.number)
        return output

    def begin(self, path: str, module: nn.Module | None, inputs: Sequence[torch.Tensor]) -> Call:
        """Return the record of a call that begins."""
        graph = self.recording.graph
        call = Call(next(self.numbers), path, module, tuple(map(self.mark, inputs)))
        call.setting = (torch.is_grad_enabled(), Modes.current(()), Enclosing.current() == self.hooks)
        graph.add_node(call.number, call=call)
        if self.stack:
            graph.add_edge(self.stack[-1].number, call.number)
        return call

    def run(self, call: Call, function: Replacement, arguments: Arguments) -> Any:
        """Make a call, with all that it calls and saves counted to it."""
        self.stack.append(call)
        try:
            return function(*arguments[0], **arguments[1])
        finally:
            self.stack.pop()


def obstacle_of(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Return why a call cannot be a stage, as far as its beginning tells."""
    enabled, _, ours = call.setting
    opaque = next(opaque_leaves((args, kwargs)), None)
    if not enabled:
        return "it runs without grad mode"
    if not ours:
        return "it runs under saved-tensor hooks of the model (gradient checkpointing?)"
    if not call.inputs:
        return "it takes no tensor"
    if opaque is not None:
        return f"it takes a {type(opaque).__name__}, which it may change (a cache? pass use_cache=False)"
    if call.module is not None and computes_outside(call.module):
        return "a hook computes tensors for it outside of its forward"
    return None


def computes_outside(module: nn.Module) -> bool:
    """Whether a hook before a module's forward leaves tensors with a graph in its attributes (old weight_norm)."""
    values = vars(module).values()
    return bool(module._forward_pre_hooks) and any(
        isinstance(value, torch.Tensor) and value.grad_fn is not None for value in values
    )
