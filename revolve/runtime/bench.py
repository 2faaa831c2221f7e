"""Runs single stages in each of the ways a schedule runs them, for their sizes and times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from statistics import median
from typing import Any, NamedTuple

import torch

from revolve.storage.boundary import bytes_of, cut, storage_keys, tensors_of

from .allocations import Phase, trace_allocations
from .exceptions import MeasurementError
from .isolation import gradients_present
from .saving import Packer, StopRebuild, hooked
from .stages import StageModule
from .state import StageState

__all__ = ["Bench", "Sizes", "measure_loss", "measure_sizes", "step_clock", "time_stages"]

# Passes over the chain: many for short chains, whose times are noisy, few for long ones.
FEW, SOME, MANY = 3, 5, 15
SHORT, LONG = 0.5, 30.0  # seconds


class Bench:
    """One stage, run in each of the ways a schedule runs it.

    Parameters
    ----------
    index, stage
        The stage.
    later
        The stages behind it.
    value
        Its input, for a first run that finds the buffers it changes.
    """

    def __init__(self, index: int, stage: StageModule, later: Sequence[StageModule], value: Any) -> None:
        self.index = index
        self.stage = stage
        self.later = later
        self.through = {tensor.untyped_storage()._cdata for tensor in stage.tensors()}
        first = StageState(stage, None)
        with hooked(Packer(self, index, stage.name, self.through).record(keep=False)):
            stage(cut(value))
        self.changing = first.finish()
        self.kept_bytes = sum(old.untyped_storage().nbytes() for _, old in first.before)

    def need(self, holder: Any) -> None:
        """Do nothing: holders are full while their backward runs."""

    def run(self, value: Any, *, keep: bool) -> tuple[Any, Packer]:
        """Run as ``forward`` or ``save``; return the output with its graph, and what was packed."""
        with StageState(self.stage, self.changing).replayed() as temporary:
            packer = Packer(self, self.index, self.stage.name, self.through)
            with hooked(packer.record(keep=keep, temporary=temporary)):
                return self.stage(cut(value)), packer

    def rebuild(self, value: Any, packer: Packer) -> None:
        """Run as ``rebuild``, into the holders of an earlier run."""
        with StageState(self.stage, self.changing).replayed() as temporary:
            pack, _ = packer.refill(temporary, stop=True)
            with suppress(StopRebuild), hooked(pack):
                self.stage(cut(value))


class Sizes(NamedTuple):
    """What one stage takes.

    Attributes
    ----------
    fields
        Sizes and flags of its ``Stage``.
    residue
        Bytes that its first run leaves until its backward, whatever the schedule: tensors that the graph
        holds by other ways than saving, and old values of buffers.
    """

    fields: dict[str, Any]
    residue: int


def measure_sizes(bench: Bench, value: Any, device: torch.device) -> tuple[Sizes, Any]:
    """Return the sizes of a stage, and its output."""
    with gradients_present(bench.stage, bench.later) as parameters:
        before = {id(parameter) for parameter in parameters if parameter.grad is not None}
        with trace_allocations(device) as tracer:
            output, _ = bench.run(value, keep=False)
            tracer.mark()
            following = cut(output)
            del output
            tracer.mark()
            output, packer = bench.run(value, keep=True)
            tracer.mark()
            saved = {h.kept.tensor.untyped_storage()._cdata for h in packer.live() if h.kept is not None}
            saves_input, saves_output = bool(saved & storage_keys(value)), bool(saved & storage_keys(output))
            target = one_sum(output)
            del output
            tracer.mark()
            if target is not None:
                target.backward()
            tracer.mark()
        forward, _, save, _, backward = tracer.phases
        fresh = [p.grad for p in parameters if p.grad is not None and id(p) not in before]
        grad_bytes = sum(gradient.untyped_storage().nbytes() for gradient in fresh)
        del target, fresh
    output_bytes = bytes_of(following)
    gradient_bytes = bytes_of([t for t in tensors_of(following) if t.requires_grad])
    saved_bytes = max(0, save.end - save.start - output_bytes)
    _graph, packer = bench.run(value, keep=False)
    with trace_allocations(device) as tracer:
        bench.rebuild(value, packer)
        tracer.mark()
    rebuild = tracer.phases[0]
    fields = {
        "output_bytes": output_bytes,
        "saved_bytes": saved_bytes,
        "saves_input": saves_input,
        "saves_output": saves_output,
        "forward_extra": extra(forward, output_bytes),
        "save_extra": extra(save, output_bytes + saved_bytes),
        "rebuild_extra": extra(rebuild, saved_bytes + (output_bytes if saves_output else 0)),
        "backward_extra": extra(backward, gradient_bytes),
        "grad_bytes": grad_bytes,
    }
    return Sizes(fields, max(0, forward.end - output_bytes) + bench.kept_bytes), following


def extra(phase: Phase, left: int) -> int:
    """Return the peak of a phase beyond its start and what it leaves."""
    return max(0, phase.peak - phase.start - left)


def one_sum(output: Any) -> torch.Tensor | None:
    """Return a sum whose backward lets the engine itself make the gradient of the output."""
    parts = [(t * 1).sum() for t in tensors_of(output) if t.requires_grad]
    return None if not parts else parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def step_clock(device: torch.device) -> float:
    """Return seconds: CPU time for the CPU, else wall time once the device is idle."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def time_stages(benches: Sequence[Bench], sample: Any, device: torch.device) -> list[tuple[float, float, float]]:
    """Return median seconds of forward, rebuild (at most forward) and backward of every stage.

    Passes over the whole chain alternate the stages, so that a disturbance does not hit one of them alone.
    """
    times: list[list[tuple[float, float, float]]] = [[] for _ in benches]
    start = time.perf_counter()
    for done in range(MANY):
        spent = time.perf_counter() - start
        if (done >= FEW and spent > LONG) or (done >= SOME and spent > SHORT):
            break
        value = cut(sample)
        for bench, found in zip(benches, times, strict=True):
            entry, value = time_stage(bench, value, device)
            found.append(entry)
    medians = [tuple(median(column) for column in zip(*entries, strict=True)) for entries in times]
    return [(forward, min(forward, rebuild), backward) for forward, rebuild, backward in medians]


