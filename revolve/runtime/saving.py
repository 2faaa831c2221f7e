"""What autograd saves of a stage: holders that may be empty, and tensors that pass through."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.autograd.graph import saved_tensors_hooks

from revolve.storage.boundary import storages_of

from .exceptions import RecomputeError

__all__ = ["Holder", "Packer", "StopRebuild", "hooked"]

Signature = tuple[torch.Size, torch.dtype, torch.device]


class Owner(Protocol):
    """Fills empty holders when backward needs them."""

    def need(self, holder: Holder) -> None:
        """Make sure that the holder has its tensor."""


class StopRebuild(BaseException):
    """Ends a rebuild at its last saved tensor; not an Exception, so that no module swallows it."""


class Kept:
    """A tensor and the version it was saved at; saved-tensor hooks switch torch's own check off."""

    __slots__ = ("__weakref__", "tensor", "version")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach()
        self.version = 0 if tensor.is_inference() else tensor._version

    def get(self) -> torch.Tensor:
        """Return the tensor.

        Raises
        ------
        RuntimeError
            If it was changed in place meanwhile, as plain training would.
        """
        if not self.tensor.is_inference() and self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"[{self.tensor.type()} {list(self.tensor.shape)}] is at version {self.tensor._version}; expected "
                f"version {self.version} instead"
            )
        return self.tensor


class Holder:
    """A place for one saved tensor of a stage; autograd's graph owns it.

    Attributes
    ----------
    owner
        Who fills it when it is empty; alive as long as any holder is.
    stage
        Index of its stage.
    kept
        The tensor, or None while the holder is empty.
    """

    __slots__ = ("__weakref__", "kept", "owner", "stage")

    def __init__(self, owner: Owner, stage: int) -> None:
        self.owner = owner
        self.stage = stage
        self.kept: Kept | None = None


def unpack(packed: Kept | Holder) -> torch.Tensor:
    """Return the saved tensor to autograd."""
    if isinstance(packed, Kept):
        return packed.get()
    packed.owner.need(packed)
    if packed.kept is None:
        raise RecomputeError(f"internal error: a saved tensor of stage {packed.stage} was not rebuilt")
    return packed.kept.get()


def key_of(tensor: torch.Tensor) -> int:
    """Return the identity of a tensor's storage; of its values' where it is sparse."""
    key: int = storages_of(tensor)[-1]._cdata
    return key


@contextmanager
def hooked(pack: Callable[[torch.Tensor], Any]) -> Iterator[None]:
    """Run with ``pack`` deciding what autograd keeps."""
    with saved_tensors_hooks(pack, unpack):
        yield


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

    def __init__(self, stage: int, name: str, through: Mapping[int, torch.UntypedStorage]) -> None:
        self.stage = stage
        self.name = name
        self.through = through
        self.holders: list[weakref.ref[Holder]] = []
        self.signatures: list[Signature] = []

    def live(self) -> list[Holder]:
        """Return the holders that the graph still owns."""
        return [holder for reference in self.holders if (holder := reference()) is not None]

    def empty(self) -> None:
        """Free what the holders keep."""
        for holder in self.live():
            holder.kept = None

    def record(self, owner: Owner, *, keep: bool, temporary: Container[int] = ()) -> Callable[[torch.Tensor], Any]:
        """Return the pack hook of the first run.

        Parameters
        ----------
        owner
            Who fills the holders; the packer does not refer to it.
        keep
            Whether holders are filled at once.
        temporary
            As in :meth:`refill`.
        """

        def pack(tensor: torch.Tensor) -> Kept | Holder:
            key = key_of(tensor)
            if key in self.through or key in temporary:
                return Kept(tensor)
            holder = Holder(owner, self.stage)
            if keep:
                holder.kept = Kept(tensor)
            self.holders.append(weakref.ref(holder))
            self.signatures.append((tensor.shape, tensor.dtype, tensor.device))
            return holder

        return pack

    def refill(
        self, temporary: Container[int], *, keep: bool, stop: bool
    ) -> tuple[Callable[[torch.Tensor], Any], Callable[[], None]]:
        """Return the pack hook of a later run, and the check to call after it.

        Parameters
        ----------
        temporary
            Identities of further storages that pass through: copies of buffers.
        keep
            Whether the run fills the holders again.
        stop
            Raise StopRebuild at the last tensor that the graph still needs.
        """
        last = max((index for index, reference in enumerate(self.holders) if reference() is not None), default=-1)
        seen = 0

        def pack(tensor: torch.Tensor) -> None:
            nonlocal seen
            key = key_of(tensor)
            if key in self.through or key in temporary:
                return
            index = seen
            seen += 1
            if index >= len(self.signatures):
                raise self.mismatch(f"it saved {len(self.signatures)} tensors in its first run and more when run again")
            signature = (tensor.shape, tensor.dtype, tensor.device)
            if signature != self.signatures[index]:
                was, now = (describe(entry) for entry in (self.signatures[index], signature))
                raise self.mismatch(f"its saved tensor {index} was {was} in the first run and is {now} when run again")
            holder = self.holders[index]()
            if keep and holder is not None and holder.kept is None:
                holder.kept = Kept(tensor)
            if stop and index == last:
                raise StopRebuild

        def check() -> None:
            if seen != len(self.signatures):
                raise self.mismatch(
                    f"it saved {len(self.signatures)} tensors in its first run and {seen} when run again"
                )

        return pack, check

    def mismatch(self, reason: str) -> RecomputeError:
        """Return the error for a stage that does something else when run again."""
        return RecomputeError(
            f"stage {self.name!r} cannot be recomputed: {reason}; a stage must do the same each time "
            "(no dependence on counters, time, Python's random or data changed between forward and backward)"
        )


def describe(signature: Signature) -> str:
    """Write shape, dtype and device for an error message."""
    shape, dtype, device = signature
    return f"{str(dtype).removeprefix('torch.')}{list(shape)} on {device}"
