"""The classic drawing of a schedule: stage against time, with the memory curve under it.

A run of stage i is a line from ``x_i`` to ``x_{i+1}``, a backward one from ``x_{i+1}`` to ``x_i``; a
stored activation is a dot where it is stored and a horizontal line for as long as it lives; a row is
tinted while the stage's saved tensors are held. Dots of activations stored in a format other than dense are
hollow, rows of stages saved in one are hatched. Figures are made without pyplot, so that nothing looks for
a display.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from revolve.schedules import Backward, Chain, Drop, Forward, Loss, Plan, Rebuild, Save, Store, format_bytes
from revolve.schedules.actions import Indexed
from revolve.schedules.units import format_seconds

from .exceptions import ReportError
from .files import check_target, write_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

__all__ = ["check_picture", "draw_schedule"]

SUFFIXES = (".png", ".svg", ".pdf")
LONGEST = 50_000  # actions; a drawing of more is neither readable nor quick
NAMED_STAGES = 28  # names beside the rows up to here, numbers beyond
# Okabe and Ito's palette, told apart by people of every colour vision.
COLOURS = {"forward": "#56b4e9", "save": "#0072b2", "rebuild": "#e69f00", "backward": "#009e73", "loss": "#d55e00"}
WORDS = {
    "forward": "forward",
    "save": "forward, saving",
    "rebuild": "forward, rebuilding",
    "backward": "backward",
}
RUNS = (Forward, Save, Rebuild)
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "handlelength": 1.6, "columnspacing": 1.6}
STORED = "#4d4d4d"
TINT = "#0072b2"
HATCH = "#a6cbe2"
HATCHES = ("////", "....", "xxxx", "----")  # of the formats, in order of first use
ROW = 7  # entries of the legend side by side


def check_picture(path: str | Path) -> None:
    """Check that a picture can be written to a path, before anything long begins.

    Parameters
    ----------
    path
        The file; its extension tells the format.

    Raises
    ------
    ReportError
        If the extension is none of png, svg, pdf or the folder cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        given = f"the extension {suffix!r}" if suffix else "no extension"
        raise ReportError(f"cannot draw {str(path)!r}: it has {given}; use one of {', '.join(SUFFIXES)}")
    check_target(path)


def draw_schedule(plan: Plan, path: str | Path, title: str | None = None, *, unit_costs: bool = False) -> None:
    """Draw a plan and write the picture.

    Parameters
    ----------
    plan
        The plan; its own simulation tells times and bytes.
    path
        Where to write; the extension (png, svg, pdf) tells the format.
    title
        Above the drawing; made from the plan where it is None.
    unit_costs
        The chain is a uniform one whose times are forward runs and whose bytes are activations.

    Raises
    ------
    ReportError
        If the extension is unknown, the file cannot be written, or the schedule is too long to draw.

    Examples
    --------
    >>> draw_schedule(Plan.load("plan.json"), "plan.svg")  # doctest: +SKIP
    """
    check_picture(path)
    if len(plan.actions) > LONGEST:
        raise ReportError(f"a schedule of {len(plan.actions)} actions cannot be drawn; {LONGEST} is the most")
    length = len(plan.chain)
    with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"}):
        height = min(4.2 + 0.17 * length, 8.5)
        figure = Figure(figsize=(11, height), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[height - 2.4, 2.0])
        handles = draw_runs(upper, plan)
        draw_memory(lower, plan, unit_costs)
        label_axes(upper, lower, plan, unit_costs)
        rows = -(-len(handles) // ROW)
        columns = -(-len(handles) // rows)
        upper.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.01), ncols=columns, **LEGEND)
        heading = describe_plan(plan, unit_costs) if title is None else title
        upper.set_title(heading, fontsize=11, pad=13 + 15 * rows)
        # Without a date the same plan gives the same file.
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(Path(path).suffix.lower())
        write_target(path, lambda target: figure.savefig(target, dpi=150, metadata=metadata))


