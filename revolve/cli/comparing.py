"""``revolve-plan frontier`` and ``compare``: what budgets cost, and what other strategies make of one."""

from __future__ import annotations

from pathlib import Path

from revolve.schedules import Comparison, Frontier, compare
from revolve.schedules.comparison import check_strategies

from . import parameters
from .exceptions import CommandError
from .goals import Goal
from .output import print_content, print_json, show_progress
from .planning import print_frontier, print_written, read_tolerance, solve_chain
from .sources import Source
from .training import available_bytes

__all__ = ["compare_strategies", "show_frontier"]


def show_frontier(
    source: parameters.SourceSpec,
    shape: parameters.Input = None,
    dtype: parameters.Dtype = "float32",
    formats: parameters.Formats = None,
    tolerance: parameters.Tolerance = "auto",
    seed: parameters.Seed = 0,
    save_chain: parameters.SaveChain = None,
    out: parameters.Curve = None,
    as_json: parameters.Json = False,
) -> None:
    """Show what every budget costs: the least peak, the knee, plain training, and points between them."""
    origin = Source(source, shape, dtype, seed, save_chain, formats)
    origin.check()
    check_curve(out)
    share = read_tolerance(tolerance)
    chain, _ = origin.load()
    frontier = solve_chain(chain, formats, share)
    draw_curve(frontier, [], out)
    if as_json:
        print_json(frontier_document(frontier))
    else:
        print_frontier(frontier)
        print_written(save_chain, out)


def compare_strategies(
    source: parameters.SourceSpec,
    budget: parameters.Budget = None,
    fraction: parameters.Fraction = None,
    overhead: parameters.Overhead = None,
    strategies: parameters.Strategies = None,
    shape: parameters.Input = None,
    dtype: parameters.Dtype = "float32",
    formats: parameters.Formats = None,
    tolerance: parameters.Tolerance = "auto",
    seed: parameters.Seed = 0,
    save_chain: parameters.SaveChain = None,
    out: parameters.Curve = None,
    as_json: parameters.Json = False,
) -> None:
    """Plan within one budget by every strategy: torch's split, Chen's, Revolve, ..., and the optimum."""
    origin, goal = Source(source, shape, dtype, seed, save_chain, formats), Goal(budget, fraction, overhead)
    if not goal.given:
        raise CommandError("strategies are compared at one budget; give --budget, --fraction or --overhead")
    goal.check(device=origin.is_model)
    check_strategies(strategies)
    origin.check()
    check_curve(out)
    share = read_tolerance(tolerance)
    chain, subject = origin.load()
    frontier = solve_chain(chain, formats, share)
    limit = goal.resolve(frontier, available_bytes(goal, subject))
    frontier.plan(limit)  # where not even the optimum fits there is nothing to compare
    with show_progress("comparing"):
        found = compare(chain, limit, strategies=strategies, frontier=frontier)
    draw_curve(frontier, found, out)
    if as_json:
        print_json(comparison_document(frontier, limit, found))
    else:
        from revolve.report.tables import tabulate_comparison

        print_content(tabulate_comparison(found, frontier))
        print_written(save_chain, out)


def check_curve(out: Path | None) -> None:
    """Check that the picture can be written."""
    if out is not None:
        from revolve.report.plots import check_picture

        check_picture(out)


def draw_curve(frontier: Frontier, found: list[Comparison], out: Path | None) -> None:
    """Draw the frontier and the strategies beside it, where that was asked for."""
    if out is not None:
        from revolve.report.curves import draw_frontier

        draw_frontier(frontier, out, comparisons=found)


def frontier_document(frontier: Frontier) -> dict[str, object]:
    """Return the ``revolve.frontier/1`` document."""
    return {
        "format": "revolve.frontier/1",
        "chain": frontier.chain.name,
        "length": len(frontier.chain),
        "tolerance": frontier.tolerance,
        "plain_makespan": frontier.chain.plain_makespan,
        "smallest": frontier.smallest,
        "knee": frontier.knee,
        "plain": frontier.plain,
        "peaks": frontier.peaks.tolist(),
        "makespans": frontier.makespans.tolist(),
    }


def comparison_document(frontier: Frontier, limit: int, found: list[Comparison]) -> dict[str, object]:
    """Return the ``revolve.compare/1`` document."""
    return {
        "format": "revolve.compare/1",
        "chain": frontier.chain.name,
        "length": len(frontier.chain),
        "budget": limit,
        "plain_peak": frontier.plain,
        "plain_makespan": frontier.chain.plain_makespan,
        "strategies": [comparison.to_json() for comparison in found],
    }
