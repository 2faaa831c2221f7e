"""Memory as the allocator sees it, phase by phase.

On a CPU the allocation events of ``torch.profiler`` are replayed; only frees of blocks that were
allocated inside the trace count, since the profiler does not know the size of older ones. On CUDA the
caching allocator's own counters are read.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from .exceptions import MeasurementError
from .instruments import instruments

__all__ = ["Phase", "Tracer", "trace_allocations"]


# torch has one profiler; other threads wait for it.
MEASURING = threading.RLock()


class Phase(NamedTuple):
    """Bytes above the level at the start of the trace.

    Attributes
    ----------
    start, peak, end
        At the beginning, the largest, and at the end of the phase.
    """

    start: int
    peak: int
    end: int


class Tracer:
    """Splits a trace into phases: each :meth:`mark` ends one and begins the next.

    Attributes
    ----------
    phases
        The phases, once the trace has ended.
    """

    def __init__(self) -> None:
        self.phases: list[Phase] = []

    def mark(self) -> None:
        """End the phase."""
        raise MeasurementError("this tracer cannot mark")


class CpuTracer(Tracer):
    """Finds its marks among the allocation events by their address: each one lives until the end."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[torch.Tensor] = []

    def mark(self) -> None:
        """End the phase."""
        self.marks.append(torch.empty(1, dtype=torch.uint8))

    def replay(self, events: Iterable[tuple[int, int]]) -> None:
        """Turn (address, signed bytes) in order of time into phases."""
        records = list(events)
        last = {address: position for position, (address, size) in enumerate(records) if size > 0}
        marks = {last[mark.data_ptr()] for mark in self.marks if mark.data_ptr() in last}
        if len(marks) != len(self.marks):
            raise MeasurementError(
                "torch.profiler did not report the allocations of this trace; is another one active?"
            )
        live: dict[int, int] = {}
        level = start = peak = 0
        for position, (address, size) in enumerate(records):
            if position in marks:
                self.phases.append(Phase(start, peak, level))
                start = peak = level
            elif size > 0:
                live[address] = size
                level += size
                peak = max(peak, level)
            else:
                level -= live.pop(address, 0)
        self.marks.clear()


class CudaTracer(Tracer):
    """Reads the counters of the caching allocator."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.base = self.start = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)

    def mark(self) -> None:
        """End the phase."""
        peak, end = torch.cuda.max_memory_allocated(self.device), torch.cuda.memory_allocated(self.device)
        self.phases.append(Phase(self.start - self.base, peak - self.base, end - self.base))
        self.start = end
        torch.cuda.reset_peak_memory_stats(self.device)


@contextmanager
def trace_allocations(device: torch.device) -> Iterator[Tracer]:
    """Trace the allocations on a device.

    Parameters
    ----------
    device
        A CPU or CUDA device.

    Yields
    ------
    Tracer
        Call its ``mark()`` at the end of each phase; ``phases`` is filled when the block ends.

    Raises
    ------
    MeasurementError
        If the device is of another kind, or a profiler is active already.
    """
    stand_in = instruments()
    if stand_in is None and device.type not in ("cpu", "cuda"):
        raise MeasurementError(f"memory on {device.type!r} cannot be measured; move the model to a CPU or CUDA device")
    with uncollected():
        if stand_in is not None:
            yield stand_in.tracer()
        elif device.type == "cuda":
            yield CudaTracer(device)
        else:
            with MEASURING:
                yield from trace_cpu()


@contextmanager
def uncollected() -> Iterator[None]:
    """Let no garbage be collected: what older cycles hold would be freed in the midst of a trace.

    Those of the trace before, all of them young, are collected first; to look at all objects takes longer than to run
    a small model.
    """
    gc.collect(1)
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def trace_cpu() -> Iterator[Tracer]:
    """Trace the allocations of the CPU."""
    if torch.autograd.profiler._is_profiler_enabled:
        raise MeasurementError("memory cannot be measured while another torch profiler runs; stop that one first")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler writes to standard error
    tracer = CpuTracer()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield tracer
    assert profiler.profiler is not None
    tracer.replay(allocation_events(profiler.profiler.kineto_results))


def allocation_events(results: Any) -> list[tuple[int, int]]:
    """Return (address, signed bytes) of every CPU allocation event, in order of time."""
    events = []
    todo = list(reversed(results.experimental_event_tree()))
    while todo:
        event = todo.pop()
        todo.extend(reversed(event.children))
        if event.tag == torch._C._profiler._EventType.Allocation:
            fields = event.extra_fields
            if fields.device.type == "cpu":
                events.append((event.start_time_ns, fields.ptr, fields.alloc_size))
    events.sort(key=lambda entry: entry[0])
    return [(address, size) for _, address, size in events]
