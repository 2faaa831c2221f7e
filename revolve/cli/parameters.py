"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .demo_models import DEMO_MODELS

__all__ = [
    "Balanced",
    "Budget",
    "Curve",
    "Device",
    "Dtype",
    "Fake",
    "Formats",
    "Fraction",
    "Input",
    "Json",
    "Out",
    "Overhead",
    "PlanFile",
    "Repeats",
    "SaveChain",
    "SavePlan",
    "Seed",
    "Segments",
    "Slots",
    "SourceSpec",
    "Spec",
    "Strategies",
    "Title",
    "Tolerance",
]

Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output and nothing else.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Draw the schedule: .png, .svg or .pdf.")]
Curve = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Draw peak against time: .png, .svg or .pdf.")
]

Slots = Annotated[
    int | None,
    typer.Option("--slots", metavar="S", help="Activations held at once, the initial state included: Revolve."),
]
Segments = Annotated[
    int | None,
    typer.Option("--segments", metavar="K", help="Uniform segments instead, as torch's checkpoint_sequential."),
]
Balanced = Annotated[
    bool,
    typer.Option("--balanced", help="Let segments differ by at most one stage; torch gives the last one the rest."),
]

Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="SIZE",
        help="Bytes, '300MB' (10**6), '300MiB' (2**20); with a model also '80%' of what its device has free.",
    ),
]
Fraction = Annotated[
    float | None,
    typer.Option("--fraction", metavar="X", help="The budget as a share of plain training's peak, for example 0.4."),
]
Overhead = Annotated[
    str | None,
    typer.Option(
        "--overhead",
        metavar="X",
        help="The least budget whose step takes at most this much longer than plain training's: 0.1 or '10%'.",
    ),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format", metavar="NAME", help="Storage format for checkpoints and saved tensors, such as bitmap; repeatable."
    ),
]
Tolerance = Annotated[
    str,
    typer.Option(
        "--tolerance",
        metavar="X",
        help="Let the step exceed the optimum by this share, to solve faster; 'auto': for very long chains only.",
    ),
]
Strategies = Annotated[
    list[str] | None,
    typer.Option("--strategy", metavar="NAME", help="Compare this strategy; repeatable. Without it, all of them."),
]
SavePlan = Annotated[Path | None, typer.Option("--save", metavar="FILE", help="Write the plan as JSON.")]
SaveChain = Annotated[
    Path | None, typer.Option("--save-chain", metavar="FILE", help="Write the measured chain as JSON, for 'chain'.")
]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", metavar="FILE", help="Verify this saved plan instead of measuring and solving.")
]

Spec = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="package.module:callable (returns an nn.Module, or is one; the working directory is searched too), "
        "or a built-in demo model: " + ", ".join(DEMO_MODELS) + ".",
        show_default=False,
    ),
]
SourceSpec = Annotated[
    str,
    typer.Argument(
        metavar="FILE|MODEL",
        help="A chain file (revolve.chain/1), or a model to measure: package.module:callable, or a demo model ("
        + ", ".join(DEMO_MODELS)
        + ").",
        show_default=False,
    ),
]
Input = Annotated[
    str | None, typer.Option("--input", metavar="SHAPE", help="Shape of a batch, for example 8,3,224,224.")
]
Dtype = Annotated[
    str, typer.Option("--dtype", metavar="NAME", help="Data type of the batch, and of a demo model's weights.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of torch's random numbers.")]
Fake = Annotated[
    bool, typer.Option("--fake", help="Plan without running: nothing is computed or allocated, weights included.")
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="With --fake: the device to plan for, such as odroid-xu4 or h100.",
    ),
]
Repeats = Annotated[int, typer.Option("--repeats", metavar="N", min=1, help="Timed steps of each kind; medians count.")]
Title = Annotated[str | None, typer.Option("--title", metavar="TEXT", help="Title of the picture.")]
