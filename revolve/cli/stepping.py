"""``revolve-plan steps``: classic schedules of uniform chains, written as they are generated."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from itertools import groupby, islice
from typing import Annotated, Any

import typer

from revolve.schedules import Action, Chain, Plan, Store, count_forwards, revolve, sequential
from revolve.schedules.generated import Schedule
from revolve.schedules.segments import segment_starts

from . import parameters
from .exceptions import CommandError

__all__ = ["list_steps"]

SHOWN = 60  # actions that people read
DRAWN = 20_000
BATCH = 10_000
WIDTH = 100
BREAK = "\u00a0"  # textwrap breaks lines at plain spaces only


def list_steps(
    length: Annotated[int, typer.Argument(metavar="LENGTH", help="Number of stages.", show_default=False)],
    slots: parameters.Slots = None,
    segments: parameters.Segments = None,
    balanced: parameters.Balanced = False,
    out: parameters.Out = None,
    as_json: parameters.Json = False,
) -> None:
    """List the schedule of a uniform chain: Revolve's optimum, or uniform segments."""
    schedule, facts = make_schedule(length, slots, segments, balanced)
    if out is not None:
        draw_steps(schedule, facts, out)
    if as_json:
        for text in encode_steps(schedule, facts):
            sys.stdout.write(text)
        return
    for line in describe_steps(schedule, facts):
        sys.stdout.write(line + "\n")
    if out is not None:
        sys.stdout.write(f"drawn to   {out}\n")


def make_schedule(
    length: int, slots: int | None, segments: int | None, balanced: bool
) -> tuple[Schedule, dict[str, Any]]:
    """Return the schedule that was asked for, and what is known of it without running it."""
    if (slots is None) == (segments is None):
        raise CommandError("give either --slots S (Revolve) or --segments K (uniform segments)")
    if slots is not None:
        if balanced:
            raise CommandError("--balanced splits --segments; Revolve's --slots needs no split")
        schedule, strategy = revolve(length, slots), "revolve"
        extra = count_forwards(length, slots)
    else:
        assert segments is not None
        schedule, strategy = sequential(length, segments, balanced=balanced), "balanced" if balanced else "sequential"
        # Every stage before the last segment runs twice.
        extra = segment_starts(length, segments, balanced=balanced)[-1]
    facts = {"format": "revolve.steps/1", "strategy": strategy, "length": length, "slots": slots, "segments": segments}
    return schedule, {**facts, "forwards": length + extra, "extra_forwards": extra}


def encode_steps(schedule: Schedule, facts: dict[str, Any]) -> Iterator[str]:
    """Yield the JSON document piece by piece; no more than a batch of actions is in memory."""
    yield json.dumps(facts)[:-1] + ', "actions": ['
    actions = iter(schedule)
    separator = ""
    while batch := [action.to_json() for action in islice(actions, BATCH)]:
        yield separator + json.dumps(batch)[1:-1]
        separator = ", "
    yield "]}\n"


def describe_steps(schedule: Schedule, facts: dict[str, Any]) -> Iterator[str]:
    """Yield lines for people: what the schedule costs, then its actions or where to find them."""
    length, slots, segments, extra = (facts[name] for name in ("length", "slots", "segments", "extra_forwards"))
    ratio = (2 * length + extra) / (2 * length)
    if segments is None:
        stored = max(min(slots, length - 1) - 1, 0)  # the input of the last stage is never stored
        yield f"Revolve: {length} stages, {slots} slots"
    else:
        stored = segments - 1
        yield f"Uniform segments ({facts['strategy']}): {length} stages, {segments} segments"
    yield ""
    yield f"forwards   {facts['forwards']}: {length} taped + {extra} beyond them"
    yield f"ratio      {ratio:.4f} of plain training, where a backward takes as long as a forward"
    yield f"stored     at most {stored} activations at a time, besides the initial state"
    first = list(islice(schedule, SHOWN + 1))
    if len(first) > SHOWN:
        yield f"actions    more than {SHOWN}; list them with --json, draw them with --out steps.svg"
        return
    yield ""
    items = "; ".join(describe_group(list(group)) for _, group in groupby(enumerate(first), key=straight_run))
    for line in textwrap.wrap(items.replace(" ", BREAK).replace(f";{BREAK}", "; "), WIDTH):
        yield line.replace(BREAK, " ")


def straight_run(entry: tuple[int, Action]) -> tuple[str, int]:
    """Return a key that is equal along actions of one kind on ascending or descending stages."""
    position, action = entry
    index = getattr(action, "index", 0)
    return action.kind, index + position if action.kind == "backward" else index - position


def describe_group(group: list[tuple[int, Action]]) -> str:
    """Write a run of actions: ``forward 0..5``."""
    first, last = group[0][1], group[-1][1]
    if not hasattr(first, "index"):
        return first.kind
    if isinstance(first, Store) or len(group) == 1:
        return f"{first.kind} {first.index}"
    return f"{first.kind} {first.index}..{getattr(last, 'index', '')}"


def draw_steps(schedule: Schedule, facts: dict[str, Any], path: Any) -> None:
    """Draw the schedule on a chain of stages that cost one each."""
    from revolve.report.plots import check_picture, draw_schedule

    check_picture(path)
    if len(list(islice(schedule, DRAWN + 1))) > DRAWN:
        raise CommandError(
            f"a schedule of more than {DRAWN} actions cannot be drawn; use a shorter chain or more slots"
        )
    chain = Chain.uniform(facts["length"])
    draw_schedule(Plan.from_actions(chain, schedule, facts["strategy"]), path, unit_costs=True)
