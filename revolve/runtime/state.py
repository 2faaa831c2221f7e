"""State outside the tensors: random numbers, buffers, training flags, autocast.

Running a stage again must see what its first run saw, and leave no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from revolve.storage.boundary import storage_keys, versions_of

from .exceptions import RecomputeError
from .stages import StageModule

__all__ = ["AutocastState", "RandomState", "StageState", "devices_of", "norm_statistics"]

RandomBytes = tuple[bytes, ...]


def devices_of(tensors: Iterable[torch.Tensor]) -> tuple[torch.device, ...]:
    """Return the accelerators that tensors live on; the CPU is always meant as well."""
    return tuple(dict.fromkeys(t.device for t in tensors if t.device.type == "cuda"))


@dataclass(frozen=True)
class RandomState:
    """The random number generators a run may draw from: the CPU's and those of some devices."""

    devices: tuple[torch.device, ...]

    def read(self) -> RandomBytes:
        """Return the states; as bytes, since as tensors they would count as training memory."""
        states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self.devices)]
        return tuple(state.numpy().tobytes() for state in states)

    def write(self, states: RandomBytes) -> None:
        """Set the states."""
        first, *others = (torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in states)
        torch.set_rng_state(first)
        for device, state in zip(self.devices, others, strict=True):
            torch.cuda.set_rng_state(state, device)


@dataclass(frozen=True)
class AutocastState:
    """Whether autocast is on, for each device type."""

    modes: tuple[tuple[str, bool, torch.dtype], ...]
    cache: bool

    @classmethod
    def current(cls, devices: Iterable[torch.device]) -> AutocastState:
        """Read the state of the CPU and the given devices."""
        kinds = dict.fromkeys(["cpu", *(device.type for device in devices)])
        modes = tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds)
        return cls(modes, torch.is_autocast_cache_enabled())

    def enter(self, stack: ExitStack) -> None:
        """Enter this state until ``stack`` closes, where it differs from the current one."""
        for kind, enabled, dtype in self.modes:
            if enabled or torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=self.cache))


def norm_statistics(stage: StageModule) -> list[torch.Tensor]:
    """Return the running statistics that the stage updates but, in training mode, never reads."""
    return [
        buffer
        for module in stage.modules
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.training
        for buffer in module._buffers.values()
        if buffer is not None
    ]


@dataclass(frozen=True)
class Entry:
    """A parameter or buffer as the first run found it.

    Attributes
    ----------
    name
        For people.
    table, key
        Where its module keeps it.
    tensor
        The tensor; None where there was none.
    version
        Its version counter.
    """

    name: str
    table: dict[str, Any]
    key: str
    tensor: torch.Tensor | None
    version: tuple[int, ...]

    @property
    def changed(self) -> bool:
        """Whether there is another tensor now, or it was changed in place."""
        return self.table.get(self.key) is not self.tensor or versions_of(self.tensor) != self.version


def entries_of(stage: StageModule, *, buffers: bool) -> list[Entry]:
    """Return the parameters of the stage, or its buffers but for those of norms: a stage may read what it changes."""
    loose = [] if buffers else [(str(number), tensor) for number, tensor in enumerate(stage.loose)]
    return [
        Entry(f"tensor {number} outside of modules", {number: tensor}, number, tensor, versions_of(tensor))
        for number, tensor in loose
    ] + [
        Entry(f"{key} of module {number} ({type(module).__name__})", table, key, tensor, versions_of(tensor))
        for number, module in enumerate(stage.modules)
        if not (buffers and isinstance(module, nn.modules.batchnorm._NormBase))
        for table in (module._buffers if buffers else module._parameters,)
        for key, tensor in table.items()
    ]


