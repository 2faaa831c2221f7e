"""What autograd saves of a stage: holders that may be empty, and tensors that pass through."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping
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
    "Packer",
    "Recording",
    "Refilling",
    "Shielded",
    "StopRebuild",
    "graph_clock",
]

Signature = tuple[torch.Size, torch.dtype, torch.device]

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


class StopRebuild(BaseException):
    """Ends a rebuild at its last saved tensor; not an Exception, so that no module swallows it."""


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


def unpack(packed: Kept | Holder) -> torch.Tensor:
    """Return the saved tensor to autograd."""
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


class Packer:
    """The saved tensors of one stage, recorded by its first run and filled again by others.

    Parameters
    ----------
    stage, name
        Index and name of the stage.
    through
        Storages that are never kept, by identity: parameters and buffers. Held, so that no other
        storage takes over an identity.
    """

    __slots__ = ("holders", "name", "signatures", "stage", "through")

    def __init__(self, stage: int, name: str, through: Mapping[int, torch.UntypedStorage]) -> None:
        self.stage = stage
        self.name = name
        self.through = through
        self.holders: list[weakref.ref[Holder]] = []
        self.signatures: list[Signature] = []

    def live(self, start: int = 0) -> list[Holder]:
        """Return the holders that the graph still owns, from some position on."""
        return [holder for reference in self.holders[start:] if (holder := reference()) is not None]

    def last(self) -> int:
        """Return the position of the last holder that the graph still owns, -1 if there is none."""
        for position in range(len(self.holders) - 1, -1, -1):
            if self.holders[position]() is not None:
                return position
        return -1

    def clock(self) -> int:
        """Return a time before the node that saves last was made, 0 if none is known: a node of torch's saves few.

        RReLU, the one that this is asked for, saves three at most: its input, its noise and its result.
        """
        for reference in self.holders[-4::-1]:
            holder = reference()
            if holder is not None:
                return holder.clock
        return 0

    def empty(self, start: int = 0) -> None:
        """Free what the holders keep, from some position on."""
        for reference in self.holders[start:]:
            holder = reference()
            if holder is not None:
                holder.kept = None

    def keep(self, keep: Keep, start: int) -> None:
        """Keep otherwise what the holders have, from some position on."""
        for holder in self.live(start):
            if holder.kept is not None:
                holder.kept = keep(holder.kept.get())

    def forget(self, start: int) -> None:
        """Leave the holders from some position on alone: they keep what they have, and nothing fills them again."""
        del self.holders[start:], self.signatures[start:]

    def unlike(self, index: int, signature: Signature) -> RecomputeError:
        """Return the error for a saved tensor that the first run did not save."""
        if index >= len(self.signatures):
            return self.mismatch(f"it saved {len(self.signatures)} tensors in its first run and more when run again")
        was, now = (describe(entry) for entry in (self.signatures[index], signature))
        return self.mismatch(f"its saved tensor {index} was {was} in the first run and is {now} when run again")

    def mismatch(self, reason: str) -> RecomputeError:
        """Return the error for a stage that does something else when run again."""
        return RecomputeError(
            f"stage {self.name!r} cannot be recomputed: {reason}; a stage must do the same each time "
            "(no dependence on counters, time or data changed between forward and backward)"
        )


class Recording(Hooks):
    """The context of a stage's first run.

    Parameters
    ----------
    packer
        Its saved tensors.
    owner
        Who fills the holders; the packer does not refer to it.
    keep
        What the holders are filled with at once; None leaves them empty.
    temporary
        Identities of further storages that pass through: copies of buffers.
    """

    __slots__ = ("keep", "owner", "packer", "temporary")

    def __init__(self, packer: Packer, owner: Owner, keep: Keep | None, temporary: Container[int] = ()) -> None:
        self.packer = packer
        self.owner = owner
        self.keep = keep
        self.temporary = temporary

    def pack(self, tensor: torch.Tensor) -> Kept | Holder:
        """Return what autograd keeps for a tensor."""
        packer, keep = self.packer, self.keep
        try:
            key = tensor.untyped_storage()._cdata
        except NotImplementedError:  # sparse
            key = key_of(tensor)
        if key in packer.through or key in self.temporary:
            return Kept(tensor)
        holder = Holder(self.owner, packer.stage)
        if keep is not None:
            holder.kept = keep(tensor)
        packer.holders.append(weakref.ref(holder))
        packer.signatures.append((tensor.shape, tensor.dtype, tensor.device))
        return holder


class Refilling(Hooks):
    """The context of a later run of a stage.

    Parameters
    ----------
    packer
        Its saved tensors.
    keep
        What the holders are filled with again; None fills none.
    temporary
        As in :class:`Recording`.
    stop
        Position at which to raise StopRebuild; -1 runs to the stage's end.

    Attributes
    ----------
    seen
        How many tensors it has saved so far.
    """

    __slots__ = ("keep", "packer", "seen", "stop", "temporary")

    def __init__(self, packer: Packer, keep: Keep | None, temporary: Container[int], stop: int = -1) -> None:
        self.packer = packer
        self.keep = keep
        self.temporary = temporary
        self.stop = stop
        self.seen = 0

    def pack(self, tensor: torch.Tensor) -> None:
        """Fill the holder of a tensor."""
        packer, keep = self.packer, self.keep
        try:
            key = tensor.untyped_storage()._cdata
        except NotImplementedError:  # sparse
            key = key_of(tensor)
        if key in packer.through or key in self.temporary:
            return
        index = self.seen
        self.seen = index + 1
        signature = (tensor.shape, tensor.dtype, tensor.device)
        if index >= len(packer.signatures) or signature != packer.signatures[index]:
            raise packer.unlike(index, signature)
        if keep is not None:
            holder = packer.holders[index]()
            if holder is not None and holder.kept is None:
                holder.kept = keep(tensor)
        if index == self.stop:
            raise StopRebuild

    def check(self) -> None:
        """Check that nothing is missing.

        Raises
        ------
        RecomputeError
            If the run has saved fewer tensors than the first one.
        """
        first, seen = len(self.packer.signatures), self.seen
        if seen != first:
            raise self.packer.mismatch(f"it saved {first} tensors in its first run and {seen} when run again")


def describe(signature: Signature) -> str:
    """Write shape, dtype and device for an error message."""
    shape, dtype, device = signature
    return f"{str(dtype).removeprefix('torch.')}{list(shape)} on {device}"
