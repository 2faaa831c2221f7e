"""What commands write: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["close_stdout", "guard_stdout", "print_content", "print_error", "print_json", "show_progress"]

PROGRAM = "revolve-plan"


def print_content(*contents: RenderableType) -> None:
    """Write tables to standard output."""
    from revolve.report.tables import render

    for content in contents:
        sys.stdout.write(render(content, sys.stdout))


def print_json(document: Mapping[str, Any]) -> None:
    """Write one JSON document, on a line of its own, to standard output."""
    sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")


def print_error(message: str) -> None:
    """Write an error to standard error, in one line whatever the message holds."""
    sys.stderr.write(f"{PROGRAM}: error: {' '.join(message.split())}\n")


def close_stdout() -> None:
    """Send what is still buffered nowhere, so that the interpreter's last flush stays quiet."""
    # A stream without a descriptor belongs to a test, and has no pipe that could be closed.
    if sys.__stdout__ is not None and sys.stdout is sys.__stdout__:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())


@contextmanager
def guard_stdout() -> Iterator[None]:
    """Send what the user's code prints to standard error: standard output holds results alone."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def show_progress(task: str) -> Iterator[Callable[[int, int, str], None] | None]:
    """Show progress on standard error if it is a terminal; yields None where it is not.

    Parameters
    ----------
    task
        What is being done.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[stage]}", markup=False),
    )
    # A refreshing thread would take CPU time from what is being measured.
    with Progress(*columns, console=Console(file=sys.stderr), auto_refresh=False, transient=True) as bar:
        row = bar.add_task(task, total=None, stage="")
        bar.refresh()

        def report(done: int, total: int, name: str) -> None:
            bar.update(row, completed=done, total=total, stage=name, refresh=True)

        yield report
