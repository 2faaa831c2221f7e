"""Runs single stages in each of the ways a schedule runs them, for their sizes and times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar, NamedTuple

import torch

from revolve.storage.boundary import bytes_of, cut, storage_keys, tensors_of

from .allocations import Phase, Tracer
from .encoding import saves_late
from .exceptions import MeasurementError
from .generators import FOREIGN, RandomState, default_sources, devices_of
from .instruments import instruments
from .isolation import gradients_present, leaves_kept
from .packing import Packer, Recording, Refilling, StopRebuild
from .reversal import one_sum, outliving, reverse
from .saving import Holder, Keep, Kept, graph_clock
from .stages import StageModule
from .state import StageState

__all__ = [
    "Bench",
    "Sizes",
    "Trial",
    "clear_gradients",
    "extra",
    "step_clock",
    "time_loss",
    "time_stages",
    "try_loss",
    "try_stage",
]

# Passes over the chain: many for short chains, whose times are noisy, few for long ones.
FEW, SOME, MANY = 3, 5, 15
SHORT, LONG = 0.5, 30.0  # seconds

# Between two runs the executor reads the state of the CPU's generator, as a tensor of 5056 bytes.
GENERATOR_BYTES = 5056

# ``backward()`` holds the gradient of the loss, a scalar, to the end, and the caller may hold scalars of
# his own; allocators round a scalar up to 512 bytes at most.
ROOT_BYTES = 1024


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

    ready = 0

    def __init__(self, index: int, stage: StageModule, later: Sequence[StageModule], value: Any) -> None:
        self.index = index
        self.stage = stage
        self.later = later
        random = RandomState((*default_sources(devices_of(stage.tensors())), *stage.sources(), *FOREIGN))
        before = random.read()
        present = set(map(id, attributes_of(stage)))
        first = StageState(stage, None)
        with Recording(Packer(index, stage.name, stage.storages()), self, None):
            leaf = cut(value)
            start = graph_clock()
            self.late = saves_late(stage(leaf), start)
        del leaf
        self.changing = first.finish()
        drawn = zip(random.sources, before, random.read(), strict=True)
        self.random = tuple((source, old) for source, old, new in drawn if old != new)
        self.through = stage.storages()  # after the run, since it may have replaced a buffer
        left = [tensor for tensor in attributes_of(stage) if id(tensor) not in present]
        self.kept_bytes = bytes_of(first.kept()) + bytes_of(left)

    def fetch(self, holder: Holder) -> Any:
        """Return what is in a holder: it is full while its backward runs."""
        return holder.kept

    def draw_anew(self) -> None:
        """Let the stage draw the same numbers in every run: a stage that leaves out a layer does so each time."""
        for source, state in self.random:
            source.write(state)

    def run(self, leaf: Any, *, keep: Keep | None) -> tuple[Any, Packer]:
        """Run as ``forward`` (``keep`` None) or ``save`` on a cut input; return output with graph, and packer."""
        self.draw_anew()
        with StageState(self.stage, self.changing) as state:
            packer = Packer(self.index, self.stage.name, self.through)
            with Recording(packer, self, keep, state.temporary):
                return self.stage(leaf), packer

    def rebuild(self, value: Any, packer: Packer) -> None:
        """Run as ``rebuild``, into the holders of an earlier run."""
        self.draw_anew()
        with StageState(self.stage, self.changing) as state:
            stops = self.stage.stops_early and not self.late  # as in the executor
            with suppress(StopRebuild), Refilling(packer, Kept, state.temporary, packer.last() if stops else -1):
                self.stage(cut(value))
                return
            state.clear_up()


def attributes_of(stage: StageModule) -> list[torch.Tensor]:
    """Return the tensors in plain attributes of a stage's modules, where a run may leave new ones."""
    return [value for module in stage.modules for value in vars(module).values() if isinstance(value, torch.Tensor)]


class Sizes(NamedTuple):
    """What one stage takes.

    Attributes
    ----------
    fields
        Sizes and flags of its ``Stage``.
    residue
        Bytes that its first run leaves until its backward, whatever the schedule: tensors that the graph
        holds by other ways than saving, or the modules in attributes, and old values of buffers.
    """

    fields: dict[str, Any]
    residue: int


