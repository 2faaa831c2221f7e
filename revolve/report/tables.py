"""Tables for people: a chain, its frontier, a plan, and a verified step.

Every function returns something that a rich console prints; ``render`` turns it into a string that is
100 columns wide where there is no terminal to ask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from revolve.schedules import Chain, Comparison, Frontier, Plan, format_bytes, simulate
from revolve.schedules.plans import plain_schedule
from revolve.schedules.units import format_seconds

from .treatments import describe_stages

if TYPE_CHECKING:
    from revolve.runtime.verification import Report

__all__ = [
    "render",
    "tabulate_chain",
    "tabulate_comparison",
    "tabulate_frontier",
    "tabulate_plan",
    "tabulate_report",
]

WIDTH = 100
LONGEST = 60  # stages that are listed in full; of longer chains, both ends
ENDS = 25
FRONTIER_POINTS = 12
KINDS = ("save", "forward", "rebuild", "backward", "store", "load", "drop")


def render(content: RenderableType, stream: IO[str]) -> str:
    """Lay content out for a stream: its terminal's width and colours, or 100 plain columns.

    Parameters
    ----------
    content
        What the functions below return.
    stream
        Where the string will be written.
    """
    width = None if stream.isatty() else WIDTH
    console = Console(file=stream, width=width, highlight=False)
    with console.capture() as capture:
        console.print(content)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def start_table(*columns: str, footer: bool = False) -> Table:
    """Return an empty table; columns whose name starts with ``<`` hold words, the others numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_footer=footer, pad_edge=False, padding=(0, 1), show_edge=False)
    for column in columns:
        if column.startswith("<"):
            table.add_column(column[1:], overflow="ellipsis", no_wrap=True, max_width=36)
        else:
            table.add_column(column, justify="right", no_wrap=True)
    return table


def shown_stages(length: int) -> Iterator[int | None]:
    """Yield the stages to list, and None where some are left out."""
    if length <= LONGEST:
        yield from range(length)
        return
    yield from range(ENDS)
    yield None
    yield from range(length - ENDS, length)


def add_stages(table: Table, rows: Sequence[Sequence[str]]) -> None:
    """Add one row a stage, shortened in the middle where there are many."""
    for index in shown_stages(len(rows)):
        if index is None:
            table.add_row("...", f"({len(rows) - 2 * ENDS} more stages)")
        else:
            table.add_row(str(index), *(Text(cell) for cell in rows[index]))