class StageState:
    """What the first run of one stage saw.

    Parameters
    ----------
    stage
        The stage.
    changing
        Names of the buffers that the stage is known to change, found by :meth:`finish`; the set is
        shared by all runs of a model. None before the first run: then every buffer is compared.

    Attributes
    ----------
    before
        Names of the buffers that the stage changes (may change, until :meth:`finish`), each with the
        buffer and a copy of its old value.
    """

    def __init__(self, stage: StageModule, changing: set[str] | None) -> None:
        self.stage = stage
        self.training = tuple(module.training for module in stage.modules)
        self.random: RandomBytes | None = None
        self.changing = changing
        self.parameters = entries_of(stage, buffers=False)
        self.buffers = entries_of(stage, buffers=True)
        self.before = {
            entry.name: (entry.tensor, entry.tensor.detach().clone())
            for entry in self.buffers
            if entry.tensor is not None and (changing is None or entry.name in changing)
        }

    def finish(self) -> set[str]:
        """Compare buffers and parameters after the first run; keep old values of buffers that changed.

        Returns
        -------
        set of str
            Names of the buffers that the stage changes.

        Raises
        ------
        RecomputeError
            If the stage changed one of its parameters, or a buffer that earlier runs did not change, so that
            its old value is lost.
        """
        for entry in self.parameters:
            if versions_of(entry.tensor) != entry.version:
                raise RecomputeError(
                    f"stage {self.stage.name!r} changes {entry.name} in its own forward, as Embedding(max_norm=...) "
                    "does, so it cannot be run again; change it outside of the model"
                )
        if self.changing is None:
            self.changing = {entry.name for entry in self.buffers if self.differs(entry)}
        for entry in self.buffers:
            if entry.name not in self.changing and entry.changed:
                raise RecomputeError(
                    f"stage {self.stage.name!r} changed its buffer {entry.name}, which it had left alone in earlier "
                    "steps; call revolve.checkpointed again on the model before this step"
                )
        self.before = {name: pair for name, pair in self.before.items() if name in self.changing}
        return self.changing

    def differs(self, entry: Entry) -> bool:
        """Whether a buffer was replaced by another tensor, or changed by content."""
        if entry.table.get(entry.key) is not entry.tensor:
            return True
        return entry.tensor is not None and not same(*self.before[entry.name])

    @contextmanager
    def replayed(self) -> Iterator[set[int]]:
        """Let buffers and training flags be those of the first run; yield the temporary storages.

        Raises
        ------
        RecomputeError
            If a parameter, or a buffer that the stage does not change, was changed in place since.
        """
        changing = self.changing or set()
        for entry in (*self.parameters, *(entry for entry in self.buffers if entry.name not in changing)):
            if versions_of(entry.tensor) != entry.version:
                raise RecomputeError(
                    f"stage {self.stage.name!r} cannot be run again: {entry.name} has been changed in place since the "
                    "forward pass; change parameters and buffers (optimizer.step()) after backward"
                )
        replaced = [e for e in (*self.parameters, *self.buffers) if e.table.get(e.key) is not e.tensor]
        present = [(entry.table, entry.key, entry.table.get(entry.key)) for entry in replaced]
        swapped: list[tuple[torch.Tensor, torch.Tensor]] = []
        flags = [(m, m.training) for m, was in zip(self.stage.modules, self.training, strict=True) if m.training != was]
        try:
            for module, flag in flags:
                module.training = not flag
            for entry in replaced:
                entry.table[entry.key] = entry.tensor
            old = [*((b, b) for b in norm_statistics(self.stage)), *self.before.values()]
            for buffer, value in old:
                swapped.append((buffer, buffer.data))
                buffer.data = value.detach().clone()
            yield storage_keys([buffer for buffer, _ in swapped])
        finally:
            for buffer, data in reversed(swapped):
                buffer.data = data
            for table, key, tensor in present:
                table[key] = tensor
            for module, flag in flags:
                module.training = flag


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal bit for bit."""
    if a.shape != b.shape or a.dtype != b.dtype or a.is_sparse != b.is_sparse:
        return False
    if a.is_sparse:
        return same(a._indices(), b._indices()) and same(a._values(), b._values())
    plain_a, plain_b = (t.detach().contiguous().cpu().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(plain_a, plain_b)
