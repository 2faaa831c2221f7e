"""Descriptions of devices: how fast they compute and copy, and how much memory they have."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from revolve.schedules.exceptions import RevolveError

__all__ = ["DEFAULT", "DEVICES", "DeviceDescription", "DeviceError", "calibrate", "find_device"]

GIB = 2**30
LARGE = 2**22  # elements: more than caches hold


class DeviceError(RevolveError, KeyError):
    """There is no description of that name."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class DeviceDescription:
    """What a device can do.

    Attributes
    ----------
    name
        For people, and for :func:`find_device`.
    flops
        Floating-point operations per second of matrix products, by type: ``"float32"``, ``"bfloat16"`` ... A type that
        is missing takes as long as float32.
    bandwidth
        Bytes per second, read and written together.
    memory_bytes
        Memory of the device.
    launch_seconds
        Time of an operation that computes nothing.
    draws
        Random numbers per second.
    efficiency
        Share of ``flops`` and ``bandwidth`` that programs reach; 1 where they were measured.
    source
        Where the figures are from.
    """

    name: str
    flops: Mapping[str, float] = field(hash=False)
    bandwidth: float
    memory_bytes: int
    launch_seconds: float = 5e-6
    draws: float = 1e8
    efficiency: float = 1.0
    source: str = ""

    def seconds(self, flops: float, moved_bytes: float, dtype: str = "float32", draws: int = 0) -> float:
        """Return the time of one operation: the longest of computing, moving and drawing, and the launch.

        Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009, doi 10.1145/1498765.1498785.

        Parameters
        ----------
        flops
            Floating-point operations of matrix products and convolutions.
        moved_bytes
            Bytes read and written.
        dtype
            Type of the products.
        draws
            Random numbers.
        """
        peak = self.flops.get(dtype, self.flops["float32"])
        longest = max(flops / peak, moved_bytes / self.bandwidth, draws / self.draws)
        return longest / self.efficiency + self.launch_seconds


# Peaks are the makers' for dense products; programs reach about half of them, hence the efficiencies.
DEVICES: dict[str, DeviceDescription] = {
    device.name: device
    for device in (
        DeviceDescription(
            name="odroid-xu4",
            flops={"float32": 64e9},
            bandwidth=14.9e9,
            memory_bytes=2 * GIB,
            launch_seconds=20e-6,
            draws=5e7,
            efficiency=0.3,
            source="Samsung Exynos 5422: four Cortex-A15 at 2.0 GHz, one 128-bit NEON multiply-add a cycle each; 2 GB "
            "LPDDR3 at 933 MHz, 2 x 32 bit (Hardkernel's data sheet)",
        ),
        DeviceDescription(
            name="raspberry-pi-5",
            flops={"float32": 153.6e9, "float16": 307.2e9},
            bandwidth=17.1e9,
            memory_bytes=8 * GIB,
            launch_seconds=10e-6,
            draws=1e8,
            efficiency=0.4,
            source="Broadcom BCM2712: four Cortex-A76 at 2.4 GHz, two 128-bit NEON multiply-adds a cycle each; "
            "LPDDR4X-4267, 32 bit; the board with 8 GB",
        ),
        DeviceDescription(
            name="rtx-4090",
            flops={"float32": 82.6e12, "float16": 165.2e12, "bfloat16": 165.2e12},
            bandwidth=1008e9,
            memory_bytes=24 * GIB,
            draws=1e11,
            efficiency=0.5,
            source="NVIDIA Ada GPU architecture white paper, appendix A; half types with float32 accumulation",
        ),
        DeviceDescription(
            name="a100-80gb",
            flops={"float64": 9.7e12, "float32": 19.5e12, "float16": 312e12, "bfloat16": 312e12},
            bandwidth=2039e9,
            memory_bytes=80 * GIB,
            draws=1e11,
            efficiency=0.5,
            source="NVIDIA A100 80 GB data sheet, SXM; float32 without TF32",
        ),
        DeviceDescription(
            name="h100",
            flops={"float64": 34e12, "float32": 67e12, "float16": 989e12, "bfloat16": 989e12},
            bandwidth=3350e9,
            memory_bytes=80 * GIB,
            draws=1e11,
            efficiency=0.5,
            source="NVIDIA H100 data sheet, SXM, without sparsity; float32 without TF32",
        ),
    )
}

# A CPU core of which only proportions matter: to rank stages by where no device was named.
DEFAULT = DeviceDescription("a CPU core", {"float32": 80e9}, 10e9, 0, 2e-6, 1.5e8)


def find_device(device: str | DeviceDescription) -> DeviceDescription:
    """Return the description of a device by its name; a description as it is.

    Raises
    ------
    DeviceError
        If there is none; the message lists them.
    """
    if isinstance(device, DeviceDescription):
        return device
    if not isinstance(device, str) or device not in DEVICES:
        raise DeviceError(
            f"device {device!r} is not described; choose one of {', '.join(DEVICES)}, or pass a "
            "revolve.DeviceDescription (revolve.calibrate() describes this machine)"
        )
    return DEVICES[device]


def calibrate(dtypes: tuple[str, ...] = ("float32",), *, side: int = 1024, repeats: int = 5) -> DeviceDescription:
    """Describe this machine's CPU, by timing matrix products, additions, drawing, and an operation on one number.

    Parameters
    ----------
    dtypes
        Types to time products of.
    side
        Rows and columns of the matrices.
    repeats
        Of each; the shortest counts.

    Returns
    -------
    DeviceDescription
        With torch's present number of threads, and the machine's memory.
    """
    flops = {name: 2 * side**3 / time_product(name, side, repeats) for name in dtypes}
    source, target = torch.ones(LARGE), torch.empty(LARGE)
    bandwidth = 2 * source.nbytes / time_call(lambda: source + 1, repeats)  # into memory that is new, as in a step
    draws = LARGE / time_call(lambda: target.bernoulli_(0.5, generator=torch.Generator()), repeats)
    small = torch.ones(1)
    launch = time_call(lambda: [small + 1 for _ in range(100)], repeats) / 100
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return DeviceDescription("this machine", flops, bandwidth, memory, launch, draws, 1.0, "measured")


def time_product(dtype: str, side: int, repeats: int) -> float:
    """Return the seconds of a product of square matrices."""
    matrix = torch.ones(side, side, dtype=getattr(torch, dtype))
    return time_call(lambda: matrix @ matrix, repeats)


def time_call(call: Callable[[], object], repeats: int) -> float:
    """Return the least CPU seconds of a call, after a first one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return min(times)
