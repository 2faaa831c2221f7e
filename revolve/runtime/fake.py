"""Measures models without running them: on tensors that have shapes and no values, for a device that is described."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.nn.parameter import is_lazy

from revolve.schedules.chain import Chain, Stage
from revolve.schedules.plans import with_carried
from revolve.storage.boundary import map_tensors

from .devices import DEFAULT, DeviceDescription, find_device
from .exceptions import MeasurementError
from .fake_assumptions import assumed_answers
from .fake_dispatch import FakeDevice
from .instruments import measuring_with
from .isolation import restore_table

__all__ = ["RESERVE", "measure_fake"]

# Share of what the largest stage takes that is added to every peak: for what kernels take in passing without a
# formula in ``fake_scratch``, as benchmarks/fake.py found it.
RESERVE = 0.02

UNKNOWN_VALUES = (DataDependentOutputException, DynamicOutputShapeException)


class Imagination:
    """Fake tensors in place of real ones and of those on the meta device, the same for the same.

    Parameters
    ----------
    mode
        The mode that they belong to.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self.known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the fake tensor of a tensor; one on the meta device becomes one on the CPU."""
        if id(tensor) not in self.known:
            self.known[id(tensor)] = (tensor, self.imagine(tensor))
        return self.known[id(tensor)][1]

    def imagine(self, tensor: torch.Tensor) -> torch.Tensor:
        """Make a fake tensor."""
        if isinstance(tensor, FakeTensor):
            raise MeasurementError("the model or its input has fake tensors already; pass those of the meta device")
        if tensor.layout is not torch.strided:
            raise MeasurementError(
                f"the model or its input has a tensor of layout {tensor.layout}, and fake ones are dense; measure "
                "without mode='fake'"
            )
        if tensor.is_meta:
            fake: torch.Tensor = FakeTensor(self.mode, tensor.data, torch.device("cpu"))
        else:
            fake = self.mode.from_tensor(tensor.detach())
        if isinstance(tensor, nn.Parameter):
            fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
        elif tensor.requires_grad:
            fake = fake.detach().requires_grad_()
        if tensor.is_leaf and tensor.grad is not None:
            fake.grad = self(tensor.grad)
        return fake


@contextmanager
def imagined(model: nn.Module, imagination: Imagination) -> Iterator[None]:
    """Let a model consist of fake tensors; when the block ends, of the very tensors of before."""
    with ExitStack() as stack:
        for module in dict.fromkeys(model.modules()):
            tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
            for table in tables:
                stack.callback(restore_table, table, dict(table))
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and is_lazy(parameter):
                    raise MeasurementError(
                        f"{type(module).__name__}.{name} is not initialised; run the model once before measuring it"
                    )
            for table in tables:
                for name, value in list(table.items()):
                    if isinstance(value, torch.Tensor):
                        table[name] = imagination(value)
                    elif type(value) in (list, tuple) and any(isinstance(item, torch.Tensor) for item in value):
                        table[name] = map_tensors(imagination, value)  # as RNNs list their weights
        yield


@contextmanager
def failures_unlogged() -> Iterator[None]:
    """Keep torch from logging operations that fail, with their traceback: what they raise says as much."""
    logger = logging.getLogger(FakeTensorMode.__module__)

    def is_minor(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR

    logger.addFilter(is_minor)
    try:
        yield
    finally:
        logger.removeFilter(is_minor)


def measure_fake(
    model: nn.Module, sample: Any, device: str | DeviceDescription | None, measure: Callable[[Any], Chain]
) -> Chain:
    """Measure a model on fake tensors.

    Parameters
    ----------
    model
        The model; its parameters may be on the meta device. It is left as it was.
    sample
        Its input, which may be on the meta device.
    device
        What the times are for: a name or a description; None for one that computes and copies evenly.
    measure
        Measures the model with the fake input.

    Returns
    -------
    Chain
        With a reserve in every peak, and saying so.

    Raises
    ------
    MeasurementError
        If the model looks at the values of tensors.
    """
    description = DEFAULT if device is None else find_device(device)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    imagination, fake = Imagination(mode), FakeDevice(description, mode)
    fake_sample = map_tensors(imagination, sample)  # outside the mode, in which older torch makes it fake twice
    with imagined(model, imagination), mode, fake, measuring_with(fake), assumed_answers(), failures_unlogged():
        try:
            chain = measure(fake_sample)
        except MeasurementError as error:
            if isinstance(error.__cause__, UNKNOWN_VALUES):
                raise MeasurementError(
                    f"{error}: it looks at the values of tensors, and fake ones have none; measure without mode='fake'"
                ) from error
            raise
    return with_reserve(chain, description)


def with_reserve(chain: Chain, description: DeviceDescription) -> Chain:
    """Return a chain whose peaks have room for what could not be counted."""
    reserve = int(RESERVE * max(total(stage) for stage in chain.stages))
    names = ("forward_extra", "save_extra", "rebuild_extra", "backward_extra")
    stages = [replace(stage, **{name: getattr(stage, name) + reserve for name in names}) for stage in chain.stages]
    origin = (
        f"fake: sizes counted without running, every peak with {reserve} bytes in reserve for what kernels take in "
        f"passing; times modelled for {description.name}, to rank stages by, not to be read as seconds"
    )
    reserved = replace(chain, stages=tuple(stages), loss_extra=chain.loss_extra + reserve, origin=origin)
    return with_carried(reserved, with_reserve(chain.carried, description)) if chain.carried else reserved


def total(stage: Stage) -> int:
    """Return the most bytes that a stage takes in one of its runs."""
    forward = stage.output_bytes + max(stage.forward_extra, stage.save_extra + stage.saved_bytes)
    return max(forward, stage.saved_bytes + stage.output_bytes + stage.backward_extra)
