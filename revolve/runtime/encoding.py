"""Keeps stored activations and saved tensors of one run in the formats that its schedule names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from typing import Any

import torch
from torch._C._autograd import _get_sequence_nr

from revolve.schedules.chain import Chain
from revolve.storage.accounts import Account, Allowance
from revolve.storage.boundary import storage_keys, tensors_of
from revolve.storage.codecs import Codec, codec_named
from revolve.storage.shared_forms import EncodedTensor, Forms, FormSnapshot

from .saving import Content, Holder, Kept

__all__ = ["Encoder", "Encoding", "graph_clock", "saves_late"]

# torch's only node that saves a tensor before it is written: a form would hold what was there before.
LATE = "RreluWithNoiseBackward"


class Encoder:
    """Keeps what one run of a stage saves in a format.

    Parameters
    ----------
    codec
        The format.
    forms
        The forms that exist.
    account
        What the run may take.
    dense
        Identities of storages that stay dense: those of an input that is held dense anyway.
    dense_output
        Whether the output stays dense, too.
    """

    def __init__(
        self, codec: Codec, forms: Forms, account: Account, dense: Set[int] = frozenset(), *, dense_output: bool = False
    ) -> None:
        self.codec = codec
        self.forms = forms
        self.account = account
        self.dense = dense
        self.dense_output = dense_output

    def __call__(self, tensor: torch.Tensor) -> Content:
        """Return what a saved tensor is kept as."""
        if tensor.layout is torch.strided and tensor.untyped_storage()._cdata in self.dense:
            return Kept(tensor)
        return self.forms.encode(tensor, self.codec, self.account) or Kept(tensor)

    def finish(self, output: Any, holders: Iterable[Holder]) -> None:
        """Close the account; where the output stays dense, let holders refer to it.

        Only now it is known which of the saved tensors the output is.
        """
        if self.dense_output:
            outputs = {t.untyped_storage()._cdata: t for t in tensors_of(output) if t.layout is torch.strided}
            views = {id(shared): t for t in outputs.values() if (shared := self.forms.find(t, self.codec)) is not None}
            for holder in holders:
                if isinstance(holder.kept, EncodedTensor) and id(holder.kept.shared) in views:
                    holder.kept = Kept(holder.kept.view_of(views[id(holder.kept.shared)]))
        self.account.close()


class Encoding:
    """The forms of one run.

    Parameters
    ----------
    chain, slack
        As in ``Program``.
    own
        Identities of the storages of the model's input.
    strain
        Called when forms come close to what was planned for them.
    """

    def __init__(self, chain: Chain, slack: int | None, own: Set[int], strain: Callable[[], None]) -> None:
        self.chain = chain
        self.allowance = Allowance(slack, strain)
        self.forms = Forms(own)

    def store(self, index: int, value: Any, format_: str) -> FormSnapshot:
        """Return x_index kept in a format."""
        planned = self.chain.formats[format_].stored_bytes[index]
        account = Account(self.allowance, f"the input of stage {self.chain.stages[index].name!r}", planned)
        snapshot = FormSnapshot(value, codec_named(format_), self.forms, account)
        account.close()
        return snapshot

    def encoder(self, index: int, value: Any, format_: str) -> Encoder:
        """Return what keeps the saved tensors of a run of stage ``index`` on ``value``."""
        chain, stage, codec = self.chain, self.chain.stages[index], codec_named(format_)
        costs = chain.formats[format_]
        planned = costs.saved_bytes[index]
        encoded_input, encoded_output = chain.encoded(format_, index), chain.encoded(format_, index + 1)
        if stage.saves_input and encoded_input and any(self.forms.find(t, codec) is None for t in tensors_of(value)):
            planned += costs.stored_bytes[index]
        if stage.saves_output:
            planned += costs.stored_bytes[index + 1] if encoded_output else chain.activation_bytes(index + 1)
        account = Account(self.allowance, f"what stage {stage.name!r} saves", planned)
        dense = frozenset() if encoded_input else frozenset(storage_keys(value))
        return Encoder(codec, self.forms, account, dense, dense_output=not encoded_output)


def graph_clock() -> int:
    """Return the number that this thread's next node of an autograd graph gets."""
    number: int = _get_sequence_nr()
    return number


def saves_late(output: Any, since: int) -> bool:
    """Whether a stage that began at a time of :func:`graph_clock` saves a tensor before it is written."""
    todo = [tensor.grad_fn for tensor in tensors_of(output)]
    seen: set[Any] = set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen and node._sequence_nr() >= since:
            seen.add(node)
            if node.name().startswith(LATE):
                return True
            todo += [following for following, _ in node.next_functions]
    return False
