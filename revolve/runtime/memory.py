"""How much memory a model's device has free."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

__all__ = ["device_of", "free_bytes"]


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def free_bytes(model: nn.Module) -> int:
    """Return the bytes that "100%" stands for: what the model's device has free.

    On CUDA this includes what torch has reserved but does not use; on a CPU it is the memory
    available to new programs.
    """
    device = device_of(model)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    table = Path("/proc/meminfo")
    if table.exists():
        for line in table.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