def tabulate_facts(*facts: tuple[str, str]) -> Table:
    """Return lines of a name and what is to be said about it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in facts:
        table.add_row(Text(name, style="bold"), Text(words))
    return table


def compose(title: str, *parts: RenderableType) -> Group:
    """Put a title above parts."""
    return Group(Text(title, style="bold"), "", *parts, "")


def tabulate_chain(chain: Chain) -> RenderableType:
    """Return the table of a chain: times and sizes of each stage.

    Parameters
    ----------
    chain
        The chain.
    """
    stages = chain.stages
    columns = [
        ("forward", [format_seconds(s.forward) for s in stages], format_seconds(sum(s.forward for s in stages))),
        ("backward", [format_seconds(s.backward) for s in stages], format_seconds(sum(s.backward for s in stages))),
        *(
            (
                name,
                [format_bytes(getattr(s, field)) for s in stages],
                format_bytes(sum(getattr(s, field) for s in stages)),
            )
            for name, field in (("activation", "output_bytes"), ("saved", "saved_bytes"), ("gradients", "grad_bytes"))
            if field != "grad_bytes" or any(s.grad_bytes for s in stages)
        ),
    ]
    table = start_table("#", "<stage", *(name for name, _, _ in columns))
    add_stages(table, list(zip((s.name for s in stages), *(cells for _, cells, _ in columns), strict=True)))
    table.add_section()
    table.add_row("", "total", *(total for _, _, total in columns), style="bold")
    plain_peak = simulate(chain, plain_schedule(len(chain))).peak
    title = f"Chain {chain.name}" if chain.name else "Chain"
    facts = tabulate_facts(
        ("plain training", f"peak {format_bytes(plain_peak)}, step {format_seconds(chain.plain_makespan)}"),
        ("input", format_bytes(chain.input_bytes) + (", with a gradient" if chain.input_grad else "")),
        ("loss", format_seconds(chain.loss_time)),
    )
    return compose(f"{title}: {len(chain)} stages", table, "", facts)


def tabulate_frontier(frontier: Frontier) -> RenderableType:
    """Return a dozen points of a frontier: the least peak, the knee, plain training, and some between.

    Parameters
    ----------
    frontier
        The solved chain.
    """
    peaks, plain_makespan = frontier.peaks, frontier.chain.plain_makespan
    targets = np.linspace(peaks[0], peaks[-1], FRONTIER_POINTS)
    # Where two names fall on one point, the name of the end counts.
    names = {frontier.knee: "knee", frontier.plain: "plain", frontier.smallest: "smallest"}
    makespans = dict(zip(peaks.tolist(), frontier.makespans.tolist(), strict=True))
    makespans.setdefault(frontier.plain, plain_makespan)
    chosen = sorted({int(peak) for peak in peaks[np.searchsorted(peaks, targets)]} | set(names))
    table = start_table("<", "peak", "bytes", "of plain", "step", "ratio")
    for peak in chosen:
        table.add_row(
            names.get(peak, ""),
            format_bytes(peak),
            str(peak),
            share(peak, frontier.plain),
            format_seconds(makespans[peak]),
            f"{makespans[peak] / plain_makespan:.3f}" if plain_makespan else "1.000",
        )
    return compose(f"Frontier: {len(chosen)} of {len(makespans)} points", table)


def tabulate_comparison(comparisons: Sequence[Comparison], frontier: Frontier) -> RenderableType:
    """Return the table of strategies within one budget; of those that do not fit, what they need.

    Parameters
    ----------
    comparisons
        What ``compare`` returned, at least one.
    frontier
        The solved chain; "over optimal" is the time beyond its plan for the budget.
    """
    budget = comparisons[0].budget
    optimum = frontier.plan(budget).makespan
    table = start_table("<strategy", "peak", "of plain", "ratio", "over optimal", "runs again", "<needs at least")
    for c in comparisons:
        if c.plan is None:
            needs = f"{format_bytes(c.smallest or 0)}, {share(c.smallest or 0, frontier.plain)}"
            table.add_row(c.strategy, *[""] * 5, needs)
            continue
        over = f"{c.plan.makespan / optimum - 1:+.2%}" if optimum else ""
        cells = format_bytes(c.plan.peak), share(c.plan.peak, frontier.plain), f"{c.plan.ratio:.3f}", over
        table.add_row(c.plan.strategy, *cells, str(c.recomputed), "")
    name = frontier.chain.name or f"chain of {len(frontier.chain)} stages"
    of_plain = f"{share(budget, frontier.plain)} of plain training's {format_bytes(frontier.plain)}"
    return compose(f"{name} within {format_bytes(budget)}, {of_plain}", table)


def tabulate_plan(plan: Plan) -> RenderableType:
    """Return the table of a plan: what becomes of each stage, and what the whole costs.

    Parameters
    ----------
    plan
        The plan.
    """
    table = start_table("#", "<stage", "runs", "<treatment", "<input", "extra time")
    treatments = describe_stages(plan)
    rows = [
        (stage.name, str(t.runs), t.words, t.input_words, format_seconds(t.extra_time) if t.extra_time else "")
        for stage, t in zip(plan.chain.stages, treatments, strict=True)
    ]
    add_stages(table, rows)
    table.add_section()
    table.add_row("", "total", str(sum(t.runs for t in treatments)), *summarise(plan), style="bold")
    counts = plan.counts()
    facts = tabulate_facts(
        ("predicted peak", f"{format_bytes(plan.peak)}, {share(plan.peak, plan.plain_peak)} of plain training's "
         f"{format_bytes(plan.plain_peak)}"),
        ("budget", "none" if plan.budget is None else f"{format_bytes(plan.budget)} ({plan.budget} bytes)"),
        ("predicted step", f"{format_seconds(plan.makespan)}, plain {format_seconds(plan.plain_makespan)}"),
        ("recompute ratio", f"{plan.ratio:.4f}" + (f", proven within {plan.tolerance:.2%}" if plan.tolerance else "")),
        ("actions", ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])),
        ("formats", "; ".join(describe_format(plan, name) for name in plan.formats()) or "none stored"),
    )  # fmt: skip
    return compose(f"Plan: {plan.strategy}", table, "", facts)


def describe_format(plan: Plan, name: str) -> str:
    """Name a format and how often a plan uses it; a dense save is none."""
    uses = Counter(action.kind for action in plan.actions if getattr(action, "format", None) == name)
    kinds = [kind for kind in ("save", "store") if uses[kind] and (kind, name) != ("save", "dense")]
    return f"{name} ({', '.join(f'{uses[kind]} {kind}' for kind in kinds)})"


def summarise(plan: Plan) -> tuple[str, str, str]:
    """Return the last three cells of a plan's total row."""
    treatments = describe_stages(plan)
    recomputed = sum(t.runs > 1 for t in treatments)
    stored = sum(len(t.stored) for t in treatments)
    extra = sum(t.extra_time for t in treatments)
    return f"{len(treatments) - recomputed} saved, {recomputed} recomputed", f"{stored} stored", format_seconds(extra)


def tabulate_report(report: Report) -> RenderableType:
    """Return the table of a verified step: predicted beside measured, planned beside plain.

    Parameters
    ----------
    report
        What ``revolve.verify`` returned.
    """
    table = start_table("<", "predicted", "measured", "deviation", "plain", "of plain")
    table.add_row("peak", *compare(report.predicted_peak, report.measured_peak, report.plain_peak, format_bytes))
    table.add_row("step", *compare(report.predicted_time, report.measured_time, report.plain_time, format_seconds))
    facts: list[tuple[str, str]] = []
    if report.budget is not None:
        facts.append(("budget", f"{format_bytes(report.budget)}, {'kept' if report.kept else 'EXCEEDED'}"))
    for name, equal in (
        ("output", report.output_equal),
        ("loss", report.loss_equal),
        ("gradients", report.gradients_equal),
        ("buffers", report.buffers_equal),
        ("random state", report.rng_equal),
    ):
        facts.append((name, "bit-identical to plain training" if equal else "DIFFERS from plain training"))
    if report.lossy:
        names = ", ".join(report.lossy)
        facts.append(("lossy formats", f"{names}: a gradient deviates by {report.deviation:.2%} of its norm at most"))
    if report.differences:
        more = f" and {len(report.differences) - 10} more" if len(report.differences) > 10 else ""
        facts.append(("differences", ", ".join(report.differences[:10]) + more))
    return compose("Verified: one planned step beside one plain step", table, "", tabulate_facts(*facts))


def compare(predicted: float, measured: float, plain: float, words: Any) -> tuple[str, ...]:
    """Return the cells of one measured quantity."""
    deviation = f"{measured / predicted - 1:+.1%}" if predicted else ""
    return words(predicted), words(measured), deviation, words(plain), share(measured, plain)


def share(part: float, whole: float) -> str:
    """Write a part of a whole as a percentage."""
    return f"{part / whole:.1%}" if whole else ""
