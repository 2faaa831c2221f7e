"""Backward passes of single stages, as they are in a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from revolve.storage.boundary import bytes_of, cut, storage_keys, tensors_of

from .stages import StageModule

__all__ = ["one_sum", "outliving", "reverse"]


def one_sum(output: Any) -> torch.Tensor | None:
    """Return a sum whose backward lets the engine itself make the gradient of the output."""
    parts = [(t * 1).sum() for t in tensors_of(output) if t.requires_grad]
    return None if not parts else parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def reverse(
    roots: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], leaf: Any, parameters: Sequence[torch.Tensor]
) -> None:
    """Run a stage's backward; nothing but its input and its parameters gets a gradient."""
    inputs = [t for t in (*tensors_of(leaf), *parameters) if t.requires_grad]
    if roots and inputs:
        torch.autograd.backward(roots, gradients, inputs=inputs)


def outliving(stage: StageModule, output: Any, inputs: set[int], *, last: bool) -> list[Any]:
    """Return a list that holds what outlives a stage's backward in a step, to be dropped behind it.

    That is the output of the ``last`` stage where the caller has it, and gradients that others have as well, or that
    are parts of others: they come into the list when the backward runs. Where the stage passes on as many bytes of its
    ``inputs`` (by identity), it is the gradient of those, which is there in any case.
    """
    passed = bytes_of([t for t in tensors_of(output) if t.requires_grad and storage_keys(t) <= inputs])
    staying: list[Any] = [cut(output)] if last and stage.output_stays else []
    for tensor in stage.shared(output):
        if tensor.requires_grad and tensor.nbytes > passed:
            tensor.register_hook(staying.append)
    return staying
