"""Keeps stored activations and saved tensors of one run in the formats that its schedule names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any

import torch

from revolve.schedules.chain import Chain
from revolve.storage.accounts import Account, Allowance
from revolve.storage.boundary import tensors_of
from revolve.storage.codecs import Codec, codec_named
from revolve.storage.shared_forms import EncodedTensor, Forms, FormSnapshot

from .inputs import Inputs, held_anyway
from .saving import Content, Holder, Kept
from .stages import StageModule

__all__ = ["Encoder", "Encoding", "saves_late"]

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
    inputs
        What the stage takes: what is held anyway stays dense.
    encoded_input, encoded_output
        Whether input and output are kept in the format, too.
    input_bytes
        Planned for the form of the input, where the run has to make it.
    """

    def __init__(
        self,
        codec: Codec,
        forms: Forms,
        account: Account,
        inputs: Inputs,
        *,
        encoded_input: bool,
        encoded_output: bool,
        input_bytes: int = 0,
    ) -> None:
        self.codec = codec
        self.forms = forms
        self.account = account
        self.inputs = inputs
        self.encoded_input = encoded_input
        self.encoded_output = encoded_output
        self.input_bytes = input_bytes

    def __call__(self, tensor: torch.Tensor) -> Content:
        """Return what a saved tensor is kept as."""
        passing = False
        if tensor.layout is torch.strided:
            key = tensor.untyped_storage()._cdata
            passing = key in self.inputs.passing
            if key in self.inputs.held or (passing and not self.encoded_input):
                return Kept(tensor)
            if passing and self.forms.find(tensor, self.codec) is None:
                self.account.planned += self.input_bytes
                self.input_bytes = 0
        return self.forms.encode(tensor, self.codec, self.account, finished=passing) or Kept(tensor)

    def refer(self, dense: Any, holders: Iterable[Holder]) -> None:
        """Let holders refer to what the stage has made and what stays dense.

        Only when it is made it is known which of the saved tensors it is.
        """
        given = {t.untyped_storage()._cdata: t for t in tensors_of(dense) if t.layout is torch.strided}
        views = {id(shared): t for t in given.values() if (shared := self.forms.find(t, self.codec)) is not None}
        for holder in holders if views else ():
            if isinstance(holder.kept, EncodedTensor) and id(holder.kept.shared) in views:
                holder.kept = Kept(holder.kept.view_of(views[id(holder.kept.shared)]))

    def finish(self, output: Any, holders: Iterable[Holder]) -> None:
        """Close the account; where the output stays dense, let holders refer to it."""
        if not self.encoded_output:
            self.refer(output, holders)
        self.account.close()


class Encoding:
    """The forms of one run.

    Parameters
    ----------
    stages
        The stages.
    chain, slack
        As in ``Program``.
    own
        Identities of the storages of the model's input.
    strain
        Called when forms come close to what was planned for them.
    """

    def __init__(
        self,
        stages: Sequence[StageModule],
        chain: Chain,
        slack: int | None,
        own: Set[int],
        strain: Callable[[], None],
    ) -> None:
        self.stages = stages
        self.chain = chain
        self.allowance = Allowance(slack, strain)
        self.forms = Forms(own)

    def store(self, index: int, value: Any, format_: str) -> FormSnapshot:
        """Return x_index kept in a format."""
        planned = self.chain.formats[format_].stored_bytes[index]
        account = Account(self.allowance, f"the input of stage {self.chain.stages[index].name!r}", planned)
        dense = held_anyway(self.stages, index, value)
        snapshot = FormSnapshot(value, codec_named(format_), self.forms, account, dense)
        account.close()
        return snapshot

    def encoder(self, index: int, value: Any, format_: str) -> Encoder:
        """Return what keeps the saved tensors of a run of stage ``index`` on ``value``.

        Of a stage that the model calls itself the value is its ``Inputs``, which grow while it is under way.
        """
        chain, stage = self.chain, self.chain.stages[index]
        costs = chain.formats[format_]
        planned = costs.saved_bytes[index]
        encoded_input, encoded_output = chain.encoded(format_, index), chain.encoded(format_, index + 1)
        if stage.saves_output:
            planned += costs.stored_bytes[index + 1] if encoded_output else chain.activation_bytes(index + 1)
        return Encoder(
            codec_named(format_),
            self.forms,
            Account(self.allowance, f"what stage {stage.name!r} saves", planned),
            value if isinstance(value, Inputs) else Inputs.of(self.stages, index, value),
            encoded_input=encoded_input,
            encoded_output=encoded_output,
            input_bytes=costs.stored_bytes[index] if stage.saves_input and encoded_input else 0,
        )


def saves_late(output: Any, since: int) -> bool:
    """Whether a stage saves a tensor before it is written, by its nodes since a time of :data:`graph_clock`."""
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
