"""revolve beside torch's checkpoint_sequential, at the same measured peak.

For every model, torch's non-reentrant checkpoint_sequential runs with each number of segments; the
numbers that no other beats in both memory and time are its best. For each of those, revolve gets torch's
measured peak as its budget (and the kilobyte by which its predictions are above what is measured).
Plain, torch's and revolve's steps alternate in one process; times are medians of CPU time, peaks come
from the allocator. Gradients exist before each step.

    python benchmarks/checkpoint_sequential.py [--models resnet50 mlp] [--repeats 5]
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

import revolve
from revolve.cli.demo_models import DEMO_MODELS
from revolve.runtime.allocations import trace_allocations
from revolve.runtime.measurement import ROOT_BYTES, default_loss

Forward = Callable[[torch.Tensor], Any]


def step(forward: Forward, model: nn.Module, sample: torch.Tensor) -> float:
    """Run one step; return its CPU seconds."""
    model.zero_grad(set_to_none=False)
    start = time.process_time()
    output = forward(sample)  # kept to the end, as training loops do
    default_loss(output).backward()
    return time.process_time() - start


def measure_peak(forward: Forward, model: nn.Module, sample: torch.Tensor) -> int:
    """Return the peak bytes of one step."""
    model.zero_grad(set_to_none=False)
    with trace_allocations(torch.device("cpu")) as tracer:
        output = forward(sample)
        default_loss(output).backward()
        tracer.mark()
    return tracer.phases[0].peak


def compare(name: str, repeats: int, most: int) -> list[tuple[str, ...]]:
    """Return the rows of one model."""
    torch.manual_seed(0)
    model, sample = DEMO_MODELS[name].build(), torch.randn(DEMO_MODELS[name].shape)
    step(model, model, sample)
    plain_peak = measure_peak(model, model, sample)
    contestants: dict[int, Forward] = {}
    peaks: dict[int, int] = {}
    failing = []
    for segments in range(2, min(most, len(model)) + 1):

        def forward(x: torch.Tensor, segments: int = segments) -> Any:
            return checkpoint_sequential(model, segments, x, use_reentrant=False)

        try:
            step(forward, model, sample)
        except RuntimeError as error:  # in-place layers at a cut; the table says so
            if "inplace" not in str(error):
                raise
            failing.append(str(segments))
            continue
        contestants[segments], peaks[segments] = forward, measure_peak(forward, model, sample)
    # Everything but the last segment is run twice, so more segments never save time: a number of
    # segments is worth timing only where it takes less memory than every smaller number.
    best = [k for k in contestants if all(peaks[k] < peaks[j] for j in contestants if j < k)]
    frontier = revolve.solve(revolve.measure(model, sample))
    rows = []
    for segments in best:
        plan = frontier.plan(peaks[segments] + ROOT_BYTES)
        torch_times, own_times, plain_times = [], [], []
        revolve.checkpointed(model, plan)
        own_peak = (step(model, model, sample), measure_peak(model, model, sample))[1]
        for _ in range(repeats):
            revolve.restore(model)
            plain_times.append(step(model, model, sample))
            torch_times.append(step(contestants[segments], model, sample))
            revolve.checkpointed(model, plan)
            own_times.append(step(model, model, sample))
        revolve.restore(model)
        plain = median(plain_times)
        rows.append(
            (
                name,
                str(segments),
                f"{peaks[segments] / plain_peak:.1%}",
                f"{median(torch_times) / plain - 1:+.1%}",
                f"{own_peak / plain_peak:.1%}",
                f"{median(own_times) / plain - 1:+.1%}",
                f"{plan.ratio - 1:+.1%}",
                f"{median(own_times) / median(torch_times):.3f}",
            )
        )
        print_row(rows[-1])
    smallest = frontier.plan(frontier.smallest)
    print(f"| {name}: plain {plain_peak / 1e6:.1f} MB, least budget {smallest.peak / plain_peak:.1%}", end="")
    print(
        f" ({smallest.ratio - 1:+.1%} planned)"
        + (f"; torch fails for {', '.join(failing)} segments" if failing else "")
    )
    return rows


def print_row(cells: tuple[str, ...]) -> None:
    """Print one row of the table."""
    widths = (12, 8, 10, 10, 12, 12, 15, 13)
    print("| " + " | ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) + " |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(DEMO_MODELS), choices=list(DEMO_MODELS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most", type=int, default=10, help="largest number of segments")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {platform.machine()}, {options.threads} thread(s), {options.repeats} repeats")
    print_row(
        ("model", "segments", "torch peak", "torch time", "revolve peak", "revolve time", "planned time", "time ratio")
    )
    rows = [row for name in options.models for row in compare(name, options.repeats, options.most)]
    slower = [row for row in rows if float(row[-1]) > 1]
    print(f"{len(rows)} comparisons, revolve slower in {len(slower)}")


if __name__ == "__main__":
    main()
