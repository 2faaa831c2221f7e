"""What a run by a plan cannot be part of: refused when it begins, with what to do instead."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils import parametrize

from .exceptions import ModelError

__all__ = ["check_surroundings"]


def check_surroundings(modules: Iterable[nn.Module]) -> None:
    """Refuse what keeps a stage from being run again later.

    Raises
    ------
    ModelError
        Inside a transform of torch.func, or where ``parametrize.cached`` shares a weight among the stages.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise ModelError(
            "a model with a plan cannot run inside torch.func transforms (grad, vjp, jvp, vmap ...), which know no "
            "saved-tensor hooks; call revolve.restore(model) first, or use torch.autograd.grad"
        )
    if parametrize._cache_enabled and any(parametrize.is_parametrized(module) for module in modules):
        raise ModelError(
            "a model with a plan cannot run inside torch.nn.utils.parametrize.cached(): a weight that is computed once "
            "for several stages cannot be computed again for one; call the model outside of it"
        )