@dataclass(frozen=True)
class Trial:
    """What one stage did under a trace; the phases of the trace are known when it has ended.

    Attributes
    ----------
    output
        The stage's output, detached.
    saves_input, saves_output
        As in ``Stage``.
    output_bytes, fresh_bytes, passed_bytes, besides_bytes, gradient_bytes, grad_bytes, kept_bytes
        Bytes of the activation but for what belongs to the model's input (of all elements, where it is expanded: its
        gradient has as many), of what the stage itself allocated of it, of what it carries, of what it gives besides,
        of the gradients of both, of new parameter gradients, and of old values of buffers.
    again_bytes
        Of what it gives besides, the bytes that it saves: anew, where it is run again.
    apart_bytes
        Bytes that it saves of activations of which it does not save all, where stages carry.
    """

    PHASES: ClassVar[int] = 8

    output: Any
    saves_input: bool
    saves_output: bool
    output_bytes: int
    fresh_bytes: int
    passed_bytes: int
    besides_bytes: int
    again_bytes: int
    apart_bytes: int
    gradient_bytes: int
    grad_bytes: int
    kept_bytes: int

    def sizes(self, phases: Sequence[Phase]) -> Sizes:
        """Return the sizes of the stage, from its ``PHASES`` phases of the trace."""
        _, forward, _, save, _, backward, _, rebuild = phases
        saved_bytes = max(0, save.end - save.start - self.fresh_bytes - self.besides_bytes)
        saved_bytes += self.again_bytes + self.apart_bytes
        fields = {
            "output_bytes": self.output_bytes,
            "saved_bytes": saved_bytes,
            "saves_input": self.saves_input,
            "saves_output": self.saves_output,
            "forward_extra": max(GENERATOR_BYTES, extra(forward, self.fresh_bytes)),
            "save_extra": max(GENERATOR_BYTES, extra(save, self.fresh_bytes + saved_bytes)),
            "rebuild_extra": max(
                GENERATOR_BYTES, extra(rebuild, saved_bytes + (self.fresh_bytes if self.saves_output else 0))
            ),
            "backward_extra": extra(backward, self.gradient_bytes),
            "grad_bytes": self.grad_bytes,
            "passed_bytes": self.passed_bytes,
        }
        left = forward.end - forward.start - self.fresh_bytes - self.besides_bytes
        return Sizes(fields, max(0, left) + self.kept_bytes)


def try_stage(bench: Bench, value: Any, tracer: Tracer, own: set[int], *, carries: bool = False) -> Trial:
    """Run a stage as forward, save with its backward, and rebuild, in ``Trial.PHASES`` phases of a trace.

    Storages in ``own`` belong to the model's input, or are held for later stages: they count nothing. Where stages
    ``carry`` tensors, what one saves of an activation may be only a part of it.
    """
    torch.clear_autocast_cache()  # the casts of parameters are made in the trace, as in a step
    with gradients_present(bench.stage, bench.later) as parameters:
        before = {id(parameter) for parameter in parameters if parameter.grad is not None}
        tracer.mark()
        output, _ = bench.run(cut(value), keep=None)
        tracer.mark()
        following = cut(output)
        del output
        tracer.mark()
        leaf = cut(value)
        output, packer = bench.run(leaf, keep=Kept)
        tracer.mark()
        saved = storage_keys([holder.kept.get() for holder in packer.live() if holder.kept is not None])
        inputs = storage_keys(value)
        counted = storage_keys(bench.stage.activation(output))
        kept_input, kept_output = saved & inputs - own, saved & counted - own - inputs
        apart: set[int] = set()
        if carries and kept_input != inputs - own:
            apart, kept_input = apart | kept_input, set()
        if carries and kept_output != counted - own:
            apart, kept_output = apart | kept_output, set()
        apart_bytes = bytes_of((value, output), storage_keys((value, output)) - apart)
        again_bytes = bytes_of(output) - bytes_of(output, (saved & storage_keys(output)) - counted - own - inputs)
        target, staying = one_sum(output), outliving(bench.stage, output, inputs - own, last=not bench.later)
        del output
        tracer.mark()
        if target is not None:
            reverse([target], [torch.ones_like(target)], leaf, parameters)
        tracer.mark()
        new = [p for p in parameters if p.grad is not None and id(p) not in before]
        fresh = [p.grad for p in new if not getattr(p, "passing", False)]
        grad_bytes = bytes_of(fresh)
        del target, staying, fresh, new, leaf
    _graph, packer = bench.run(cut(value), keep=None)
    tracer.mark()
    bench.rebuild(value, packer)
    tracer.mark()
    gradient_bytes = bytes_of([t for t in tensors_of(following) if t.requires_grad])
    activation = bench.stage.activation(following)
    output_bytes, fresh_bytes = bytes_of(activation, own), bytes_of(activation, inputs)
    besides_bytes = bytes_of(following, inputs) - fresh_bytes
    passed_bytes = output_bytes - bytes_of(activation, own | inputs) if carries and bench.later else 0
    return Trial(
        output=following,
        saves_input=bool(kept_input),
        saves_output=bool(kept_output),
        output_bytes=output_bytes + broadcast_bytes(activation),
        fresh_bytes=fresh_bytes,
        passed_bytes=passed_bytes,
        besides_bytes=besides_bytes,
        again_bytes=again_bytes,
        apart_bytes=apart_bytes,
        gradient_bytes=gradient_bytes,
        grad_bytes=grad_bytes,
        kept_bytes=bench.kept_bytes,
    )


