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


def announce(run: Reached, packer: Packer, output: Any, start: int) -> bool:
    """Let the node that makes a stage's output, if it saves nothing, say when the stage's backward begins.

    It is behind all that the stage saves; or the output is a view, whose node is made before what is saved when that is
    written in place. It refers to the run weakly: whoever holds the output holds it [3]. Where a stage makes several
    tensors none says so: the backward of one may need nothing of what is saved for another.

    Parameters
    ----------
    run
        Is told.
    packer, output
        The stage's saved tensors, and its output.
    start
        When the stage began, by the numbers of the graph's nodes.

    Returns
    -------
    bool
        Whether there is such a node.
    """
    last = packer.last()
    holder = packer.holders[last]() if last >= 0 else None
    if holder is None:
        return False
    made = [tensor for tensor in tensors_of(output) if tensor.grad_fn and tensor.grad_fn._sequence_nr() >= start]
    if len(made) != 1:
        return False
    node = made[0].grad_fn
    if node is None or (node._sequence_nr() < holder.clock and not made[0]._is_view()):
        return False
    node.register_prehook(partial(tell, weakref.ref(run), packer.stage))
    return True


def tell(run: weakref.ref[Reached], stage: int, gradients: Sequence[torch.Tensor | None]) -> None:
    """Tell a run, if it is still there, that the backward of a stage begins."""
    found = run()
    if found is not None:
        found.reach(stage)
