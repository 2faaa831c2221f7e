"""The frontier as a curve, peak against time, with other strategies beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from revolve.schedules import Comparison, Frontier, format_bytes

from .files import write_target
from .plots import LEGEND, check_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_frontier"]

# Okabe and Ito's palette; blue is the frontier's.
COLOURS = ("#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#4d4d4d")
MARKERS = "os^Dv*Pph<>"


def draw_frontier(
    frontier: Frontier, path: str | Path, title: str | None = None, *, comparisons: Sequence[Comparison] = ()
) -> None:
    """Draw a frontier and write the picture: peak on the x axis, time over plain training on the y axis.

    Parameters
    ----------
    frontier
        The solved chain.
    path
        Where to write; the extension (png, svg, pdf) tells the format.
    title
        Above the drawing; made from the chain where it is None.
    comparisons
        Strategies to mark, each at the peak and time of its plan; those that do not fit are left out.

    Raises
    ------
    ReportError
        If the extension is unknown or the file cannot be written.
    """
    check_picture(path)
    with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        draw_curve(axes, frontier)
        if comparisons:
            draw_strategies(axes, comparisons)
        label_axes(axes)
        name = frontier.chain.name or f"chain of {len(frontier.chain)} stages"
        heading = f"{name}: least time for every peak" if title is None else title
        axes.set_title(heading.replace("$", r"\$"), fontsize=11)
        # Without a date the same frontier gives the same file.
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(Path(path).suffix.lower())
        write_target(path, lambda target: figure.savefig(target, dpi=150, metadata=metadata))


def relate(makespan: float, frontier: Frontier) -> float:
    """Return a makespan over plain training's."""
    plain = frontier.chain.plain_makespan
    return makespan / plain if plain else 1.0


def draw_curve(axes: Axes, frontier: Frontier) -> None:
    """Draw the steps of the frontier and its three named points."""
    peaks = [*frontier.peaks.tolist(), frontier.plain]
    ratios = [*(relate(makespan, frontier) for makespan in frontier.makespans.tolist()), 1.0]
    axes.step(peaks, ratios, where="post", color="#0072b2", linewidth=1.6, label="optimal")
    # Below the curve there is nothing, so that is where the names are; the first one is at the left edge.
    left, right = ((6, 5), "left"), ((-6, -11), "right")
    places = (("smallest", frontier.smallest, left), ("knee", frontier.knee, right), ("plain", frontier.plain, right))
    for name, peak, (offset, side) in places:
        height = ratios[peaks.index(peak)]
        axes.plot([peak], [height], "o", color="#0072b2", markersize=5)
        words = f"{name} {format_bytes(peak)}"
        axes.annotate(words, (peak, height), xytext=offset, textcoords="offset points", ha=side, fontsize=8)


def draw_strategies(axes: Axes, comparisons: Sequence[Comparison]) -> None:
    """Mark every strategy that fits, and the budget; strategies at one place share a mark."""
    budget = comparisons[0].budget
    axes.axvline(budget, color="#4d4d4d", linewidth=1, linestyle=(0, (5, 3)), label=f"budget {format_bytes(budget)}")
    places: dict[tuple[int, float], list[str]] = {}
    for plan in (c.plan for c in comparisons if c.plan is not None and c.strategy != "optimal"):
        places.setdefault((plan.peak, plan.ratio), []).append(plan.strategy)
    for index, ((peak, ratio), names) in enumerate(places.items()):
        marker, colour = MARKERS[index % len(MARKERS)], COLOURS[index % len(COLOURS)]
        axes.plot([peak], [ratio], marker, color=colour, label="\n".join(names))


def label_axes(axes: Axes) -> None:
    """Name the axes and explain the marks."""
    axes.set_xlabel("peak")
    axes.set_ylabel("step, times plain training")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value) if value else "0"))
    axes.margins(x=0.08, y=0.08)
    axes.legend(loc="upper right", **LEGEND)
