"""Counts the bytes of storages that have sizes and no memory, from when they are made until they are freed."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch

from .allocations import Phase, Tracer

__all__ = ["Ledger", "LedgerTracer"]


class Ledger:
    """The storages that are alive.

    A weak reference to a storage ends with the storage itself, whoever holds it: Python, autograd's graph, or a
    view. So the ledger falls where the memory of a real run would be given back.

    Attributes
    ----------
    level, peak
        Bytes alive now, and the most since the peak was last reset.
    """

    def __init__(self) -> None:
        self.level = 0
        self.peak = 0
        self.alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}

    def add(self, tensors: Iterable[torch.Tensor], known: Iterable[torch.Tensor], scratch: int = 0) -> int:
        """Count what an operation made; return its bytes.

        Parameters
        ----------
        tensors
            What it returned.
        known
            What it was given: their storages are not new.
        scratch
            Bytes that it takes in passing, beside what it returns.
        """
        before = self.level
        seen = {tensor.untyped_storage()._cdata for tensor in known if tensor.layout is torch.strided}
        for tensor in tensors:
            if tensor.layout is torch.strided and tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive and storage._cdata not in seen:
                    self.begin(storage)
        self.peak = max(self.peak, self.level + scratch)
        return self.level - before

    def begin(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is freed."""
        key, size = storage._cdata, storage.nbytes()
        alive = self.alive

        def end(_: object) -> None:
            if alive.pop(key, None) is not None:
                self.level -= size

        alive[key] = (weakref.ref(storage, end), size)
        self.level += size


class LedgerTracer(Tracer):
    """Reads a ledger phase by phase."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.base = self.start = ledger.peak = ledger.level

    def mark(self) -> None:
        """End the phase."""
        ledger = self.ledger
        self.phases.append(Phase(self.start - self.base, ledger.peak - self.base, ledger.level - self.base))
        self.start = ledger.peak = ledger.level
