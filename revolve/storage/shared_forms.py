"""Activations and saved tensors kept in another format than dense: each storage is encoded once.

What is encoded is always a whole storage, so that its views (the three parts of a projection, a transposed
activation) share one form, as they share the storage in plain training.
"""

from __future__ import annotations

import weakref
from collections.abc import Container, Set
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from .accounts import Account
from .boundary import map_tensors
from .codecs import Codec, Form
from .dense import DenseSnapshot

__all__ = ["EncodedTensor", "FormSnapshot", "Forms", "SharedForm"]


def eligible(tensor: torch.Tensor) -> bool:
    """Whether a tensor's storage can be encoded: plain strided elements that exist, with no conjugation to be done."""
    kind = type(tensor)
    plain = (kind is torch.Tensor or kind is torch.nn.Parameter) and not tensor.is_meta
    return (
        plain and tensor.layout is torch.strided and not (tensor.is_conj() or tensor.is_neg() or tensor.is_inference())
    )


def is_part(tensor: torch.Tensor) -> bool:
    """Whether a tensor may be one of several in a storage that have versions of their own, as ``unsafe_chunk`` makes.

    They do not tell whether another one has been written since the storage was encoded: the gates of a GRU are written
    one after the other.
    """
    owner = tensor if tensor._base is None else tensor._base
    return owner.nbytes < owner.untyped_storage().nbytes()


def flat_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole storage of a strided tensor as elements of its type, without a copy."""
    flat = tensor.detach()
    return flat.as_strided((flat.untyped_storage().nbytes() // flat.element_size(),), (1,), 0)


class SharedForm:
    """The form of one storage, and what was decoded of it for as long as somebody uses that.

    Parameters
    ----------
    form
        The form.
    flat
        What it was made of.

    Attributes
    ----------
    dtype, dense_bytes
        Of the elements that it was made of.
    """

    __slots__ = ("__weakref__", "decoded", "dense_bytes", "dtype", "form")

    def __init__(self, form: Form, flat: torch.Tensor) -> None:
        self.form = form
        self.dtype = flat.dtype
        self.dense_bytes = flat.nbytes
        self.decoded: StorageWeakRef | None = None

    def decode(self) -> torch.UntypedStorage:
        """Return the storage, dense: the one that is in use already, if there is one."""
        if self.decoded is not None:
            present: torch.UntypedStorage | None = torch.UntypedStorage._new_with_weak_ptr(self.decoded.cdata)
            if present is not None:
                return present
        storage = self.form.decode().untyped_storage()
        self.decoded = StorageWeakRef(storage)
        return storage


class EncodedTensor:
    """One view of a storage that is kept in a form.

    Parameters
    ----------
    tensor
        The view.
    shared
        The form of its storage.
    """

    __slots__ = ("__weakref__", "requires_grad", "shared", "view")

    def __init__(self, tensor: torch.Tensor, shared: SharedForm) -> None:
        self.view = (tensor.storage_offset(), tensor.size(), tensor.stride())
        self.requires_grad = tensor.requires_grad
        self.shared = shared

    def get(self) -> torch.Tensor:
        """Return the tensor, outside any graph."""
        storage = self.shared.decode()
        return torch.empty(0, dtype=self.shared.dtype, device=storage.device).set_(storage, *self.view)

    def view_of(self, dense: torch.Tensor) -> torch.Tensor:
        """Return the same view of another tensor that has the dense storage."""
        offset, size, stride = self.view
        return dense.detach().as_strided(size, stride, offset)

    def load(self) -> torch.Tensor:
        """Return the tensor as a fresh leaf, requiring a gradient where the original did."""
        return self.get().requires_grad_(self.requires_grad)


class Known(NamedTuple):
    """A form and the storage it belongs to, both held weakly; a storage keeps its identity while it is referred to."""

    storage: StorageWeakRef
    version: int
    shared: weakref.ref[SharedForm]


class Forms:
    """The forms of the storages that are alive, so that whoever encodes one again gets the form that exists.

    Parameters
    ----------
    own
        Identities of storages that stay dense and count nothing: those of the model's input are the caller's.
    """

    def __init__(self, own: Set[int] = frozenset()) -> None:
        self.own = own
        self.known: dict[tuple[int, str], Known] = {}

    def find(self, tensor: torch.Tensor, codec: Codec) -> SharedForm | None:
        """Return the form of a tensor's storage as it is now, None if there is none."""
        known = self.known.get((tensor.untyped_storage()._cdata, codec.name))
        if known is None or known.version != tensor._version:
            return None
        shared = known.shared()
        return shared if shared is not None and shared.dtype == tensor.dtype else None

    def add(self, tensor: torch.Tensor, codec: Codec, shared: SharedForm) -> None:
        """Remember the form of a tensor's storage for as long as both live."""
        self.known = {
            key: known
            for key, known in self.known.items()
            if known.shared() is not None and not known.storage.expired()
        }
        storage = tensor.untyped_storage()
        self.known[storage._cdata, codec.name] = Known(StorageWeakRef(storage), tensor._version, weakref.ref(shared))

    def encode(
        self, tensor: torch.Tensor, codec: Codec, account: Account, *, finished: bool = True
    ) -> EncodedTensor | None:
        """Return a tensor as a view of its storage's form, which is made unless it exists.

        Parameters
        ----------
        tensor
            Any tensor.
        codec
            Makes the form.
        account
            Is asked before a form is made, and told of a storage that stays dense.
        finished
            Whether nothing of the storage is written any more; else its parts stay dense, as far as they may be.

        Returns
        -------
        EncodedTensor or None
            None where the tensor stays dense: the codec makes no form of it.
        """
        shared = None
        if eligible(tensor) and (finished or not is_part(tensor)):
            if tensor.untyped_storage()._cdata in self.own:
                return None
            shared = self.find(tensor, codec)
            if shared is None:
                flat = flat_of(tensor)
                form = codec.encode(flat, account.allow)
                if form is not None:
                    shared = SharedForm(form, flat)
                    self.add(tensor, codec, shared)
                    if codec.varies:
                        account.expect(flat.nbytes, form.nbytes)
        if shared is None:
            account.count_dense(tensor)
            return None
        return EncodedTensor(tensor, shared)


class FormSnapshot:
    """A stored activation whose storages are kept in a format.

    Parameters
    ----------
    value
        The boundary to keep.
    codec, account
        As in :meth:`Forms.encode`.
    forms
        The forms that exist.
    dense
        Identities of storages that stay dense and count nothing, since they are held anyway.
    """

    __slots__ = ("codec", "forms", "value")

    def __init__(
        self, value: Any, codec: Codec, forms: Forms, account: Account, dense: Container[int] = frozenset()
    ) -> None:
        self.codec = codec
        self.forms = forms

        def keep(tensor: torch.Tensor) -> EncodedTensor | DenseSnapshot:
            held = tensor.layout is torch.strided and tensor.untyped_storage()._cdata in dense
            return (None if held else forms.encode(tensor, codec, account)) or DenseSnapshot(tensor)

        self.value = map_tensors(keep, value)

    def load(self) -> Any:
        """Return the activation as a fresh leaf."""
        return map_tensors(self.load_part, self.value, (EncodedTensor, DenseSnapshot))

    def load_part(self, part: EncodedTensor | DenseSnapshot) -> Any:
        """Return one tensor; its form is known as that of the storage that was made from it."""
        tensor = part.load()
        if isinstance(part, EncodedTensor):
            self.forms.add(tensor, self.codec, part.shared)
        return tensor
