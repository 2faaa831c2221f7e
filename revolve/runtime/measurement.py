"""Measures a model's chain of stages: sizes from allocation events, times as medians.

Every stage runs through the very functions that execute a plan, so what is measured is what happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import nn

from revolve.schedules.chain import Chain, Stage
from revolve.schedules.costs import StorageCosts
from revolve.schedules.plans import Plan
from revolve.storage.boundary import bytes_of, cut, map_tensors, storage_keys, tensors_of, versions_of
from revolve.storage.codecs import Codec, codec_named

from .allocations import trace_allocations
from .bench import ROOT_BYTES, Bench, Sizes, Trial, extra, time_loss, time_stages, try_loss, try_stage
from .exceptions import MeasurementError, ModelError
from .format_trials import measure_format
from .generators import devices_of
from .isolation import Addition, find_tied, isolated
from .program import Program
from .rehearsal import USUAL, Runs, rehearse
from .replay import recomputing
from .samples import check_layouts
from .saving import Emptying, Shielded
from .segments import Segment
from .sharding import units_of
from .situations import describe_input
from .stages import StageModule, flatten, match_stages
from .state import Habits

__all__ = [
    "Progress",
    "bytes_seen",
    "copy_of",
    "default_loss",
    "find_codecs",
    "find_stages",
    "measure_children",
    "measure_stages",
    "refuse_sharded",
    "rehearse_children",
    "running",
]

Progress = Callable[[int, int, str], None]

# Seconds that it takes to end a stage early, by an exception through its modules and the engine.
STOP_TIME = 12e-6

NO_TENSOR = (
    "; the sample has no tensor: pass a tensor, a tuple of positional or a mapping of keyword arguments "
    "(torch.from_numpy makes a tensor of an array)"
)

NOISE = 1.5  # up to this ratio, times of stages that are otherwise alike count as the same


def default_loss(output: Any) -> torch.Tensor:
    """Return the output's own ``loss``, else half its mean square: the gradient is neither constant nor zero."""
    own = getattr(output, "loss", None)
    if isinstance(own, torch.Tensor) and own.numel() == 1 and own.requires_grad:
        return own
    parts = [torch.view_as_real(t) if t.is_complex() else t for t in tensors_of(output) if t.requires_grad]
    return sum((0.5 * part.square().mean() for part in parts), start=torch.zeros(()))


def measure_children(
    children: Mapping[str, nn.Module | None],
    sample: Any,
    name: str,
    loss: Callable[[Any], torch.Tensor] | None = None,
    progress: Progress | None = None,
    formats: Sequence[str] = (),
) -> Chain:
    """Measure a table of children that run one after the other; also in the middle of a step."""
    stages = flatten([(path, child) for path, child in children.items() if child is not None])
    codecs = find_codecs(formats)
    refuse_sharded(stages)
    loss = loss or default_loss
    with isolated(stages, sample) as belongings, recomputing():
        with Shielded():
            with belongings.written.watching():
                glued = find_stages(stages, sample)
            chain = measure_stages(glued, sample, loss, progress, name, codecs, belongings.additions())
        return rehearse_stages(glued, chain, sample, loss)


def rehearse_children(
    children: Mapping[str, nn.Module | None], sample: Any, plan: Plan, loss: Callable[[Any], torch.Tensor] | None = None
) -> Chain:
    """Rehearse a plan of a table of children; return its chain with the peaks that it was seen to have."""
    stages = match_stages(children, [stage.name for stage in plan.chain.stages])
    with isolated(stages, sample), recomputing():
        return rehearse_stages(stages, plan.chain, sample, loss or default_loss, [lambda _: plan])


def rehearse_stages(
    stages: Sequence[StageModule],
    chain: Chain,
    sample: Any,
    loss: Callable[[Any], torch.Tensor],
    plans: Iterable[Callable[[Chain], Plan]] = USUAL,
) -> Chain:
    """Rehearse steps of stages where they are isolated."""
    habits = Habits.quiet(len(chain))

    def follow(plan: Plan, runs: Runs) -> Callable[[Any], Any]:
        program = Program.from_plan(plan)
        return lambda value: runs(stages, program, habits).forward(value)

    leaves = list(dict.fromkeys(p for stage in stages for p in stage.tensors() if p.is_leaf and p.requires_grad))
    with running(StageModule("step", ()), sample):
        return rehearse(chain, follow, lambda: cut(sample), loss, leaves, device_used(stages, sample), plans)


def refuse_sharded(stages: Sequence[StageModule]) -> None:
    """Refuse to measure stages whose parameters are spread over processes."""
    if units_of(module for stage in stages for module in stage.modules):
        raise MeasurementError(
            "the model's parameters are sharded by fully_shard, so that single stages cannot be measured (nor planned "
            "for again, where a call looks otherwise than the plan's); measure before fully_shard (an "
            "nn.Sequential with every module that is to be sharded as one stage), and call it as it was measured"
        )


