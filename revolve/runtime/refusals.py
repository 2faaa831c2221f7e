"""What a run by a plan cannot be part of, and what keeps a stage from being run again: with what to do instead."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils import parametrize

from .exceptions import ModelError, RecomputeError
from .likeness import UNCOMPILED

__all__ = ["changed_since", "changed_within", "check_surroundings", "differentiated_within"]

COPY = (
    "where the model's own forward reads and changes it, let it read a copy (buffer.clone()), or do both in one "
    "module of its own"
)


def check_surroundings(modules: Iterable[nn.Module]) -> None:
    """Refuse what keeps a stage from being run again later.

    Raises
    ------
    ModelError
        Inside a transform of torch.func, in a strict export by a torch that runs the model to see what it returns, or
        where ``parametrize.cached`` shares a weight among the stages.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise ModelError(
            "a model with a plan cannot run inside torch.func transforms (grad, vjp, jvp, vmap ...), which know no "
            "saved-tensor hooks; call revolve.restore(model) first, or use torch.autograd.grad"
        )
    if torch.compiler.is_exporting():
        raise ModelError(UNCOMPILED)
    if parametrize._cache_enabled and any(parametrize.is_parametrized(module) for module in modules):
        raise ModelError(
            "a model with a plan cannot run inside torch.nn.utils.parametrize.cached(): a weight that is computed once "
            "for several stages cannot be computed again for one; call the model outside of it"
        )


def changed_within(stage: str, what: str, *, taken: bool) -> RecomputeError:
    """Return the error for a stage in whose run one of its parameters is changed, or a tensor that it has taken."""
    if taken:
        why = f"cannot be run again: it takes {what}, which is changed in place before the stage ends; {COPY}"
        return RecomputeError(f"stage {stage!r} {why}")
    why = f"changes {what} in its own forward, as Embedding(max_norm=...) does, so it cannot be run again"
    return RecomputeError(f"stage {stage!r} {why}; change it outside of the model")


def changed_since(stage: str, what: str, *, taken: bool) -> RecomputeError:
    """Return the error for a stage that would have to be run again when something that it uses is not what it was."""
    return RecomputeError(
        f"stage {stage!r} cannot be run again: {what} has been changed in place since the forward pass; "
        f"change parameters and buffers (optimizer.step()) after backward{f'; {COPY}' if taken else ''}"
    )


def differentiated_within(stage: str) -> RecomputeError:
    """Return the error for a stage that another one, run again, differentiates in its own forward."""
    return RecomputeError(
        f"stage {stage!r} is differentiated in the forward of a stage, which cannot be run again "
        "(torch.autograd.grad); call revolve.checkpointed on the part of the model that is differentiated there"
    )
