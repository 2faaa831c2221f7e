"""What autograd keeps for a saved tensor: the tensor, or a holder that may be empty; and the contexts that decide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, Self

import torch
from torch._C._autograd import _get_sequence_nr
from torch._C._autograd import _pop_saved_tensors_default_hooks as pop_hooks
from torch._C._autograd import _push_saved_tensors_default_hooks as push_hooks

from revolve.storage.boundary import storages_of
from revolve.storage.dense import Enclosing

from .exceptions import RecomputeError

__all__ = [
    "Content",
    "Emptying",
    "Holder",
    "Hooks",
    "Keep",
    "Kept",
    "KeptElsewhere",
    "Owner",
    "Shielded",
    "graph_clock",
    "key_of",
]

graph_clock: Callable[[], int] = _get_sequence_nr  # the number that this thread's next node of an autograd graph gets


class Content(Protocol):
    """What a holder keeps a tensor as."""

    def get(self) -> torch.Tensor:
        """Return the tensor."""


Keep = Callable[[torch.Tensor], Content]


class Owner(Protocol):
    """Fills empty holders when backward needs them.

    Attributes
    ----------
    ready
        The stage whose turn it is in backward: earlier ones must ask, even if their holders are full.
    """

    ready: int

    def fetch(self, holder: Holder) -> Content:
        """Return what belongs into a holder."""


class Kept:
    """A tensor and the version it was saved at; saved-tensor hooks switch torch's own check off.

    Torch saves no inference tensors, which have no version.
    """

    __slots__ = ("__weakref__", "tensor", "version")

    def __init__(self, tensor: torch.Tensor) -> None:
        # A leaf that requires a gradient can never become part of a graph, which would then hold itself.
        self.tensor = tensor if tensor.is_leaf and tensor.requires_grad else tensor.detach()
        self.version = tensor._version

    def get(self) -> torch.Tensor:
        """Return the tensor.

        Raises
        ------
        RuntimeError
            If it was changed in place meanwhile, as plain training would.
        """
        if self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"[{self.tensor.type()} {list(self.tensor.shape)}] is at version {self.tensor._version}; expected "
                f"version {self.version} instead"
            )
        return self.tensor


class KeptElsewhere:
    """A tensor that the hooks around the model keep [9]."""

    __slots__ = ("enclosing", "packed")

    def __init__(self, tensor: torch.Tensor, enclosing: Enclosing) -> None:
        self.enclosing = enclosing
        self.packed = enclosing.pack(tensor.detach())

    def get(self) -> torch.Tensor:
        """Return the tensor."""
        return self.enclosing.unpack(self.packed)


class Holder:
    """A place for one saved tensor of a stage; autograd's graph owns it.

    Attributes
    ----------
    owner
        Who fills it when it is empty; alive as long as any holder is.
    stage
        Index of its stage.
    clock
        When it was made: behind the node that the tensor is saved for.
    kept
        The tensor, or None while the holder is empty.
    """

    __slots__ = ("__weakref__", "clock", "kept", "owner", "stage")

    def __init__(self, owner: Owner, stage: int) -> None:
        self.owner = owner
        self.stage = stage
        self.clock = graph_clock()
        self.kept: Content | None = None


def unpack(packed: Kept | Holder | None) -> torch.Tensor:
    """Return the saved tensor to autograd.

    Raises
    ------
    RecomputeError
        If it is one of a run that keeps none.
    """
    if packed is None:
        raise RecomputeError(
            "it runs a backward pass in its own forward (torch.autograd.grad), through tensors that are not kept when "
            "it is run again; call revolve.checkpointed on the part of the model that is differentiated there"
        )
    if isinstance(packed, Kept):
        return packed.tensor if packed.tensor._version == packed.version else packed.get()
    kept = packed.kept
    if kept is None or packed.stage < packed.owner.ready:
        kept = packed.owner.fetch(packed)
    return kept.get()


def key_of(tensor: torch.Tensor) -> int:
    """Return the identity of a tensor's storage; of its values' where it is sparse."""
    key: int = storages_of(tensor)[-1]._cdata
    return key


class Hooks(ABC):
    """Torch's ``saved_tensors_hooks`` with the unpack hook of this module, in a third of its time."""

    __slots__ = ()

    @abstractmethod
    def pack(self, tensor: torch.Tensor) -> Any:
        """Return what autograd keeps for a tensor."""

    def __enter__(self) -> Self:
        push_hooks(self.pack, unpack)
        return self

    def __exit__(self, *_: object) -> None:
        pop_hooks()


class Emptying(Hooks):
    """The context in which autograd keeps nothing, and there is no backward."""

    __slots__ = ()

    def pack(self, tensor: torch.Tensor) -> None:
        """Keep nothing."""


class Shielded(Hooks):
    """The context in which autograd keeps what it saves as ever, whatever hooks are around it.

    No output is kept as it is: it would hold its own node, and be there for good.
    """

    __slots__ = ()

    def pack(self, tensor: torch.Tensor) -> Kept:
        """Keep a tensor."""
        return Kept(tensor)
