"""``revolve-plan model`` and ``verify``: planning for a model, and one real step of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from revolve.report.files import check_target, write_target
from revolve.schedules import Chain, Plan, RevolveError

from . import parameters
from .exceptions import FAILED_CHECK, CommandError
from .goals import Goal
from .models import load_model, make_sample, parse_shape
from .output import guard_stdout, print_content, print_json, show_progress
from .planning import (
    check_request,
    print_frontier,
    print_plan,
    print_written,
    read_tolerance,
    solve_chain,
    write_plan,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Subject",
    "Target",
    "available_bytes",
    "check_measuring",
    "measure_chain",
    "plan_model",
    "prepare",
    "verify_model",
]


@dataclass(frozen=True, slots=True)
class Target:
    """A device that is not there, by its name; None for any."""

    device: str | None

    def check(self) -> None:
        """Check that the device is described."""
        from revolve.runtime.devices import find_device

        if self.device is not None:
            find_device(self.device)

    def free_bytes(self, model: nn.Module) -> int | None:
        """Return what it has free besides parameters and buffers; None where it is not known."""
        from revolve.runtime.devices import find_device

        if self.device is None:
            return None
        held = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        return max(0, find_device(self.device).memory_bytes - held)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that a command works on, and a batch for it; ``target`` where it is not to be run."""

    spec: str
    model: nn.Module
    sample: Any
    target: Target | None = None


def plan_model(
    model: parameters.Spec,
    shape: parameters.Input = None,
    dtype: parameters.Dtype = "float32",
    budget: parameters.Budget = None,
    fraction: parameters.Fraction = None,
    overhead: parameters.Overhead = None,
    formats: parameters.Formats = None,
    tolerance: parameters.Tolerance = "auto",
    seed: parameters.Seed = 0,
    fake: parameters.Fake = False,
    device: parameters.Device = None,
    save: parameters.SavePlan = None,
    save_chain: parameters.SaveChain = None,
    out: parameters.Out = None,
    as_json: parameters.Json = False,
) -> None:
    """Measure a model and plan its training inside a budget; without one, show what budgets cost."""
    goal = Goal(budget, fraction, overhead)
    goal.check(device=True)
    check_request(bool(goal.given), save, out, as_json)
    check_measuring(model, shape, save_chain)
    if device is not None and not fake:
        raise CommandError(f"--device {device} is for plans without running; add --fake, or leave it out")
    share = read_tolerance(tolerance)
    subject = prepare(model, shape, dtype, seed, Target(device) if fake else None)
    frontier = solve_chain(measure_chain(subject, save_chain, formats), formats, share)
    if not goal.given:
        print_frontier(frontier)
        return
    plan = frontier.plan(goal.resolve(frontier, available_bytes(goal, subject)))
    write_plan(plan, save, out)
    if as_json:
        print_json(plan.to_json())
    else:
        print_plan(plan, save, save_chain, out)


def verify_model(
    model: parameters.Spec,
    shape: parameters.Input = None,
    dtype: parameters.Dtype = "float32",
    budget: parameters.Budget = None,
    fraction: parameters.Fraction = None,
    overhead: parameters.Overhead = None,
    plan_file: parameters.PlanFile = None,
    formats: parameters.Formats = None,
    tolerance: parameters.Tolerance = "auto",
    seed: parameters.Seed = 0,
    repeats: parameters.Repeats = 3,
    save: parameters.SavePlan = None,
    save_chain: parameters.SaveChain = None,
    out: parameters.Out = None,
    as_json: parameters.Json = False,
) -> None:
    """Run one plain and one planned step: what is equal, predicted and measured peak and time.

    Exit code 1 if anything differs from plain training (gradients may, where a format is lossy) or the measured
    peak is above the budget.
    """
    goal = Goal(budget, fraction, overhead)
    if plan_file is not None and (goal.given or save_chain is not None):
        raise CommandError(
            "--plan brings its own chain and budget; leave out --budget, --fraction, --overhead and --save-chain"
        )
    if plan_file is None and not goal.given:
        raise CommandError("a step is verified for a plan; give --budget, --fraction, --overhead or --plan")
    goal.check(device=True)
    check_request(True, save, out, as_json)
    check_measuring(model, shape, save_chain)
    share = read_tolerance(tolerance)
    plan = None if plan_file is None else Plan.load(plan_file)
    subject = prepare(model, shape, dtype, seed)
    if plan is None:
        frontier = solve_chain(measure_chain(subject, save_chain, formats), formats, share)
        plan = frontier.plan(goal.resolve(frontier, available_bytes(goal, subject)))
    write_plan(plan, save, out)
    with user_code("the step"), show_progress("running plain and planned steps"):
        from revolve.runtime.instrumentation import checkpointed
        from revolve.runtime.verification import verify

        report = verify(checkpointed(subject.model, plan), subject.sample, repeats=repeats)
    if as_json:
        print_json(report.to_json())
    else:
        from revolve.report.tables import tabulate_report

        print_plan(plan)
        print_content(tabulate_report(report))
        print_written(save, save_chain, out)
    if not report.passed:
        raise typer.Exit(FAILED_CHECK)


def check_measuring(model: str, shape: str | None, save_chain: Path | None) -> None:
    """Check shape and file before the model is even imported."""
    parse_shape(model, shape)
    if save_chain is not None:
        check_target(save_chain)


def prepare(spec: str, shape: str | None, dtype: str, seed: int, target: Target | None = None) -> Subject:
    """Build the model and a batch from the seed; without memory where there is a target."""
    with guard_stdout(), ExitStack() as stack:
        if target is not None:
            import torch

            target.check()
            stack.enter_context(torch.device("meta"))
        model = load_model(spec, dtype, seed)
        return Subject(spec, model, make_sample(model, spec, shape, dtype), target)


def measure_chain(subject: Subject, save_chain: Path | None, formats: list[str] | None) -> Chain:
    """Measure a model's chain, with the formats that were asked for, and keep it where that was asked for."""
    with user_code("measuring"), show_progress("measuring") as progress:
        from revolve.runtime.profiling import measure

        ways: dict[str, Any] = {} if subject.target is None else {"mode": "fake", "device": subject.target.device}
        chain = measure(subject.model, subject.sample, formats=formats or (), progress=progress, **ways)
        chain = replace(chain, name=subject.spec)
    if save_chain is not None:
        write_target(save_chain, chain.save)
    return chain


def available_bytes(goal: Goal, subject: Subject | None) -> int | None:
    """Return what the model's device has free, where the goal is a share of it."""
    if subject is None or not goal.of_device:
        return None
    if subject.target is not None:
        return subject.target.free_bytes(subject.model)
    from revolve.runtime.memory import free_bytes

    return free_bytes(subject.model)


@contextmanager
def user_code(task: str) -> Iterator[None]:
    """Run the user's model: its prints go to standard error, its failures become one line."""
    try:
        with guard_stdout():
            yield
    except RevolveError:
        raise
    except Exception as error:
        raise CommandError(f"{task} failed: {type(error).__name__}: {error}") from error
