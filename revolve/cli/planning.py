"""``revolve-plan chain`` and ``plot``: planning without a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from revolve.report.files import check_target, write_target
from revolve.schedules import Chain, Frontier, Plan, solve

from . import parameters
from .exceptions import CommandError
from .goals import Goal
from .output import print_content, print_json, show_progress

__all__ = [
    "check_request",
    "plan_chain",
    "plot_plan",
    "print_frontier",
    "print_plan",
    "print_written",
    "read_tolerance",
    "solve_chain",
    "write_plan",
]


def plan_chain(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A chain file (revolve.chain/1).", show_default=False)],
    budget: parameters.Budget = None,
    fraction: parameters.Fraction = None,
    overhead: parameters.Overhead = None,
    formats: parameters.Formats = None,
    tolerance: parameters.Tolerance = "auto",
    save: parameters.SavePlan = None,
    out: parameters.Out = None,
    as_json: parameters.Json = False,
) -> None:
    """Plan a measured chain inside a budget; without one, show what budgets cost."""
    goal = Goal(budget, fraction, overhead)
    goal.check(device=False)
    check_request(bool(goal.given), save, out, as_json)
    share = read_tolerance(tolerance)
    frontier = solve_chain(Chain.load(file), formats, share)
    if not goal.given:
        print_frontier(frontier)
        return
    plan = frontier.plan(goal.resolve(frontier))
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


def check_request(chosen: bool, save: Path | None, out: Path | None, as_json: bool) -> None:
    """Check the options that are for a plan, before anything is measured or solved.

    Parameters
    ----------
    chosen
        Whether there will be a plan.
    save, out, as_json
        Where to write and draw it, and whether to print it as JSON.

    Raises
    ------
    CommandError
        If there will be none.
    ReportError
        If a file cannot be written.
    """
    for option, given in (("--json", as_json), ("--save", save), ("--out", out)):
        if given and not chosen:
            raise CommandError(f"{option} is for a plan, and a plan needs --budget, --fraction or --overhead")
    if save is not None:
        check_target(save)
    if out is not None:
        from revolve.report.plots import check_picture

        check_picture(out)


def read_tolerance(text: str) -> float | str:
    """Read ``"auto"`` or a number.

    Raises
    ------
    CommandError
        If it is neither, negative, or not finite.
    """
    if text == "auto":
        return text
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share < math.inf:
        raise CommandError(f"--tolerance {text} is not possible; write a number of 0 or more such as 0.01, or auto")
    return share


def solve_chain(chain: Chain, formats: list[str] | None, tolerance: float | str) -> Frontier:
    """Solve a chain, with progress on a terminal."""
    with show_progress("solving"):
        return solve(chain, formats=formats or ("dense",), tolerance=tolerance)


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
    print_origin(frontier.chain)
    typer.echo(
        "Choose a budget from the least peak up: --budget 300MB, --fraction 0.4 of plain training's peak, "
        "or\n--overhead 10% for the least peak at most so much slower."
    )


def print_plan(plan: Plan, *written: Path | None) -> None:
    """Show a chain, the plan for it, and where the plan was written."""
    from revolve.report.tables import tabulate_chain, tabulate_plan

    print_content(tabulate_chain(plan.chain), tabulate_plan(plan))
    print_origin(plan.chain)
    print_written(*written)


def print_origin(chain: Chain) -> None:
    """Say where a chain's sizes and times are from, where they were not measured."""
    if chain.origin:
        typer.echo(f"Chain: {chain.origin}")


def print_written(*written: Path | None) -> None:
    """Say which files were written."""
    for path in written:
        if path is not None:
            typer.echo(f"written: {path}")
