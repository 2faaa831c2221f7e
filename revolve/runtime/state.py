"""State outside the tensors: random numbers, buffers, training flags, autocast.

Running a stage again must see what its first run saw, and leave no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from .exceptions import RecomputeError
from .stages import StageModule

__all__ = ["AutocastState", "RandomState", "StageState", "devices_of", "kept_buffers", "norm_statistics"]

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


def kept_buffers(stage: StageModule) -> list[tuple[str, torch.Tensor]]:
    """Return the other buffers of the stage, with their names: a stage may read what it changes."""
    return [
        (f"{name} of module {number} ({type(module).__name__})", buffer)
        for number, module in enumerate(stage.modules)
        if not isinstance(module, nn.modules.batchnorm._NormBase)
        for name, buffer in module._buffers.items()
        if buffer is not None
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
    """

    def __init__(self, stage: StageModule, changing: set[str] | None) -> None:
        self.stage = stage
        self.training = tuple(module.training for module in stage.modules)
        self.random: RandomBytes | None = None
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.changing = changing
        self.names: list[str] = []
        self.versions: list[tuple[str, torch.Tensor, int]] = []
        for name, buffer in kept_buffers(stage):
            if changing is None or name in changing:
                self.names.append(name)
                self.before.append((buffer, buffer.detach().clone()))
            else:
                self.versions.append((name, buffer, buffer._version))

    def finish(self) -> set[str]:
        """Compare buffers after the first run; keep old values of those that changed.

        Returns
        -------
        set of str
            Names of the buffers that the stage changes.

        Raises
        ------
        RecomputeError
            If a buffer changed that earlier runs did not change, so its old value is lost.
        """
        if self.changing is None:
            pairs = [
                (name, pair) for name, pair in zip(self.names, self.before, strict=True) if not same(pair[0], pair[1])
            ]
            self.names, self.before = [name for name, _ in pairs], [pair for _, pair in pairs]
            self.changing = set(self.names)
        for name, buffer, version in self.versions:
            if buffer._version != version:
                raise RecomputeError(
                    f"stage {self.stage.name!r} changed its buffer {name}, which it had left alone in earlier steps; "
                    "call revolve.checkpointed again on the model before this step"
                )
        self.versions = []
        return self.changing

    @contextmanager
    def replayed(self) -> Iterator[set[int]]:
        """Let buffers and training flags be those of the first run; yield the temporary storages."""
        swapped: list[tuple[torch.Tensor, torch.Tensor]] = []
        flags = [(m, m.training) for m, was in zip(self.stage.modules, self.training, strict=True) if m.training != was]
        try:
            for module, flag in flags:
                module.training = not flag
            old = [*((b, b) for b in norm_statistics(self.stage)), *self.before]
            for buffer, value in old:
                swapped.append((buffer, buffer.data))
                buffer.data = value.detach().clone()
            yield {buffer.untyped_storage()._cdata for buffer, _ in swapped}
        finally:
            for buffer, data in reversed(swapped):
                buffer.data = data
            for module, flag in flags:
                module.training = flag


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal bit for bit."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    plain_a, plain_b = (t.detach().contiguous().cpu().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(plain_a, plain_b)
