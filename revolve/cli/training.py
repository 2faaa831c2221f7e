"""``revolve-plan model`` and ``verify``: planning for a model, and one real step of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from revolve.report.files import check_target, write_target
from revolve.schedules import Chain, Frontier, Plan, RevolveError, parse_bytes, solve

from . import parameters
from .exceptions import FAILED_CHECK, CommandError
from .models import load_model, make_sample, parse_shape
from .output import guard_stdout, print_content, print_json, show_progress
from .planning import check_request, print_frontier, print_plan, print_written, resolve_budget, write_plan

if TYPE_CHECKING:
    from torch import nn

__all__ = ["plan_model", "verify_model"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that a command works on, and a batch for it."""

    spec: str
    model: nn.Module
    sample: Any


def plan_model(
    model: parameters.Spec,
    shape: parameters.Input = None,
    dtype: parameters.Dtype = "float32",
    budget: parameters.Budget = None,
    fraction: parameters.Fraction = None,
    formats: parameters.Formats = None,
    tolerance: parameters.Tolerance = 0.0,
    seed: parameters.Seed = 0,
    save: parameters.SavePlan = None,
    save_chain: parameters.SaveChain = None,
    out: parameters.Out = None,
    as_json: parameters.Json = False,
) -> None:
    """Measure a model and plan its training inside a budget; without one, show what budgets cost."""
    chosen = check_request(budget, fraction, save, out, as_json)
    check_measuring(model, shape, budget, save_chain)
    subject = prepare(model, shape, dtype, seed)
    frontier = measure_frontier(subject, formats, tolerance, save_chain)
    if not chosen:
        print_frontier(frontier)
        return
    plan = choose_plan(subject, frontier, budget, fraction)
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
    plan_file: parameters.PlanFile = None,
    formats: parameters.Formats = None,
    tolerance: parameters.Tolerance = 0.0,
    seed: parameters.Seed = 0,
    repeats: parameters.Repeats = 3,
    save: parameters.SavePlan = None,
    save_chain: parameters.SaveChain = None,
    out: parameters.Out = None,
    as_json: parameters.Json = False,
) -> None:
    """Run one plain and one planned step: what is equal, predicted and measured peak and time.

    Exit code 1 if anything differs from plain training or the measured peak is above the budget.
    """
    if plan_file is not None and (budget is not None or fraction is not None or save_chain is not None):
        raise CommandError("--plan brings its own chain and budget; leave out --budget, --fraction and --save-chain")
    if plan_file is None and budget is None and fraction is None:
        raise CommandError("a step is verified for a plan; give --budget, --fraction or --plan")
    # A plan file takes the place of a budget in the checks.
    check_request(budget, 1.0 if plan_file is not None else fraction, save, out, as_json)
    check_measuring(model, shape, budget, save_chain)
    plan = None if plan_file is None else Plan.load(plan_file)
    subject = prepare(model, shape, dtype, seed)
    if plan is None:
        plan = choose_plan(subject, measure_frontier(subject, formats, tolerance, save_chain), budget, fraction)
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
    if not (report.exact and report.kept):
        raise typer.Exit(FAILED_CHECK)


def check_measuring(model: str, shape: str | None, budget: str | None, save_chain: Path | None) -> None:
    """Check shape, budget and file before the model is even imported."""
    parse_shape(model, shape)
    if budget is not None:
        parse_bytes(budget, 0)
    if save_chain is not None:
        check_target(save_chain)


def prepare(spec: str, shape: str | None, dtype: str, seed: int) -> Subject:
    """Build the model and a batch from the seed."""
    with guard_stdout():
        model = load_model(spec, dtype, seed)
        return Subject(spec, model, make_sample(model, spec, shape, dtype))


def measure_frontier(
    subject: Subject, formats: list[str] | None, tolerance: float, save_chain: Path | None
) -> Frontier:
    """Measure a model's chain, keep it where that was asked for, and solve it."""
    with user_code("measuring"), show_progress("measuring") as progress:
        from revolve.runtime.measurement import measure

        chain: Chain = replace(measure(subject.model, subject.sample, progress=progress), name=subject.spec)
    if save_chain is not None:
        write_target(save_chain, chain.save)
    with show_progress("solving"):
        return solve(chain, formats=formats or ("dense",), tolerance=tolerance)


def choose_plan(subject: Subject, frontier: Frontier, budget: str | None, fraction: float | None) -> Plan:
    """Return the plan for a budget, which may be a share of what the model's device has free."""
    available = None
    if budget is not None and budget.strip().endswith("%"):
        from revolve.runtime.memory import free_bytes

        available = free_bytes(subject.model)
    return frontier.plan(resolve_budget(frontier.chain, budget, fraction, available))


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
