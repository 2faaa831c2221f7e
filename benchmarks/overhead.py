"""What a stage costs beside its own work: tiny stages, forward and backward, on a CPU.

A chain of small linear layers runs plainly, with every stage run again by a plan (store every activation, keep
no saved tensors: the dearest schedule that runs each stage once more), and with ``torch.utils.checkpoint``
around every layer. The table shows CPU time of this thread, quickest and median step, per stage over the plain step.
Running the layer a second time is part of both overheads and shown as well.

They take turns. Before each step that is timed there are two of the same model that are not, as in training, where the
steps of one model follow each other; ``--before 0`` times what each step takes right after those of the others.

    python benchmarks/overhead.py [--stages 50] [--repeats 200] [--before 2]
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import revolve
from revolve import Action, Backward, Chain, Drop, Forward, Load, Loss, Plan, Rebuild, Store
from revolve.schedules.plans import plain_schedule


def store_everything(model: nn.Sequential) -> Plan:
    """Return a plan that stores every activation and rebuilds every stage."""
    length = len(model)
    actions: list[Action] = []
    for index in range(length):
        actions += [Store(index)] * (index > 0) + [Forward(index)]
    actions.append(Loss())
    for index in reversed(range(length)):
        actions += [Load(index), Rebuild(index), *[Drop(index)] * (index > 0), Backward(index)]
    return Plan.from_actions(named_chain(model), actions)


def named_chain(model: nn.Sequential) -> Chain:
    """Return a made-up chain with a stage for every layer."""
    stages = [
        {"name": str(i), "forward": 1, "backward": 1, "output_bytes": 1, "saved_bytes": 1} for i in range(len(model))
    ]
    return Chain.from_json({"format": "revolve.chain/1", "input_bytes": 1, "stages": stages})


def timed(step: Callable[[], None]) -> float:
    """Return the CPU seconds of one step."""
    start = time.thread_time()
    step()
    return time.thread_time() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=50)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--before", type=int, default=2, metavar="STEPS")
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = [
        nn.Sequential(*(nn.Linear(options.width, options.width) for _ in range(options.stages))) for _ in range(3)
    ]
    plain, planned, covered = models
    revolve.checkpointed(planned, store_everything(planned))
    revolve.checkpointed(covered, Plan.from_actions(named_chain(covered), plain_schedule(options.stages)))
    x = torch.randn(4, options.width)

    def with_torch(*, reentrant: bool) -> None:
        y = x.clone().requires_grad_(reentrant)
        for layer in plain:
            y = checkpoint(layer, y, use_reentrant=reentrant)
        y.sum().backward()

    def run_again() -> None:
        plain(x).sum().backward()
        for layer in plain:
            layer(x)

    steps: dict[str, Callable[[], None]] = {
        "plain": lambda: plain(x).sum().backward(),
        "plain, and every layer once more": run_again,
        "revolve, a plan that covers plain training": lambda: covered(x).sum().backward(),
        "revolve, every stage run again": lambda: planned(x).sum().backward(),
        "torch non-reentrant": lambda: with_torch(reentrant=False),
        "torch reentrant": lambda: with_torch(reentrant=True),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.repeats + 10):
        for name, step in steps.items():
            for _ in range(options.before):
                step()
            seconds = timed(step)
            if turn >= 10:
                times[name].append(seconds)
    counts = f"{options.stages} stages, {options.repeats} steps, {options.before} before each"
    print(f"torch {torch.__version__}, {platform.machine()}, {counts}")
    print("| step | us per stage, quickest | median | over plain, quickest | median |")
    print("|---|---|---|---|---|")
    base = times["plain"]
    for name, found in times.items():
        cells = [min(found), median(found), min(found) - min(base), median(found) - median(base)]
        print(f"| {name} | " + " | ".join(f"{cell / options.stages * 1e6:.1f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
