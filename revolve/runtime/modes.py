"""Modes that decide what a stage computes: autocast, default dtype and device, deterministic algorithms, kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Modes"]

CPU = torch.device("cpu")


def default_device() -> torch.device:
    """Return the default device: another one than the CPU is a mode on torch's stack, which takes long to look at."""
    return torch.get_default_device() if torch._C._len_torch_function_stack() else CPU


def set_deterministic(allowed: bool) -> None:
    """Allow only deterministic algorithms, or all; whether others only warn stays as it is."""
    torch.use_deterministic_algorithms(allowed, warn_only=torch.is_deterministic_algorithms_warn_only_enabled())


def set_warn_only(warn: bool) -> None:
    """Let others than deterministic algorithms only warn, or fail, where they are not allowed."""
    torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled(), warn_only=warn)


# Read by functions of torch._C where those around them, in Python, do no more: this is asked for at every stage.
SWITCHES: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch._C._get_deterministic_algorithms, set_deterministic),
    (torch._C._get_deterministic_algorithms_warn_only, set_warn_only),
    (torch._C._get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch._C._get_flash_sdp_enabled, torch._C._set_sdp_use_flash),
    (torch._C._get_mem_efficient_sdp_enabled, torch._C._set_sdp_use_mem_efficient),
    (torch._C._get_math_sdp_enabled, torch._C._set_sdp_use_math),
    (torch._C._get_cudnn_sdp_enabled, torch._C._set_sdp_use_cudnn),
)


@dataclass(frozen=True, slots=True)
class Modes:
    """The modes of one moment.

    Attributes
    ----------
    autocast
        For each device type its name, whether autocast is on there, and its dtype.
    cache
        Whether autocast keeps the casts of parameters.
    switches
        Values of ``SWITCHES``.
    device
        The default device.
    """

    autocast: tuple[tuple[str, bool, torch.dtype], ...]
    cache: bool
    switches: tuple[Any, ...]
    device: torch.device

    @classmethod
    def current(cls, devices: Iterable[torch.device]) -> Modes:
        """Read the modes; autocast of the CPU and of the given devices."""
        kinds = dict.fromkeys(["cpu", *(device.type for device in devices)])
        autocast = tuple([(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds])
        switches = tuple([get() for get, _ in SWITCHES])
        return cls(autocast, torch.is_autocast_cache_enabled(), switches, default_device())

    @property
    def autocasts(self) -> bool:
        """Whether autocast is on anywhere."""
        return any(enabled for _, enabled, _ in self.autocast)

    def present(self) -> bool:
        """Whether these are the modes of now."""
        for (get, _), value in zip(SWITCHES, self.switches, strict=True):
            if get() != value:
                return False
        for kind, enabled, dtype in self.autocast:
            if torch.is_autocast_enabled(kind) is not enabled or torch.get_autocast_dtype(kind) is not dtype:
                return False
        return torch.is_autocast_cache_enabled() is self.cache and default_device() == self.device

    def active(self) -> bool:
        """Whether these are the modes of now and need no entering: autocast, which keeps casts, always does."""
        return not self.autocasts and self.present()

    def put_back(self) -> None:
        """Let these be the modes again, after a function that has set others and was ended before it put them back."""
        for (get, put), value in zip(SWITCHES, self.switches, strict=True):
            if get() != value:
                put(value)
        for kind, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)

    def enter(self, stack: ExitStack) -> None:
        """Enter these modes until ``stack`` closes, where they differ from the current ones."""
        for (get, put), value in zip(SWITCHES, self.switches, strict=True):
            present = get()
            if present != value:
                stack.callback(put, present)
                put(value)
        if default_device() != self.device:
            stack.enter_context(self.device)
        for kind, enabled, dtype in self.autocast:
            if enabled or torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=self.cache))