def describe_plan(plan: Plan, unit_costs: bool) -> str:
    """Return the title of a plan's drawing."""
    name = plan.chain.name or f"chain of {len(plan.chain)} stages"
    if unit_costs:
        return f"{name}: {plan.strategy}, {count_runs(plan)} forward runs"
    share = f" ({plan.peak / plan.plain_peak:.0%} of plain)" if plan.plain_peak else ""
    step = f"{format_seconds(plan.makespan)} ({plan.ratio:.3f} x plain)"
    return f"{name}: peak {format_bytes(plan.peak)}{share}, step {step}"


def count_runs(plan: Plan) -> int:
    """Return how often a stage is run forward, in whichever way."""
    return sum(isinstance(action, RUNS) for action in plan.actions)


@dataclass(slots=True)
class Traces:
    """Lines and areas of a drawing, in seconds and stages; those of formats by their names."""

    runs: dict[str, list[Any]] = field(default_factory=lambda: {kind: [] for kind in WORDS})
    lives: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    tints: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    turn: float = 0.0


def trace(plan: Plan) -> Traces:
    """Return what there is to draw: runs, lives of stored activations and of saved tensors, the loss."""
    traces = Traces()
    since: dict[int, tuple[float, str]] = {}
    saved: dict[int, tuple[float, str]] = {}
    for entry in plan.simulation.timeline:
        action = entry.action
        if isinstance(action, Loss):
            traces.turn = entry.start
        if not isinstance(action, Indexed):
            continue
        i = action.index
        if isinstance(action, RUNS):
            traces.runs[action.kind].append([(entry.start, i), (entry.end, i + 1)])
            if not isinstance(action, Forward):
                saved[i] = entry.end, getattr(action, "format", "dense")
        elif isinstance(action, Backward):
            traces.runs["backward"].append([(entry.start, i + 1), (entry.end, i)])
            begin, name = saved.pop(i)
            traces.tints[name].append([(begin, i), (entry.start, i), (entry.start, i + 1), (begin, i + 1)])
        elif isinstance(action, Store):
            since[i] = entry.start, action.format
        elif isinstance(action, Drop):
            begin, name = since.pop(i)
            traces.lives[name].append([(begin, i), (entry.end, i)])
    for i, (begin, name) in since.items():
        traces.lives[name].append([(begin, i), (plan.makespan, i)])
    return traces


def draw_runs(axes: Axes, plan: Plan) -> list[Any]:
    """Draw every run, the lives of stored activations and of saved tensors, and the loss.

    Returns what the legend explains.
    """
    length, traces = len(plan.chain), trace(plan)
    width = 2.4 if length <= 40 else 1.6 if length <= 150 else 0.9
    for name, areas in traces.tints.items():
        axes.add_collection(PolyCollection(areas, facecolor=TINT, alpha=0.10, linewidth=0))
        if name != "dense":  # a hatch has the colour of the edge, and no tint's transparency
            hatch: dict[str, Any] = {"hatch": hatch_of(plan, name), "edgecolor": HATCH, "facecolor": "none"}
            axes.add_collection(PolyCollection(areas, linewidth=0, **hatch))
    for kind, lines in traces.runs.items():
        style: dict[str, Any] = {"colors": COLOURS[kind], "linewidths": width, "capstyle": "round", "zorder": 3}
        axes.add_collection(LineCollection(lines, **style))
    for name, lines in traces.lives.items():
        axes.add_collection(LineCollection(lines, colors=STORED, linewidths=width * 0.45, zorder=2))
        dots = [line[0] for line in lines]
        style = {"s": (width * 2.2) ** 2, "facecolor": STORED if name == "dense" else "white", "edgecolor": STORED}
        axes.scatter([x for x, _ in dots], [y for _, y in dots], zorder=4, **style)
    axes.scatter([traces.turn], [length], marker="D", s=34, color=COLOURS["loss"], zorder=5, clip_on=False)
    axes.set_xlim(0, plan.makespan or 1.0)
    axes.set_ylim(0, length)
    return explain(plan, traces)