def broadcast_bytes(value: Any) -> int:
    """Return by how many bytes the elements of expanded tensors, and so their gradients, exceed their memory."""
    expanded = [t for t in tensors_of(value) if t.requires_grad and t.layout is torch.strided]
    return sum(max(0, t.numel() * t.element_size() - t.untyped_storage().nbytes()) for t in expanded)


def extra(phase: Phase, left: int) -> int:
    """Return the peak of a phase beyond its start and what it leaves."""
    return max(0, phase.peak - phase.start - left)


def step_clock(device: torch.device) -> float:
    """Return seconds: CPU time of this thread for the CPU, else wall time once the device is idle.

    This thread does its share of every parallel loop and waits for the others at its end. The time of the
    whole process would also count how long idle worker threads spin.
    """
    stand_in = instruments()
    if stand_in is not None:
        return stand_in.seconds()
    if device.type == "cpu":
        return time.thread_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def time_stages(benches: Sequence[Bench], sample: Any, device: torch.device) -> list[tuple[float, float, float]]:
    """Return median seconds of forward, rebuild (at most forward) and backward of every stage.

    Passes over the whole chain alternate the stages, so that a disturbance does not hit one of them alone.
    """
    times: list[list[tuple[float, float, float]]] = [[] for _ in benches]
    start = time.perf_counter()
    for done in range(MANY if instruments() is None else 1):  # a modelled clock is never disturbed
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
    with gradients_present(bench.stage, bench.later) as parameters:
        leaf = cut(value)
        start = step_clock(device)
        output, packer = bench.run(leaf, keep=Kept)
        forward = step_clock(device) - start
        following = cut(output)
        roots = [t for t in tensors_of(output) if t.requires_grad]
        gradients = [torch.ones_like(t) for t in roots]
        del output
        start = step_clock(device)
        reverse(roots, gradients, leaf, parameters)
        backward = step_clock(device) - start
        del roots, gradients, packer, leaf
    _graph, packer = bench.run(cut(value), keep=None)
    start = step_clock(device)
    bench.rebuild(value, packer)
    return (forward, step_clock(device) - start, backward), following


def run_loss(loss: Callable[[Any], torch.Tensor], output: Any, stack: ExitStack) -> torch.Tensor:
    """Run a loss and its backward, whose gradients are there until the stack ends; return the loss."""
    result = loss(output)
    if not isinstance(result, torch.Tensor) or result.numel() != 1 or not result.requires_grad:
        kind = f"a tensor of shape {list(result.shape)}" if isinstance(result, torch.Tensor) else type(result).__name__
        without = isinstance(result, torch.Tensor) and not result.requires_grad
        raise MeasurementError(
            f"the loss returned {kind}{' that requires no gradient' if without else ''}; it must return a scalar that "
            "requires one (is every parameter frozen, the output detached, or inference mode on?)"
        )
    stack.enter_context(leaves_kept(result))
    result.backward()
    return result


def clear_gradients(parameters: Iterable[torch.Tensor]) -> None:
    """Let a step begin with gradients where the user's own parameters have some."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if getattr(parameter, "existing", False) else None


def try_loss(loss: Callable[[Any], torch.Tensor], output: Any, tracer: Tracer) -> int:
    """Run the loss in one phase of a trace, after a phase for what lies before; return the gradient's bytes."""
    leaf = cut(output)
    tracer.mark()
    with ExitStack() as stack:
        _result = run_loss(loss, leaf, stack)
        tracer.mark()
    return bytes_of([t for t in tensors_of(output) if t.requires_grad])


def time_loss(loss: Callable[[Any], torch.Tensor], output: Any, device: torch.device) -> float:
    """Return median seconds of the loss, forward and backward."""
    times = []
    for _ in range(SOME if instruments() is None else 1):
        leaf = cut(output)
        with ExitStack() as stack:
            start = step_clock(device)
            run_loss(loss, leaf, stack)
            times.append(step_clock(device) - start)
    return median(times)
