"""Every strategy on measured chains, within shares of plain training's peak: the tables of docs/baselines.md.

Without files, the demo models are measured first, in CPU time with one thread, with gradients that exist
before the step. With files, nothing is measured: the tables come out the same to the last digit.

    python benchmarks/compare.py [chain.json ...] [--models resnet50 mlp] [--fractions 0.75 0.3] [--save FOLDER]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from revolve.cli.demo_models import DEMO_MODELS
from revolve.schedules import Chain, Comparison, Frontier, InfeasibleBudget, compare, format_bytes, solve
from revolve.schedules.comparison import BASELINES


def measure_models(names: list[str], folder: Path | None) -> Iterator[Chain]:
    """Yield the measured chains of demo models, and keep them where that was asked for."""
    import torch

    import revolve

    torch.set_num_threads(1)
    for name in names:
        torch.manual_seed(0)
        model, sample = DEMO_MODELS[name].build(), torch.randn(DEMO_MODELS[name].shape)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        chain = replace(revolve.measure(model, sample), name=name)
        if folder is not None:
            chain.save(folder / f"{name}.json")
        yield chain


def describe_chain(frontier: Frontier) -> tuple[str, ...]:
    """Return the row of a chain in the first table."""
    smallest, knee = (frontier.plan(peak) for peak in (frontier.smallest, frontier.knee))
    return (
        frontier.chain.name,
        str(len(frontier.chain)),
        format_bytes(frontier.plain),
        f"{smallest.peak / frontier.plain:.1%}, {smallest.ratio - 1:+.1%}",
        f"{knee.peak / frontier.plain:.1%}, {knee.ratio - 1:+.1%}",
        f"{frontier.budget_for(0.1) / frontier.plain:.1%}",
    )


def least_bytes(strategy: str, frontier: Frontier) -> int:
    """Return the least budget of a strategy, as its error says."""
    try:
        plan = frontier.plan(0) if strategy == "optimal" else BASELINES[strategy](frontier.chain, 0)
    except InfeasibleBudget as error:
        return error.smallest
    return plan.peak


def describe_strategy(row: Comparison, plain: int) -> str:
    """Return the cell of a strategy: its time over plain training's and its parameter, or what it needs."""
    if row.plan is None:
        return f"needs {(row.smallest or 0) / plain:.1%}"
    _, _, parameter = row.plan.strategy.partition("(")
    size = format_bytes(int(parameter.rstrip(")"))) if row.strategy == "chen_greedy" else parameter.rstrip(")")
    return f"{row.plan.ratio - 1:+.1%}" + (f" ({size})" if parameter else "")


def describe_gain(rows: list[Comparison], *, without: tuple[str, ...]) -> str:
    """Return by how much the optimum's step is shorter than the best other one's; "tie" where it is not."""
    *others, optimum = rows
    fitting = [row for row in others if row.plan is not None and row.strategy not in without]
    if optimum.plan is None:
        return ""
    if not fitting:
        return "alone"
    best = min(fitting, key=lambda row: row.plan.makespan)
    if best.plan.makespan <= optimum.plan.makespan:
        return "tie"
    return f"{1 - optimum.plan.makespan / best.plan.makespan:.2%} ({best.strategy})"


def print_least(frontiers: list[Frontier]) -> None:
    """Print the table of the least budget of each strategy, as a share of plain training's peak."""
    print("\nLeast budget of each strategy, as a share of plain training's peak:\n")
    print_row("strategy", *(f.chain.name for f in frontiers))
    print_row(*["---"] * (1 + len(frontiers)))
    for strategy in [*BASELINES, "optimal"]:
        print_row(strategy, *(f"{least_bytes(strategy, f) / f.plain:.1%}" for f in frontiers))


def print_row(*cells: str) -> None:
    """Print one row of a Markdown table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def print_comparison(frontiers: list[Frontier], fraction: float) -> None:
    """Print the table of one share of plain training's peak, a column a chain."""
    columns = [compare(f.chain, int(fraction * f.plain), frontier=f) for f in frontiers]
    print(f"\nWithin {fraction:.0%} of plain training's peak:\n")
    print_row("strategy", *(f.chain.name for f in frontiers))
    print_row(*["---"] * (1 + len(frontiers)))
    for rows in zip(*columns, strict=True):
        cells = (describe_strategy(row, f.plain) for row, f in zip(rows, frontiers, strict=True))
        print_row(rows[0].strategy, *cells)
    print_row("*optimal beats all others by*", *(describe_gain(rows, without=()) for rows in columns))
    near = ("single_level", "discretised")
    print_row("*and all but the last two by*", *(describe_gain(rows, without=near) for rows in columns))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="chain files, instead of measuring")
    parser.add_argument("--models", nargs="+", default=list(DEMO_MODELS), choices=list(DEMO_MODELS))
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.75, 0.5, 0.3])
    parser.add_argument("--save", type=Path, help="folder for the measured chains")
    options = parser.parse_args()
    chains = map(Chain.load, options.files) if options.files else measure_models(options.models, options.save)
    frontiers = [solve(chain) for chain in chains]
    print_row("chain", "stages", "plain peak", "least peak, time", "knee, time", "peak at +10 %")
    print_row(*["---"] * 6)
    for frontier in frontiers:
        print_row(*describe_chain(frontier))
    print_least(frontiers)
    for fraction in options.fractions:
        print_comparison(frontiers, fraction)


if __name__ == "__main__":
    main()
