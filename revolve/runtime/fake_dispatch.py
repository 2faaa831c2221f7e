"""Watches operations on fake tensors: what they allocate, how long they would take, what they write and draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import increment_version
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from revolve.storage.boundary import tensors_of

from .allocations import Tracer
from .devices import DeviceDescription
from .fake_scratch import scratch_bytes
from .fake_storages import Ledger, LedgerTracer
from .generators import outside_modes

__all__ = ["FakeDevice"]

aten = torch.ops.aten
DEVICE_OF = torch.ops.prim.device.default

# These write running statistics without saying so in their schema, and so without raising versions.
BATCH_NORMS = {aten.native_batch_norm.default: (3, 4, 5), aten.cudnn_batch_norm.default: (3, 4, 5)}

SETTERS = frozenset((aten.set_.source_Storage, aten.set_.source_Storage_storage_offset))
UNWRITTEN = frozenset((aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default))


class FakeDevice(TorchDispatchMode):
    """A device that runs nothing, and knows what it would have taken.

    To be entered on top of a ``FakeTensorMode``.

    Parameters
    ----------
    description
        How fast it is.
    mode
        The mode below.

    Attributes
    ----------
    ledger
        Its memory.
    elapsed
        Its clock, in seconds.
    """

    def __init__(self, description: DeviceDescription, mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.description = description
        self.mode = mode
        self.ledger = Ledger()
        self.elapsed = 0.0

    def tracer(self) -> Tracer:
        """Return a tracer of the ledger that begins now."""
        return LedgerTracer(self.ledger)

    def seconds(self) -> float:
        """Return the clock."""
        return self.elapsed

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation below; where it is given a storage, the mode's cache would keep that alive."""
        if func not in SETTERS:
            return func(*args, **kwargs)
        self.mode.cache_enabled, cached = False, self.mode.cache_enabled
        try:
            return func(*args, **kwargs)
        finally:
            self.mode.cache_enabled = cached

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on fake tensors."""
        if func is DEVICE_OF:
            return getattr(args[0], "fake_device", args[0].device)
        kwargs = kwargs or {}
        output = self.run(func, args, kwargs)
        if func.namespace == "prim":
            return output
        given, made = tensors_of((args, kwargs)), tensors_of(output)
        fresh = self.ledger.add(made, given, scratch_bytes(func, args, output))
        drawn = sum(tensor.numel() for tensor in made[:1]) if draws(func, args, kwargs) else 0
        if (fresh or func._schema.is_mutable) and func not in UNWRITTEN:
            moved = sum(map(bytes_touched, given)) + (fresh or sum(map(bytes_touched, made)))
            flops = count_flops(func, args, kwargs, output)
            self.elapsed += self.description.seconds(flops, moved, type_of(made), drawn)
        if func in BATCH_NORMS:
            mean, variance, training = (args[position] for position in BATCH_NORMS[func])
            if training:
                increment_version([tensor for tensor in (mean, variance) if tensor is not None])
        if drawn:
            draw(kwargs.get("generator"))
        return output


def bytes_touched(tensor: torch.Tensor) -> int:
    """Return the bytes of memory that a tensor's elements lie in; expanded ones are read once."""
    if tensor.layout is not torch.strided:
        return 0
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def type_of(tensors: Sequence[torch.Tensor]) -> str:
    """Return the name of the type that an operation computes in: its first result's."""
    return str(tensors[0].dtype).removeprefix("torch.") if tensors else "float32"


def count_flops(func: Any, args: Any, kwargs: Any, output: Any) -> float:
    """Return the floating-point operations of a matrix product or convolution; 0 of anything else."""
    if func is aten._scaled_dot_product_flash_attention_for_cpu.default:
        return float(sdpa_flop_count(*(tensor.shape for tensor in args[:3])))
    count = flop_registry.get(func._overloadpacket)
    return 0.0 if count is None else float(count(*args, **kwargs, out_val=output))


def draws(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation draws random numbers."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return bool(given.get("dropout_p", 0.0)) or "dropout_p" not in names


def draw(generator: torch.Generator | None) -> None:
    """Move a generator on, so that a stage that draws is seen to do so."""
    with outside_modes():
        torch.rand(1, generator=generator)
