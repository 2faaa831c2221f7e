"""``revolve-plan chain`` and ``plot``: planning without a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from revolve.report.files import check_target, write_target
from revolve.schedules import Chain, Frontier, Plan, parse_bytes, simulate, solve
from revolve.schedules.plans import plain_schedule

from . import parameters
from .exceptions import CommandError
from .output import print_content, print_json, show_progress

__all__ = [
    "check_request",
    "plan_chain",
    "plot_plan",
    "print_frontier",
    "print_plan",
    "print_written",
    "resolve_budget",
    "write_plan",
]


def plan_chain(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A chain file (revolve.chain/1).", show_default=False)],
    budget: parameters.Budget = None,
    fraction: parameters.Fraction = None,
    formats: parameters.Formats = None,
    tolerance: parameters.Tolerance = 0.0,
    save: parameters.SavePlan = None,
    out: parameters.Out = None,
    as_json: parameters.Json = False,
) -> None:
    """Plan a measured chain inside a budget; without one, show what budgets cost."""
    chosen = check_request(budget, fraction, save, out, as_json)
    chain = Chain.load(file)
    # A budget that cannot be read should not wait for the solver.
    size = resolve_budget(chain, budget, fraction) if chosen else 0
    with show_progress("solving"):
        frontier = solve(chain, formats=formats or ("dense",), tolerance=tolerance)
    if not chosen:
        print_frontier(frontier)
        return
    plan = frontier.plan(size)
    write_plan(plan, save, out)
    if as_json:
        print_json(plan.to_json())
    else:
        print_plan(plan, save, out)


def plot_plan(
    file: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan file (revolve.plan/1).", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture: .png, .svg or .pdf.")],
    title: parameters.Title = None,
    as_json: parameters.Json = False,
) -> None:
    """Draw a saved plan: stage against time, and the memory curve under it."""
    from revolve.report.plots import draw_schedule

    plan = Plan.load(file)
    draw_schedule(plan, out, title)
    if as_json:
        facts = {"peak": plan.peak, "makespan": plan.makespan, "actions": len(plan.actions)}
        print_json({"format": "revolve.plot/1", "out": str(out), **facts})
    else:
        typer.echo(f"{len(plan.actions)} actions on {len(plan.chain)} stages drawn to {out}")


def check_request(
    budget: str | None, fraction: float | None, save: Path | None, out: Path | None, as_json: bool
) -> bool:
    """Check what can be checked before anything is measured or solved; return whether a budget is chosen.

    Raises
    ------
    CommandError
        If options contradict each other.
    ReportError
        If a file cannot be written.
    """
    if budget is not None and fraction is not None:
        raise CommandError("--budget and --fraction both choose the budget; give one of them")
    if fraction is not None and not (math.isfinite(fraction) and fraction > 0):
        raise CommandError(f"--fraction {fraction} is no share; write a number above 0, for example 0.4")
    chosen = budget is not None or fraction is not None
    for option, given in (("--json", as_json), ("--save", save), ("--out", out)):
        if given and not chosen:
            raise CommandError(f"{option} is for a plan, and a plan needs --budget or --fraction")
    if save is not None:
        check_target(save)
    if out is not None:
        from revolve.report.plots import check_picture

        check_picture(out)
    return chosen


def resolve_budget(chain: Chain, budget: str | None, fraction: float | None, available: int | None = None) -> int:
    """Return the budget in bytes.

    Parameters
    ----------
    chain
        The chain; ``fraction`` is of its plain peak.
    budget, fraction
        What was asked for, one of them.
    available
        Bytes that the device has free, for budgets such as ``"80%"``.

    Raises
    ------
    BudgetError
        If the budget cannot be understood.
    """
    if fraction is not None:
        return int(fraction * simulate(chain, plain_schedule(len(chain))).peak)
    assert budget is not None
    return parse_bytes(budget, available)


def write_plan(plan: Plan, save: Path | None, out: Path | None) -> None:
    """Write the plan and its picture where that was asked for."""
    if save is not None:
        write_target(save, plan.save)
    if out is not None:
        from revolve.report.plots import draw_schedule

        draw_schedule(plan, out)


def print_frontier(frontier: Frontier) -> None:
    """Show a chain and what budgets cost on it."""
    from revolve.report.tables import tabulate_chain, tabulate_frontier

    print_content(tabulate_chain(frontier.chain), tabulate_frontier(frontier))
    typer.echo("Choose a budget from the least peak up: --budget 300MB, or --fraction 0.4 of plain training's peak.")


def print_plan(plan: Plan, *written: Path | None) -> None:
    """Show a chain, the plan for it, and where the plan was written."""
    from revolve.report.tables import tabulate_chain, tabulate_plan

    print_content(tabulate_chain(plan.chain), tabulate_plan(plan))
    print_written(*written)


def print_written(*written: Path | None) -> None:
    """Say which files were written."""
    for path in written:
        if path is not None:
            typer.echo(f"written: {path}")