def find_stages(functions: Sequence[StageModule], sample: Any) -> list[StageModule]:
    """Glue functions together that cannot be separated, by running them once.

    A function that returns its input or a view of it, or that changes its input, joins the one before it.
    Tensors that are passed on unchanged beside new ones (masks, rotary tables) separate nothing.

    Raises
    ------
    MeasurementError
        If a function fails, or the first one changes the model's input.
    """
    stages: list[StageModule] = []
    value = copy_of(sample)
    pending: StageModule | None = None  # a view of the model's input joins what follows
    for index, function in enumerate(functions):
        versions = versions_of(value)
        with running(function, value), torch.enable_grad(), Emptying():
            output = function(value)
        if not tensors_of(output):
            raise MeasurementError(f"stage {function.name!r} returns no tensor, but {type(output).__name__}")
        changed = versions_of(value) != versions
        shared = inseparable(value, output)
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


def inseparable(value: Any, output: Any) -> bool:
    """Whether a stage's output is its input, or has a view of it; tensors passed on beside new ones do not count."""
    before, passed_on = storage_keys(value), {id(tensor) for tensor in tensors_of(value)}
    fresh = [tensor for tensor in tensors_of(output) if id(tensor) not in passed_on]
    return not fresh or bool(before & storage_keys(fresh))


def copy_of(value: Any) -> Any:
    """Return a copy of a boundary that may be changed in place.

    Raises
    ------
    MeasurementError
        If it has tensors of a layout whose bytes cannot be counted.
    """
    check_layouts(value)
    return map_tensors(copy_tensor, value)


def copy_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor; a dense one is no leaf, which could not be changed in place in grad mode."""
    copy = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    return copy.view_as(copy) if copy.layout is torch.strided else copy


@contextmanager
def running(stage: StageModule, value: Any) -> Iterator[None]:
    """Turn any failure of a stage into an error that names it and its input."""
    try:
        yield
    except (MeasurementError, ModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        advice = "" if tensors_of(value) else NO_TENSOR
        raise MeasurementError(
            f"stage {stage.name!r} cannot be run on its input ({describe_input(value)}): {reason}{advice}"
        ) from error


def measure_stages(
    stages: Sequence[StageModule],
    sample: Any,
    loss: Callable[[Any], torch.Tensor] | None,
    progress: Progress | None,
    name: str,
    codecs: Sequence[Codec] = (),
    additions: Sequence[Addition] = (),
    timed: Sequence[Stage] = (),
) -> Chain:
    """Measure stages, first their sizes, then their times; to be called where they are isolated.

    Stages that were ``timed`` before keep their times: the same ones, which now carry what leaps over them.

    With ``loss`` None the loss costs nothing: whoever calls the model pays for it. The ``additions`` to modules by
    earlier runs here are made by the first step, and stay.
    """
    device = device_used(stages, sample)
    value, own = cut(sample), storage_keys(sample)
    benches: list[Bench] = []
    trials: list[Trial] = []
    gradient = 0
    find_tied(stages)
    with trace_allocations(device) as tracer:
        for index, stage in enumerate(stages):
            if progress:
                progress(index, len(stages) + 1, stage.name)
            with running(stage, value), torch.enable_grad():
                benches.append(Bench(index, stage, stages[index + 1 :], value))
                counted = stages[index - 1].activation(value) if index else value
                held = storage_keys(value) - storage_keys(counted)
                trials.append(try_stage(benches[-1], value, tracer, own | held, carries=bool(timed)))
            value = trials[-1].output
        if loss is not None:
            with running(StageModule("loss", (loss,)), value), torch.enable_grad():
                gradient = try_loss(loss, value, tracer)
    torch.clear_autocast_cache()
    count = Trial.PHASES
    sizes = [trial.sizes(tracer.phases[count * i : count * (i + 1)]) for i, trial in enumerate(trials)]
    alone = loss is not None  # else the surroundings tell what the last stage's output is
    passed_on = [t for trial in trials for t in tensors_of(trial.output) if t.requires_grad and storage_keys(t) <= own]
    made = [addition.tensor for addition in additions if addition.stays()]  # what changes counts as residue
    reserve = ROOT_BYTES + sum(found.residue for found in sizes) + bytes_of(made)
    reserve += bytes_of(passed_on)  # their gradients, at most
    loss_time, loss_extra = 0.0, 0
    if progress:
        progress(len(stages), len(stages) + 1, "times")
    with running(StageModule("timing", ()), sample), torch.enable_grad():
        times = [(stage.forward, stage.rebuild, stage.backward) for stage in timed]
        times = times or pool_times(stages, sizes, time_stages(benches, sample, device))
        times = [choose_stop(found.fields, *time) for found, time in zip(sizes, times, strict=True)]
        if alone:
            own_output(sizes[-1].fields)
        if loss is not None:
            phase = tracer.phases[-1]
            loss_time, loss_extra = time_loss(loss, value, device), extra(phase, gradient)
            reserve += max(0, phase.end - phase.start - gradient)
        fields = [found.fields for found in sizes]
        formats = {codec.name: measure_format(codec, benches, sample, device, fields) for codec in codecs}
    if progress:
        progress(len(stages) + 1, len(stages) + 1, "")
    return Chain(
        tuple(
            add_reserve(Stage(stage.name, *time, **found.fields), reserve)
            for stage, time, found in zip(stages, times, sizes, strict=True)
        ),
        bytes_seen(sample),
        any(t.requires_grad for t in tensors_of(sample)),
        loss_time,
        loss_extra + reserve,
        {name: complete_modes(costs, sizes[-1].fields, reserve, alone=alone) for name, costs in formats.items()},
        name,
    )


def device_used(stages: Sequence[StageModule], sample: Any) -> torch.device:
    """Return the first device that a sample or the tensors of some stages are on, the CPU if there is none."""
    return (*devices_of([*tensors_of(sample), *(t for s in stages for t in s.tensors())]), torch.device("cpu"))[0]


def bytes_seen(value: Any) -> int:
    """Return the bytes of an input's elements: of a slice less than its storage, of an expanded tensor no more."""
    return min(bytes_of(value), sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(value)))