def time_stage(bench: Bench, value: Any, device: torch.device) -> tuple[tuple[float, float, float], Any]:
    """Return seconds of one forward, rebuild and backward of a stage, and its output."""
    with gradients_present(bench.stage, bench.later):
        start = step_clock(device)
        output, packer = bench.run(value, keep=True)
        forward = step_clock(device) - start
        following = cut(output)
        roots = [t for t in tensors_of(output) if t.requires_grad]
        gradients = [torch.ones_like(t) for t in roots]
        del output
        start = step_clock(device)
        if roots:
            torch.autograd.backward(roots, gradients)
        backward = step_clock(device) - start
        del roots, gradients, packer
    _graph, packer = bench.run(value, keep=False)
    start = step_clock(device)
    bench.rebuild(value, packer)
    return (forward, step_clock(device) - start, backward), following


def measure_loss(loss: Callable[[Any], torch.Tensor], output: Any, device: torch.device) -> tuple[float, int, int]:
    """Return seconds, transient bytes and remaining bytes of the loss, forward and backward."""
    times = []
    for _ in range(SOME):
        leaf = cut(output)
        start = step_clock(device)
        result = loss(leaf)
        if not isinstance(result, torch.Tensor) or result.numel() != 1 or not result.requires_grad:
            raise MeasurementError(f"the loss must return a scalar tensor that requires a gradient, not {result!r}")
        result.backward()
        times.append(step_clock(device) - start)
    leaf = cut(output)
    with trace_allocations(device) as tracer:
        result = loss(leaf)
        result.backward()
        tracer.mark()
    phase = tracer.phases[0]
    gradient = bytes_of([t for t in tensors_of(output) if t.requires_grad])
    return median(times), extra(phase, gradient), max(0, phase.end - gradient)
