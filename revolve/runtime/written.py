"""Parameters that a model changes in its own forward: their old values are kept before the first change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from revolve.storage.boundary import storage_keys, tensors_of

from .generators import outside_modes

__all__ = ["Written"]

# Older torch runs an operator of a higher order under a mode only by a rule for the two.
ASKS_FOR_RULES = not hasattr(TorchDispatchMode, "supports_higher_order_operators")


class Written:
    """Tensors that are written in place while this is watching.

    Copies of all parameters would take as much memory as the model.

    Parameters
    ----------
    tensors
        The tensors to look at; those of other layouts and without values are left out.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self.tensors: dict[int, list[torch.Tensor]] = {}
        for tensor in tensors:
            if not isinstance(tensor, FakeTensor) and not tensor.is_meta and tensor.layout is torch.strided:
                for key in storage_keys([tensor]):
                    self.tensors.setdefault(key, []).append(tensor)
        self.old: list[tuple[torch.Tensor, torch.Tensor, int]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at every operator in this block."""
        if not self.tensors:
            yield
        else:
            with Watching(self):
                yield

    def note(self, value: Any) -> None:
        """Keep the values of the tensors that share the memory of some that will be written."""
        for key in storage_keys(tensors_of(value)) & self.tensors.keys():
            for tensor in self.tensors.pop(key):
                self.old.append((tensor, tensor.detach().clone(), tensor._version))

    def put_back(self) -> None:
        """Give the tensors their old values and versions."""
        with torch.no_grad(), outside_modes():
            for tensor, value, version in self.old:
                tensor.copy_(value)
                torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))


class Watching(TorchDispatchMode):
    """Hands what operators are about to write to :meth:`Written.note`."""

    supports_higher_order_operators = True

    def __init__(self, written: Written) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.written = written
        if ASKS_FOR_RULES:
            for operator in torch._ops._higher_order_ops.values():
                operator.python_key_table.setdefault(Watching, partial(pass_on, operator))

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Let compiled stages run compiled."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator."""
        if isinstance(func, torch._ops.OpOverload) and func._schema.is_mutable:
            named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
            named.update(kwargs or {})
            writes = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
            self.written.note([named[name] for name in writes if name in named])
        return func(*args, **(kwargs or {}))


def pass_on(operator: Callable[..., Any], _: Watching, *args: Any, **kwargs: Any) -> Any:
    """Run an operator of a higher order, such as torch.cond, without watching it: it has no schema."""
    return operator(*args, **kwargs)