def pool_times(
    stages: Sequence[StageModule], sizes: Sequence[Sizes], times: Sequence[tuple[float, float, float]]
) -> list[tuple[float, float, float]]:
    """Give stages that are alike the same times, the medians of theirs.

    Alike are stages of modules that print alike, take the same bytes, and about the same time, such as a
    transformer's blocks. What is left between their times is noise, and the solver solves equal stages once.
    """
    groups: dict[Any, list[int]] = {}
    for index, (stage, found) in enumerate(zip(stages, sizes, strict=True)):
        prints = tuple(repr(f) if isinstance(f, (nn.Module, Segment)) else id(f) for f in stage.functions)
        groups.setdefault((prints, *found.fields.values()), []).append(index)
    pooled = list(times)
    for group in groups.values():
        totals = [forward + backward for forward, _, backward in (times[index] for index in group)]
        if max(totals) <= NOISE * min(totals):
            forward, rebuild, backward = (median(column) for column in zip(*(times[i] for i in group), strict=True))
            for index in group:
                pooled[index] = (forward, rebuild, backward)
    return pooled


def choose_stop(fields: dict[str, Any], forward: float, rebuild: float, backward: float) -> tuple[float, float, float]:
    """Decide whether rebuilding a stage ends at its last saved tensor, and say so by times that differ.

    Where that spares neither time nor memory, a rebuild runs to the stage's end and takes its forward time.
    """
    to_the_end = fields["save_extra"] + (0 if fields["saves_output"] else fields["output_bytes"])
    if rebuild + STOP_TIME > forward and to_the_end <= fields["rebuild_extra"]:
        return forward, forward, backward
    return forward, min(rebuild, forward - 1e-9), backward


def own_output(fields: dict[str, Any]) -> None:
    """Let the last stage pay for a second output where it is run again.

    The caller holds the one of the first run. Where the stage saves its output, the second one lives until the end of
    the backward. In a first run this seldom raises a peak: loss and backward need as much, with the gradient of the
    output.
    """
    if fields["saves_output"]:
        for name in ("save_extra", "rebuild_extra"):
            fields[name] = fields["output_bytes"] + max(fields[name], fields["backward_extra"])
    else:
        fields["save_extra"] += fields["output_bytes"]


def complete_modes(costs: StorageCosts, last: dict[str, Any], reserve: int, *, alone: bool) -> StorageCosts:
    """Add to the peaks of a format's save modes what is added to those of dense saves."""
    saves, backwards = list(costs.save_extra), costs.backward_extra
    if alone:
        saves[-1] = last["output_bytes"] + (max(saves[-1], backwards[-1]) if last["saves_output"] else saves[-1])
    return replace(
        costs,
        save_extra=tuple(size + reserve for size in saves),
        backward_extra=tuple(size + reserve for size in backwards),
    )


def find_codecs(formats: Sequence[str]) -> list[Codec]:
    """Return the codecs of some formats; dense needs none."""
    names = (formats,) if isinstance(formats, str) else formats
    return [codec_named(name) for name in dict.fromkeys(names) if name != "dense"]


def add_reserve(stage: Stage, reserve: int) -> Stage:
    """Add bytes that are held all through the step to every peak of a stage."""
    names = ("forward_extra", "save_extra", "rebuild_extra", "backward_extra")
    return replace(stage, **{name: getattr(stage, name) + reserve for name in names})
