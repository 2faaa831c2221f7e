"""Compares a planned step with a plain one: every bit, the peak, and the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from statistics import median
from typing import Any

import torch
from torch import nn

from revolve.schedules.plans import Plan
from revolve.storage.boundary import tensors_of
from revolve.storage.codecs import codec_named

from .allocations import trace_allocations
from .bench import step_clock
from .exceptions import ModelError
from .generators import FOREIGN, RandomState, default_sources, devices_of
from .instrumentation import Instrument, instrument_of, plan_of, put_on, take_off
from .isolation import Belongings, isolated, leaves_kept
from .measurement import default_loss, running
from .memory import device_of
from .samples import Arguments, arguments_of
from .stages import StageModule, check_model
from .state import same

__all__ = ["Report", "verify"]


@dataclass(frozen=True)
class Report:
    """What :func:`verify` found; sizes in bytes, times in seconds.

    Attributes
    ----------
    output_equal, loss_equal, gradients_equal, buffers_equal, rng_equal
        Whether the planned step gave the very bits of the plain one.
    differences
        Names of what differs.
    plan
        The plan that was executed.
    budget
        Its budget, None if it has none.
    predicted_peak, measured_peak
        Peak of the planned step over the level before it, as planned and as the allocator saw it.
    predicted_plain_peak, plain_peak
        The same of the plain step.
    predicted_time, measured_time, predicted_plain_time, plain_time
        Medians: CPU time on a CPU, wall time elsewhere.
    lossy
        The formats of the plan that do not give every bit back.
    deviation
        The largest difference of a gradient from the plain one, relative to that: Euclidean norms.
    """

    output_equal: bool
    loss_equal: bool
    gradients_equal: bool
    buffers_equal: bool
    rng_equal: bool
    differences: tuple[str, ...]
    plan: Plan
    budget: int | None
    predicted_peak: int
    measured_peak: int
    predicted_plain_peak: int
    plain_peak: int
    predicted_time: float
    measured_time: float
    predicted_plain_time: float
    plain_time: float
    lossy: tuple[str, ...] = ()
    deviation: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether everything is equal bit for bit."""
        return not self.differences

    @property
    def kept(self) -> bool:
        """Whether the measured peak is within the budget."""
        return self.budget is None or self.measured_peak <= self.budget

    @property
    def passed(self) -> bool:
        """Whether the budget was kept and nothing differs but what may: gradients, where a format is lossy."""
        forgiven = bool(self.lossy) and all(name.startswith("gradient") for name in self.differences)
        return self.kept and (self.exact or forgiven)

    def to_json(self) -> dict[str, Any]:
        """Return the report as a ``revolve.report/1`` document, without the plan's actions."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "plan"}
        values["differences"] = list(self.differences)
        values["lossy"] = list(self.lossy)
        return {"format": "revolve.report/1", "exact": self.exact, "kept": self.kept, **values}


def verify(
    model: nn.Module,
    sample: Any,
    loss: Callable[[Any], torch.Tensor] | None = None,
    *,
    repeats: int = 3,
) -> Report:
    """Run plain and planned steps of a model that has a plan, and compare them.

    Parameters
    ----------
    model
        A model that :func:`checkpointed` has been called on. Its parameters, gradients, buffers and
        random numbers are as before afterwards; nothing is learned, and no hook of a parameter fires.
    sample
        The input, as for :func:`measure`.
    loss
        Maps the output to a scalar; default the output's own ``loss``, else half the mean square.
    repeats
        Timed steps of each kind, alternating; medians are reported.

    Returns
    -------
    Report
        Equality, peaks and times.

    Raises
    ------
    ModelError
        If the model has no plan, or is in eval mode.
    MeasurementError
        If a step fails.
    """
    plan = plan_of(check_model(model))
    if plan is None:
        raise ModelError("the model has no plan; call revolve.checkpointed(model, plan) before revolve.verify")
    if not model.training:
        raise ModelError("the model is in eval mode, where it runs untouched; call model.train() first")
    instrument, arguments = instrument_of(model), arguments_of(model, sample)
    times: dict[bool, list[float]] = {False: [], True: []}
    step = StageModule("step", (model,))
    try:
        with running(step, arguments), isolated([step], arguments), input_gradients_kept(arguments):
            trial = Trial(model, arguments, loss or default_loss, instrument)
            for planned in (False, True):
                trial.use(planned)
                trial.step()  # warm up: first-use allocations are not the step's
            trial.use(False)
            expected, plain_peak = trial.traced()
            trial.use(True)
            actual, measured_peak = trial.traced()
            plan = trial.plan or plan
            for _ in range(repeats):
                for planned in times:
                    trial.use(planned)
                    times[planned].append(trial.timed())
    finally:
        if instrument is not None:
            put_on(model, instrument)
    differences = tuple(name for name in expected if not equal(expected[name], actual[name]))
    parts = {name.split(" ")[0] for name in differences}
    return Report(
        output_equal="output" not in parts,
        loss_equal="loss" not in parts,
        gradients_equal="gradient" not in parts,
        buffers_equal="buffer" not in parts,
        rng_equal="random" not in parts,
        differences=differences,
        plan=plan,
        budget=plan.budget,
        predicted_peak=plan.peak,
        measured_peak=measured_peak,
        predicted_plain_peak=plan.plain_peak,
        plain_peak=plain_peak,
        predicted_time=plan.makespan,
        measured_time=median(times[True]),
        predicted_plain_time=plan.plain_makespan,
        plain_time=median(times[False]),
        lossy=tuple(name for name in plan.formats() if name != "dense" and not codec_named(name).lossless),
        deviation=max(
            (deviation_of(expected[name], actual[name]) for name in differences if "gradient" in name), default=0.0
        ),
    )


@contextmanager
def input_gradients_kept(sample: Any) -> Iterator[None]:
    """Put the gradients of the input back at the end."""
    leaves = [(t, t.grad) for t in tensors_of(sample) if t.requires_grad and t.is_leaf]
    try:
        yield
    finally:
        for leaf, gradient in leaves:
            leaf.grad = gradient


def equal(a: torch.Tensor | bytes | None, b: torch.Tensor | bytes | None) -> bool:
    """Whether two results are equal bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return same(a, b)
    return a is b or (isinstance(a, bytes) and a == b)


