"""Where the backward of a stage begins, if not with one of its saved tensors."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch

from revolve.storage.boundary import tensors_of

from .packing import Packer

__all__ = ["announce"]


class Reached(Protocol):
    """Is told that the backward of a stage begins."""

    def reach(self, stage: int) -> None:
        """Advance to a stage."""


def announce(run: Reached, packer: Packer, output: Any) -> bool:
    """Let the nodes that make a stage's output, and save nothing, say when its backward begins.

    They are behind all that it saves; or its output is a view, whose node is made before what is saved when it is
    written in place. They refer to the run weakly: whoever holds the output holds them [3].

    Parameters
    ----------
    run
        Is told.
    packer, output
        The stage's saved tensors, and its output.

    Returns
    -------
    bool
        Whether there are any.
    """
    last = packer.last()
    holder = packer.holders[last]() if last >= 0 else None
    if holder is None:
        return False
    made = [(tensor.grad_fn, tensor._is_view()) for tensor in tensors_of(output) if tensor.grad_fn is not None]
    nodes = {node for node, view in made if view or node._sequence_nr() >= holder.clock}
    for node in nodes:
        node.register_prehook(partial(tell, weakref.ref(run), packer.stage))
    return bool(nodes)


def tell(run: weakref.ref[Reached], stage: int, gradients: Sequence[torch.Tensor | None]) -> None:
    """Tell a run, if it is still there, that the backward of a stage begins."""
    found = run()
    if found is not None:
        found.reach(stage)
