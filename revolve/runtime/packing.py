"""What one stage saves for its backward: recorded by its first run, filled again by others."""

from __future__ import annotations

import weakref
from collections.abc import Container, Mapping

import torch

from .exceptions import RecomputeError
from .saving import Holder, Hooks, Keep, Kept, Owner, key_of

__all__ = ["Packer", "Recording", "Refilling", "StopRebuild"]

Signature = tuple[torch.Size, torch.dtype, torch.device]


class StopRebuild(BaseException):
    """Ends a rebuild at its last saved tensor; not an Exception, so that no module swallows it."""


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
        except NotImplementedError:  # sparse; not in a function for both runs, whose call would cost as much
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
        except NotImplementedError:  # sparse; not in a function for both runs, whose call would cost as much
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
