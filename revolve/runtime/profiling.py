"""Measures any model: its chain of stages, and what a step takes besides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from revolve.schedules.chain import Chain
from revolve.schedules.plans import Plan, with_carried
from revolve.storage.boundary import tensors_of

from .devices import DeviceDescription
from .exceptions import MeasurementError
from .fake import measure_fake
from .interception import PlannedChain, remember_sample, run_plainly
from .isolation import isolated
from .linearization import find_chain
from .measurement import (
    Progress,
    copy_of,
    default_loss,
    find_codecs,
    measure_children,
    measure_stages,
    refuse_sharded,
    rehearse_children,
    running,
)
from .memory import device_of
from .rehearsal import USUAL, Runs, rehearse
from .replay import recomputing
from .samples import Arguments, arguments_of, check_layouts
from .saving import Shielded
from .stages import StageModule, check_model, is_plain_sequential
from .state import Habits
from .surroundings import Surroundings
from .survey import survey

__all__ = ["measure", "rehearse_plan"]

MODES = ("real", "fake")


def measure(
    model: Any,
    sample: Any,
    loss: Callable[[Any], torch.Tensor] | None = None,
    *,
    formats: Sequence[str] = ("dense",),
    progress: Progress | None = None,
    mode: str = "real",
    device: str | DeviceDescription | None = None,
) -> Chain:
    """Measure the stages of a model by running them, or on tensors without values.

    Parameters
    ----------
    model
        A module in training mode. Of an nn.Sequential the children are the stages, nested ones flattened; one that
        changes its input or returns a view of it (in-place ReLU, Flatten) is glued to the one before it. In any other
        module the stages are found as by :func:`revolve.linearize`.
    sample
        The input, on the model's device: a tensor, a tuple of positional arguments, a mapping of keyword arguments.
        An nn.Sequential takes it as it is: a tensor, or tuples, lists and dicts of tensors.
    loss
        Maps the output to a scalar; default the output's own ``loss``, else half the mean square.
    formats
        Storage formats to try on checkpoints and saved tensors: ``"bitmap"``, ``"bf16"`` ... (docs/storage.md).
    progress
        Called with stages done, stages in all, and the name of the next one.
    mode
        ``"real"``, or ``"fake"``: nothing is computed or allocated, model and sample may be on the meta device. Sizes
        are counted, with a reserve in every peak; times are modelled (docs/fake.md).
    device
        What times are modelled for: a name of ``revolve.DEVICES``, or a description.

    Returns
    -------
    Chain
        Times in seconds (CPU time on a CPU), sizes in bytes. Parameters, gradients, buffers, hooks
        and random numbers are as before.

    Raises
    ------
    ModelError
        If the model is no module, or has no chain of stages.
    MeasurementError
        If a stage cannot be run; the message names it.
    CodecError
        If there is no such format.
    """
    if not any(part.training for part in list(check_model(model).children()) or [model]):
        raise MeasurementError(
            "the model is in eval mode, where nothing is kept for backward; call model.train() first"
        )
    if mode not in MODES or (device is not None and mode != "fake"):
        raise MeasurementError(
            f"mode={mode!r}, device={device!r}: mode must be one of {', '.join(MODES)}, and only 'fake' takes a device"
        )
    check_layouts(sample)
    if mode == "fake":
        if any(name != "dense" for name in formats):
            raise MeasurementError(
                f"formats={list(formats)!r}: what a format takes depends on values, which fake tensors have none of; "
                "measure without mode='fake'"
            )
        return measure_fake(model, sample, device, lambda fake: run_stages(model, fake, loss, progress))
    check_values(model, sample)
    return run_stages(model, sample, loss, progress, formats)


def check_values(model: nn.Module, sample: Any) -> None:
    """Refuse tensors on the meta device, which have shapes and no values."""
    named = [*model.named_parameters(), *model.named_buffers()]
    found = [name for name, tensor in named if tensor.is_meta]
    found += ["the sample" for tensor in tensors_of(sample) if tensor.is_meta]
    if found:
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise MeasurementError(
            f"the {type(model).__name__} cannot be run on tensors without values: {found[0]}{others} on the meta "
            "device; revolve.measure(model, sample, mode='fake') plans without values, and model.to_empty(device=...) "
            "makes room for them"
        )


def run_stages(
    model: nn.Module,
    sample: Any,
    loss: Callable[[Any], torch.Tensor] | None,
    progress: Progress | None,
    formats: Sequence[str] = ("dense",),
) -> Chain:
    """Measure the stages of a model by running them."""
    if is_plain_sequential(model):
        return measure_children(model._modules, sample, type(model).__name__, loss, progress, formats)
    return measure_module(model, sample, loss or default_loss, progress, formats)


def measure_module(
    model: nn.Module,
    sample: Any,
    loss: Callable[[Any], torch.Tensor],
    progress: Progress | None,
    formats: Sequence[str] = (),
) -> Chain:
    """Measure a module that runs its stages itself."""
    whole, codecs = StageModule(type(model).__name__, (model,)), find_codecs(formats)
    refuse_sharded([whole])
    arguments = arguments_of(model, sample)
    with isolated([whole], arguments) as belongings, recomputing():
        run_plainly(model)
        with Shielded():
            with belongings.written.watching(), eager():
                found = find_chain(model, sample)
            holding, carrying = survey_module(model, found, arguments, loss)
            with ExitStack() as stack:
                for setting in holding.settings:
                    setting.enter(stack)
                made = belongings.additions()
                stages = measure_stages(holding.stages, holding.input, None, progress, whole.name, codecs, made)
                chain = holding.around(stages)
                if carrying is not None:
                    timed = stages.stages
                    stages = measure_stages(carrying.stages, carrying.input, None, None, whole.name, (), made, timed)
                    chain = with_carried(chain, carrying.around(stages))
        with running(whole, arguments):
            chain = rehearse_module(model, chain, arguments, loss)
            if chain.carried is not None:
                chain = with_carried(chain, rehearse_module(model, chain.carried, arguments, loss))
    remember_sample(model, chain, arguments, holding.passed)
    return chain


@contextmanager
def eager() -> Iterator[None]:
    """Let compiled modules run as written: they are measured by themselves, compiled."""
    with torch.compiler.set_stance("force_eager"):
        yield


def survey_module(
    model: nn.Module, stages: Sequence[StageModule], arguments: Arguments, loss: Callable[[Any], torch.Tensor]
) -> tuple[Surroundings, Surroundings | None]:
    """Survey what lies around the stages, held, and carried where anything leaps over some of them."""
    whole, device = StageModule(type(model).__name__, (model,)), device_of(model)
    with eager(), running(whole, arguments):
        holding = survey(model, stages, lambda: copy_of(arguments), loss, device)
        if not holding.leaps:
            return holding, None
        return holding, survey(model, stages, lambda: copy_of(arguments), loss, device, carries=True)


def rehearse_plan(
    model: nn.Module, sample: Any, plan: Plan, loss: Callable[[Any], torch.Tensor] | None = None
) -> Chain:
    """Run a step of a model by a plan, traced; return the plan's chain with the peaks that it was seen to have."""
    if is_plain_sequential(model):
        return rehearse_children(model._modules, sample, plan, loss)
    whole, arguments = StageModule(type(model).__name__, (model,)), arguments_of(model, sample)
    with isolated([whole], arguments), recomputing(), running(whole, arguments):
        run_plainly(model)
        return rehearse_module(model, plan.chain, arguments, loss or default_loss, [lambda _: plan])


def rehearse_module(
    model: nn.Module,
    chain: Chain,
    arguments: Arguments,
    loss: Callable[[Any], torch.Tensor],
    plans: Iterable[Callable[[Chain], Plan]] = USUAL,
) -> Chain:
    """Rehearse steps of a module that runs its stages itself, where it is isolated."""
    habits = Habits.quiet(len(chain))

    def follow(plan: Plan, runs: Runs) -> Callable[[Arguments], Any]:
        planned = PlannedChain(model, replace(plan, budget=None), lambda model, plan, arguments: plan)
        planned.habits, planned.runs = habits, runs

        def forward(given: Arguments) -> Any:
            with planned.following():
                return model(*given[0], **given[1])

        return forward

    parameters, device = list(model.parameters()), device_of(model)
    return rehearse(chain, follow, lambda: copy_of(arguments), loss, parameters, device, plans)
