"""Measures a model's chain of stages: sizes from allocation events, times as medians.

Every stage runs through the very functions that execute a plan, so what is measured is what happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from revolve.schedules.chain import Chain, Stage
from revolve.storage.boundary import bytes_of, cut, storage_keys, tensors_of, versions_of

from .allocations import Phase, trace_allocations
from .exceptions import MeasurementError
from .executor import recomputing
from .isolation import gradients_present, isolated
from .saving import Packer, StopRebuild, hooked
from .stages import StageModule, check_sequential, flatten
from .state import StageState, devices_of

__all__ = ["default_loss", "find_stages", "measure", "measure_stages", "step_clock"]

Progress = Callable[[int, int, str], None]

REPEATS = 5
LONG = 0.25  # seconds from which on fewer repeats are as good
# The executor reads the CPU generator's state (5056 bytes) as a tensor, twice at most at a time.
GENERATOR_BYTES = 2 * 5120


def default_loss(output: Any) -> torch.Tensor:
    """Return half the mean square of the output: a loss whose gradient is neither constant nor zero."""
    parts = [t for t in tensors_of(output) if t.is_floating_point() and t.requires_grad]
    return sum((0.5 * part.square().mean() for part in parts), start=torch.zeros(()))


def measure(
    model: Any, sample: Any, loss: Callable[[Any], torch.Tensor] | None = None, *, progress: Progress | None = None
) -> Chain:
    """Measure the stages of a model by running them.

    Parameters
    ----------
    model
        An nn.Sequential in training mode; nested ones are flattened. A child that changes its input or
        returns a view of it (in-place ReLU, Flatten) is glued to the one before it.
    sample
        The input: a tensor, or tuples, lists and dicts of tensors, on the model's device.
    loss
        Maps the output to a scalar; default half the mean square.
    progress
        Called with stages done, stages in all, and the name of the next one.

    Returns
    -------
    Chain
        Times in seconds (CPU time on a CPU), sizes in bytes. Parameters, gradients, buffers, hooks
        and random numbers are as before.

    Raises
    ------
    ModelError
        If the model is no nn.Sequential.
    MeasurementError
        If a stage cannot be run; the message names it.
    """
    sequential = check_sequential(model)
    if not any(child.training for child in sequential):
        raise MeasurementError(
            "the model is in eval mode, where nothing is kept for backward; call model.train() first"
        )
    stages = flatten(list(sequential._modules.items()))  # type: ignore[arg-type]
    with isolated(stages, sample), recomputing():
        glued = find_stages(stages, sample)
        return measure_stages(glued, sample, loss or default_loss, progress, type(model).__name__)


def find_stages(functions: Sequence[StageModule], sample: Any) -> list[StageModule]:
    """Glue functions together that cannot be separated, by running them once.

    A function whose output shares storage with its input, or that changes its input, joins the one
    before it.

    Raises
    ------
    MeasurementError
        If a function fails, or the first one changes the model's input.
    """
    stages: list[StageModule] = []
    value = copy_of(sample)
    pending: StageModule | None = None  # a view of the model's input joins what follows
    for index, function in enumerate(functions):
        before, versions = storage_keys(value), versions_of(value)
        with running(function, value), torch.enable_grad(), hooked(lambda tensor: None):
            output = function(value)
        if not tensors_of(output):
            raise MeasurementError(f"stage {function.name!r} returns no tensor, but {type(output).__name__}")
        changed = versions_of(value) != versions
        shared = bool(before & storage_keys(output))
        if changed and not stages:
            raise MeasurementError(
                f"stage {function.name!r} changes the model's input in place, so it cannot be run again; "
                "use inplace=False there"
            )
        if stages and (changed or shared):
            stages[-1] = stages[-1].join(function)
        else:
            joined = pending.join(function) if pending else function
            pending = joined if shared and index + 1 < len(functions) else None
            if pending is None:
                stages.append(joined)
        value = output
    return stages


def copy_of(value: Any) -> Any:
    """Return a copy of a boundary that may be changed in place."""
    return tree_map_only(torch.Tensor, lambda t: t.detach().clone().requires_grad_(t.requires_grad).view_as(t), value)


@contextmanager
def running(stage: StageModule, value: Any) -> Iterator[None]:
    """Turn any failure of a stage into an error that names it and its input."""
    try:
        yield
    except (MeasurementError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        inputs = ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in tensors_of(value))
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MeasurementError(
            f"stage {stage.name!r} cannot be run on its input ({inputs or type(value).__name__}): {reason}"
        ) from error


@dataclass(frozen=True)
class StageRecord:
    """What one stage gave: its costs, its output, and bytes that the whole step has to reserve for it."""

    stage: Stage
    output: Any
    residue: int


def measure_stages(
    stages: Sequence[StageModule],
    sample: Any,
    loss: Callable[[Any], torch.Tensor] | None,
    progress: Progress | None,
    name: str,
) -> Chain:
    """Measure stages one after the other; to be called where they are isolated.

    With ``loss`` None the loss costs nothing: whoever calls the model pays for it.
    """
    device = (*devices_of([*tensors_of(sample), *(t for s in stages for t in s.tensors())]), torch.device("cpu"))[0]
    value = cut(sample)
    records: list[StageRecord] = []
    for index, stage in enumerate(stages):
        if progress:
            progress(index, len(stages), stage.name)
        with running(stage, value), torch.enable_grad():
            records.append(measure_stage(index, stage, stages[index + 1 :], value, device))
        value = records[-1].output
    loss_time, loss_extra, left = 0.0, 0, 0
    if loss is not None:
        with running(StageModule("loss", (loss,)), value), torch.enable_grad():
            loss_time, loss_extra, left = measure_loss(loss, value, device)
    if progress:
        progress(len(stages), len(stages), "")
    reserve = left + sum(record.residue for record in records) + GENERATOR_BYTES
    return Chain(
        tuple(add_reserve(record.stage, reserve) for record in records),
        bytes_of(sample),
        any(t.requires_grad for t in tensors_of(sample)),
        loss_time,
        loss_extra + reserve,
        name=name,
    )


def add_reserve(stage: Stage, reserve: int) -> Stage:
    """Add bytes that are held all through the step to every peak of a stage."""
    return replace(
        stage,
        forward_extra=stage.forward_extra + reserve,
        save_extra=stage.save_extra + reserve,
        rebuild_extra=stage.rebuild_extra + reserve,
        backward_extra=stage.backward_extra + reserve,
    )


class Bench:
    """One stage on its input, run in each of the ways a schedule runs it."""

    def __init__(self, index: int, stage: StageModule, value: Any) -> None:
        self.index = index
        self.stage = stage
        self.value = value
        self.through = {tensor.untyped_storage()._cdata for tensor in stage.tensors()}
        first = StageState(stage, None)
        packer = Packer(self, index, stage.name, self.through)
        with hooked(packer.record(keep=False)):
            self.output = cut(stage(cut(value)))
        self.changing = first.finish()
        self.kept_bytes = sum(value.untyped_storage().nbytes() for _, value in first.before)

    def need(self, holder: Any) -> None:
        """Do nothing: holders are full while their backward runs."""

    def run(self, *, keep: bool) -> tuple[Any, Packer]:
        """Run as ``forward`` or ``save``; return the output with its graph, and what was packed."""
        state = StageState(self.stage, self.changing)
        with state.replayed() as temporary:
            packer = Packer(self, self.index, self.stage.name, self.through)
            with hooked(packer.record(keep=keep, temporary=temporary)):
                return self.stage(cut(self.value)), packer

    def rebuild(self, packer: Packer) -> None:
        """Run as ``rebuild``, into the holders of an earlier run."""
        state = StageState(self.stage, self.changing)
        with state.replayed() as temporary:
            pack, _ = packer.refill(temporary, stop=True)
            with suppress(StopRebuild), hooked(pack):
                self.stage(cut(self.value))


def measure_stage(
    index: int, module: StageModule, later: Sequence[StageModule], value: Any, device: torch.device
) -> StageRecord:
    """Measure one stage on its input."""
    bench = Bench(index, module, value)
    output_bytes = bytes_of(bench.output)
    gradient_bytes = sum(t.untyped_storage().nbytes() for t in tensors_of(bench.output) if t.requires_grad)
    with gradients_present(module, later) as parameters:
        had = [p for p in parameters if p.grad is not None]
        with trace_allocations(device) as tracer:
            output, _ = bench.run(keep=False)
            tracer.mark()
            del output
            tracer.mark()
            output, packer = bench.run(keep=True)
            tracer.mark()
            saved = {h.kept.tensor.untyped_storage()._cdata for h in packer.live() if h.kept is not None}
            saves_input, saves_output = bool(saved & storage_keys(value)), bool(saved & storage_keys(output))
            target = one_sum(output)
            del output
            tracer.mark()
            if target is not None:
                target.backward()
            tracer.mark()
        forward, freed, save, _, backward = tracer.phases
        fresh = [p.grad for p in parameters if p.grad is not None and not any(p is q for q in had)]
        grad_bytes = sum(grad.untyped_storage().nbytes() for grad in fresh)
        del target, fresh
    residue = max(0, forward.end - freed.end - output_bytes) + bench.kept_bytes
    saved_bytes = max(0, save.end - save.start - output_bytes)
    output, packer = bench.run(keep=False)
    with trace_allocations(device) as tracer:
        bench.rebuild(packer)
        tracer.mark()
    rebuild = tracer.phases[0]
    del output, packer
    times = time_stage(bench, device, gradients=(module, later))
    stage = Stage(
        module.name,
        *times,
        output_bytes=output_bytes,
        saved_bytes=saved_bytes,
        saves_input=saves_input,
        saves_output=saves_output,
        forward_extra=extra(forward, output_bytes),
        save_extra=extra(save, output_bytes + saved_bytes),
        rebuild_extra=extra(rebuild, saved_bytes + (output_bytes if saves_output else 0)),
        backward_extra=extra(backward, gradient_bytes),
        grad_bytes=grad_bytes,
    )
    return StageRecord(stage, bench.output, residue)


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


def time_stage(
    bench: Bench, device: torch.device, gradients: tuple[StageModule, Sequence[StageModule]]
) -> tuple[float, float, float]:
    """Return median seconds of forward, rebuild (at most forward) and backward."""
    forwards, rebuilds, backwards = [], [], []
    spent = 0.0
    for repeat in range(REPEATS):
        with gradients_present(*gradients):
            start = step_clock(device)
            output, packer = bench.run(keep=True)
            forwards.append(step_clock(device) - start)
            target = one_sum(output)
            del output
            start = step_clock(device)
            if target is not None:
                target.backward()
            backwards.append(step_clock(device) - start)
            del target, packer
        output, packer = bench.run(keep=False)
        start = step_clock(device)
        bench.rebuild(packer)
        rebuilds.append(step_clock(device) - start)
        del output, packer
        spent += forwards[-1] + backwards[-1] + rebuilds[-1]
        if spent > LONG and repeat >= 2:
            break
    forward = median(forwards)
    return forward, min(forward, median(rebuilds)), median(backwards)


def measure_loss(loss: Callable[[Any], torch.Tensor], output: Any, device: torch.device) -> tuple[float, int, int]:
    """Return seconds, transient bytes and remaining bytes of the loss, forward and backward."""
    times = []
    for _ in range(REPEATS):
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
    gradient = sum(t.untyped_storage().nbytes() for t in tensors_of(output) if t.requires_grad)
    return median(times), extra(phase, gradient), max(0, phase.end - gradient)