def hatch_of(plan: Plan, name: str) -> str:
    """Return the hatch of the rows that are saved in a format."""
    formats = [other for other in plan.formats() if other != "dense"]
    return HATCHES[formats.index(name) % len(HATCHES)]


def explain(plan: Plan, traces: Traces) -> list[Any]:
    """Return the entries of the legend."""
    handles: list[Any] = [
        Line2D([], [], color=COLOURS[kind], linewidth=2.4, label=words)
        for kind, words in WORDS.items()
        if traces.runs[kind]
    ]
    for name in sorted(traces.lives, key=lambda name: name != "dense"):
        fill, words = (STORED, "") if name == "dense" else ("white", f", {name}")
        dot: dict[str, Any] = {"marker": "o", "markersize": 5, "markerfacecolor": fill}
        handles.append(Line2D([], [], color=STORED, linewidth=1, label=f"stored activation{words}", **dot))
    for name, areas in sorted(traces.tints.items(), key=lambda item: item[0] != "dense"):
        hatch = "" if name == "dense" else hatch_of(plan, name)
        if any(right > left for (left, _), (right, _), *_ in areas):
            words = "saved tensors held" + (f", {name}" if hatch else "")
            handles.append(Patch(facecolor=(TINT, 0.15), edgecolor=HATCH, linewidth=0, hatch=hatch, label=words))
    handles.append(Line2D([], [], color=COLOURS["loss"], marker="D", linestyle="", label="loss"))
    return handles


def draw_memory(axes: Axes, plan: Plan, unit_costs: bool) -> None:
    """Draw bytes in use: the level between actions, the peak during each, budget and plain peak."""
    times: list[float] = []
    peaks: list[int] = []
    levels: list[int] = []
    before = 0
    for entry in plan.simulation.timeline:
        times += [entry.start, entry.end]
        peaks += [entry.peak] * 2
        levels += [before] * 2
        before = entry.held
    axes.fill_between(times, peaks, color="#cc79a7", alpha=0.35, linewidth=0, label="peak during the action")
    axes.plot(times, peaks, color="#cc79a7", linewidth=0.7)
    axes.fill_between(times, levels, color="#7d3c63", alpha=0.75, linewidth=0, label="held between actions")
    top = max(plan.peak, plan.plain_peak)
    if plan.budget is not None and plan.budget <= 1.25 * top:
        axes.axhline(plan.budget, color="#d55e00", linewidth=1.2, label=f"budget {format_bytes(plan.budget)}")
        top = max(top, plan.budget)
    plain = f"plain training {plan.plain_peak if unit_costs else format_bytes(plan.plain_peak)}"
    axes.axhline(plan.plain_peak, color="#4d4d4d", linewidth=1.2, linestyle=(0, (5, 3)), label=plain)
    axes.set_ylim(0, 1.06 * top or 1.0)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, **LEGEND)


def label_axes(upper: Axes, lower: Axes, plan: Plan, unit_costs: bool) -> None:
    """Name the axes; stages by their names where there is room."""
    length = len(plan.chain)
    if length <= NAMED_STAGES and not unit_costs:
        upper.set_yticks([i + 0.5 for i in range(length)], shorten_names(plan.chain), fontsize=8)
        upper.tick_params(axis="y", length=0)
    else:
        upper.set_ylabel("stage")
        upper.yaxis.set_major_locator(MaxNLocator(integer=True))
    if unit_costs:
        lower.set_xlabel("time (runs of a stage)")
        lower.set_ylabel("activations")
        lower.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        return
    lower.set_xlabel("time")
    lower.set_ylabel("memory")
    lower.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_seconds(value) if value else "0"))
    lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value) if value else "0"))
    lower.yaxis.set_major_locator(MaxNLocator(nbins=5))


def shorten_names(chain: Chain) -> Sequence[str]:
    """Return stage names that fit beside the drawing, with nothing in them that matplotlib interprets."""
    names = (stage.name if len(stage.name) <= 24 else stage.name[:22] + "..." for stage in chain.stages)
    return [name.replace("$", r"\$") for name in names]
