"""How long the exact solver takes, in how much memory: random chains, measured chains, long chains within 1 %.

Run ``python benchmarks/solver.py``; it prints the tables that the documentation quotes. Chains are
solved for every budget at once. Times are medians of five after a warm-up, on all cores.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from revolve import measure
from revolve.cli import networks
from revolve.schedules import Chain, Frontier, solve

REPEATS = 5
CHILD = """
import time
start = time.perf_counter()
from revolve.schedules import Chain, solve
imported = time.perf_counter()
solve(Chain.uniform(3)).plan(10)
print(imported - start, time.perf_counter() - imported)
"""
PEAK = """
import json, re, sys
from revolve.schedules import Chain, solve
solve(Chain.from_json(json.load(sys.stdin)), tolerance=0.01)
print(1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]))
"""


def random_chain(length: int, *, every_field: bool = False, seed: int = 1) -> Chain:
    """Return a chain of random real-valued times and sizes in which no two stages are alike."""
    rng = random.Random(seed)

    def size(largest: float) -> int:
        return round(rng.uniform(largest / 100, largest))

    stages = []
    for _ in range(length):
        forward = rng.uniform(1e-3, 1e-2)
        stage: dict[str, Any] = {"forward": forward, "backward": rng.uniform(1e-3, 2e-2)}
        stage |= {"output_bytes": size(1e7), "saved_bytes": size(2e7)}
        if every_field:
            stage |= {"rebuild": forward * rng.uniform(0.5, 1), "saves_input": rng.random() < 0.6}
            stage |= {"saves_output": rng.random() < 0.4, "backward_extra": size(1e7), "grad_bytes": size(1e6)}
            stage |= {name: size(1e6) for name in ("forward_extra", "save_extra", "rebuild_extra")}
        stages.append(stage)
    return Chain.from_json({"format": "revolve.chain/1", "input_bytes": size(1e7), "stages": stages})


def measured_chains() -> Iterator[tuple[str, Chain]]:
    """Yield chains of real networks at the granularity of their blocks, VGG-16's at that of its layers."""
    residual = {"ResNet-18": ((2, 2, 2, 2), False), "ResNet-50": ((3, 4, 6, 3), True)}
    residual |= {"ResNet-101": ((3, 4, 23, 3), True), "ResNet-152": ((3, 8, 36, 3), True)}
    image = torch.randn(2, 3, 64, 64)
    for name, (depths, deep) in residual.items():
        yield name, measure(networks.residual_network(depths, deep=deep, classes=10), image)
    yield "VGG-16", measure(networks.vgg16(10, width=256), image)
    tokens = torch.randn(2, 32, 64)
    for depth in (24, 48, 80):
        yield f"transformer, {depth} blocks", measure(networks.transformer(64, depth, 4), tokens)


def time_solve(chain: Chain, tolerance: float = 0.0) -> tuple[float, Frontier]:
    """Return median seconds and the frontier."""
    frontier = solve(chain, tolerance=tolerance)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        frontier = solve(chain, tolerance=tolerance)
        seconds.append(time.perf_counter() - start)
    return median(seconds), frontier


def print_speed(console: Console) -> None:
    """Print what chains take."""
    table = Table("chain", "stages", "tolerance", "time", "points", "tables", "proven excess", title="Every budget")
    every_field = partial(random_chain, every_field=True)
    chains = [(f"random, {n}", random_chain(n), 0.0) for n in (20, 50, 100)]
    chains += [(f"random, every field, {n}", every_field(n), 0.0) for n in (20, 50, 100)]
    chains += [(name, chain, 0.0) for name, chain in measured_chains()]
    chains += [("random, 200", random_chain(200), 0.01), ("random, 340", random_chain(340), 0.01)]
    chains += [("random, every field, 340", every_field(340), 0.01)]
    for name, chain, tolerance in chains:
        seconds, frontier = time_solve(chain, tolerance)
        excess = (frontier.makespans / frontier.least_makespans).max() - 1
        cells = (f"{seconds * 1e3:.1f} ms", str(len(frontier)), f"{frontier.nbytes / 1e6:.1f} MB", f"{excess:.2%}")
        table.add_row(name, str(len(chain)), f"{tolerance:.0%}" if tolerance else "exact", *cells)
    console.print(table)


def run_child(code: str, stdin: str = "", **environment: str) -> list[float]:
    """Return the numbers that a fresh interpreter prints."""
    command, environment = [sys.executable, "-c", code], {**os.environ, **environment}
    printed = subprocess.run(command, input=stdin, env=environment, check=True, capture_output=True, text=True)
    return [float(number) for number in printed.stdout.split()]


def print_start(console: Console) -> None:
    """Print what the first call takes, and what a long chain needs in all."""
    with tempfile.TemporaryDirectory() as empty:
        cold = run_child(CHILD, NUMBA_CACHE_DIR=empty)
        cached = run_child(CHILD, NUMBA_CACHE_DIR=empty)
    table = Table("first call in a process", "import", "solve and plan", title="Compilation")
    for name, (imported, solved) in (("nothing compiled yet", cold), ("from the cache", cached)):
        table.add_row(name, f"{imported:.2f} s", f"{solved:.2f} s")
    console.print(table)
    (peak,) = run_child(PEAK, json.dumps(random_chain(340).to_json()))
    console.print(f"largest resident set of a process that solves 340 random stages within 1 %: {peak / 1e6:.0f} MB")


def main() -> None:
    """Print both tables."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    console = Console(width=120)
    print_speed(console)
    print_start(console)


if __name__ == "__main__":
    main()