def deviation_of(plain: torch.Tensor | bytes | None, planned: torch.Tensor | bytes | None) -> float:
    """Return the norm of a difference over the norm of the plain value; infinite where only one of them exists."""
    if not (isinstance(plain, torch.Tensor) and isinstance(planned, torch.Tensor)) or plain.is_sparse:
        return float("inf")
    scale, difference = (torch.linalg.vector_norm(t).to(torch.float64).item() for t in (plain, planned - plain))
    return difference / scale if scale else float("inf")


class Trial:
    """Steps of one model from one starting state."""

    def __init__(
        self, model: nn.Module, arguments: Arguments, loss: Callable[[Any], torch.Tensor], instrument: Instrument | None
    ) -> None:
        self.model = model
        self.instrument = instrument
        self.runner: Instrument | None = None  # in planned steps
        self.plan: Plan | None = None  # of the latest step
        self.arguments = arguments
        self.loss = loss
        self.device = device_of(model)
        tensors = [*model.parameters(), *model.buffers(), *tensors_of(arguments)]
        owned = StageModule("model", (model,)).sources()
        self.random = RandomState((*default_sources(devices_of(tensors)), *owned, *FOREIGN))
        self.start = self.random.read()
        self.belongings = Belongings(model.modules())
        self.buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
        self.leaves: dict[str, torch.Tensor] = {f"gradient of {name}": p for name, p in model.named_parameters()}
        inputs = [t for t in tensors_of(arguments) if t.requires_grad and t.is_leaf]
        self.leaves |= {f"gradient of input {number}": t for number, t in enumerate(inputs)}
        self.present = {
            name for name, leaf in self.leaves.items() if leaf.grad is not None or getattr(leaf, "existing", False)
        }

    def use(self, planned: bool) -> None:
        """Put the plan on the model, or take it off."""
        if self.instrument is not None:
            (put_on if planned else take_off)(self.model, self.instrument)
        self.runner = self.instrument if planned else None

    def reset(self) -> None:
        """Go back to the starting state; gradients that existed are zero copies."""
        self.random.write(self.start)
        self.belongings.put_back()
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self.buffers[name])
        for name, leaf in self.leaves.items():
            leaf.grad = torch.zeros_like(leaf) if name in self.present else None
        if self.runner is not None:  # a plan that has to be made anew is measured now, which is no part of the step
            self.plan = self.runner.plan_for(self.model, self.arguments)

    def step(self) -> tuple[Any, torch.Tensor]:
        """Run one step from the starting state; return output and loss."""
        self.reset()
        output = self.model(*self.arguments[0], **self.arguments[1])
        loss = self.loss(output)
        with leaves_kept(loss, self.leaves.values()):
            loss.backward()
        return output, loss

    def timed(self) -> float:
        """Return the seconds of one step."""
        self.reset()
        start = step_clock(self.device)
        loss = self.loss(self.model(*self.arguments[0], **self.arguments[1]))
        middle = step_clock(self.device)
        with leaves_kept(loss, self.leaves.values()):
            again = step_clock(self.device)
            loss.backward()
            return step_clock(self.device) - again + middle - start

    def traced(self) -> tuple[dict[str, torch.Tensor | bytes | None], int]:
        """Run one step; return everything it left, and its peak in bytes."""
        self.reset()
        with trace_allocations(self.device) as tracer:
            output = self.model(*self.arguments[0], **self.arguments[1])
            loss = self.loss(output)
            with leaves_kept(loss, self.leaves.values()):
                loss.backward()
                tracer.mark()
        left: dict[str, torch.Tensor | bytes | None] = {"loss": loss.detach()}
        left |= {f"output {number}": t.detach() for number, t in enumerate(tensors_of(output))}
        left |= {name: leaf.grad for name, leaf in self.leaves.items()}
        left |= {f"buffer {name}": buffer.detach().clone() for name, buffer in self.model.named_buffers()}
        left["random state"] = repr(self.random.read()).encode()
        return left, tracer.phases[0].peak
