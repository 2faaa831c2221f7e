"""What leaps over stages, held by every plan or carried by the activations: the least budget, and times within others.

    python benchmarks/leaping.py [--models unet densenet] [--shares 50 60 75]

Of the model pool, those where anything leaps (docs/linearize.md); `pool.py` says what it needs. Budgets and the least
ones are shares of plain training's peak, times are planned ones over plain training's. The plan of the least budget is
executed: its bits, its measured over its predicted peak.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from pool_models import POOL
from torch import nn

import revolve

LEAPING = ("unet", "dense-lists", "densenet", "segformer", "hrnet", "coat", "xception", "t5", "bart", "whisper")


def cells(model: nn.Module, sample: Any, shares: Sequence[int]) -> Iterator[str]:
    """Yield the columns of a model's row."""
    chain = revolve.measure(model, sample)
    if chain.carried is None:
        yield "nothing leaps"
        return
    held, best = revolve.solve(replace(chain, carried=None)), revolve.solve(chain)
    yield str(len(chain))
    for frontier in (held, best):
        yield f"{frontier.smallest / held.plain:.1%}"
    for share in shares:
        budget = held.plain * share // 100
        yield " / ".join(ratio(frontier, budget) for frontier in (held, best))
    yield from executed(model, sample, best.plan(best.smallest))


def ratio(frontier: revolve.Frontier, budget: int) -> str:
    """Write the planned time over plain training's, a dash where nothing fits."""
    return f"{frontier.plan(budget).ratio:.3f}" if budget >= frontier.smallest else "-"


def executed(model: nn.Module, sample: Any, plan: revolve.Plan) -> Iterator[str]:
    """Yield whether a plan carries, and what a step by it gives."""
    revolve.checkpointed(model, plan)
    try:
        report = revolve.verify(model, sample, repeats=1)
    finally:
        revolve.restore(model)
    yield "carried" if plan.chain.carries else "held"
    yield "yes" if report.exact else "NO"
    yield f"{report.measured_peak / report.predicted_peak:.3f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a plan gave other bits or a higher peak."""
    models = {name: factory for library in POOL.values() for name, factory in library.items()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=LEAPING, choices=list(models), metavar="MODEL")
    parser.add_argument("--shares", nargs="+", type=int, default=[50, 60, 75])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    times = [f"time within {share}%, held / better" for share in options.shares]
    columns = ("model", "stages", "least, held", "least", *times, "least plan", "equal bits", "measured / predicted")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    failed = False
    for name in options.models:
        row = list(cells(*models[name](), options.shares))
        failed |= "NO" in row or (len(row) > 1 and float(row[-1]) > 1)
        print(f"| {name} | {' | '.join(row)} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
