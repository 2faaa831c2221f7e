"""Every model of the pool by plans of three budgets: stages, coverage, bits, predicted and measured peaks.

    python benchmarks/pool.py [--models llama unet] [--libraries transformers timm own]

Needs transformers and timm for their models. An error is printed in the model's row, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from pool_models import POOL, Factory
from torch import nn

import revolve

COLUMNS = (
    *("model", "stages", "coverage", "largest stage", "least / plain"),
    *("equal bits", "measured / predicted", "kept", "error"),
)


class Row(NamedTuple):
    """What was found of a model.

    Attributes
    ----------
    stages, coverage, largest
        Number of stages, their share of the saved bytes, and the share of the largest.
    least
        The least budget over the peak of plain training.
    exact, ratios, kept
        Of each budget: equal bits, measured over predicted peak, and whether the budget was kept.
    errors
        What failed.
    """

    stages: int | None = None
    coverage: float | None = None
    largest: float | None = None
    least: float | None = None
    exact: tuple[bool, ...] = ()
    ratios: tuple[float, ...] = ()
    kept: tuple[bool, ...] = ()
    errors: tuple[str, ...] = ()

    def cells(self) -> Iterator[str]:
        """Write the columns."""
        yield "" if self.stages is None else str(self.stages)
        for share in (self.coverage, self.largest, self.least):
            yield "" if share is None else f"{share:.0%}"
        yield f"{sum(self.exact)} of {len(self.exact)}"
        yield " ".join(f"{ratio:.3f}" for ratio in self.ratios)
        yield f"{sum(self.kept)} of {len(self.kept)}"
        yield "; ".join(self.errors).replace("|", "/").replace("\n", " ")


def budgets(frontier: revolve.Frontier, count: int) -> list[int]:
    """Return budgets from the least feasible one up to just below plain training, evenly."""
    low, high = frontier.smallest, int(frontier.peaks[-1])
    return sorted({low + (high - low) * index // count for index in range(count)})


def try_model(factory: Factory, count: int) -> Row:
    """Train a model by plans of some budgets; an error ends in the row."""
    row = Row()
    try:
        model, sample = factory()
        stages = revolve.linearize(model, sample)
        row = row._replace(stages=len(stages), coverage=stages.coverage)
        chain = revolve.measure(model, sample)
        saved = [stage.saved_bytes for stage in chain.stages]
        row = row._replace(largest=max(saved) / max(1, sum(saved)))
        frontier = revolve.solve(chain)
        row = row._replace(least=frontier.smallest / frontier.plain)
        for budget in budgets(frontier, count):
            row = try_budget(model, sample, frontier.plan(budget), row)
    except Exception as error:  # one model's failure is a row of the table, and the script's exit code
        place = traceback.extract_tb(error.__traceback__)[-1]
        named = f"{type(error).__name__}: {str(error)[:200]} ({os.path.basename(place.filename)}:{place.lineno})"
        row = row._replace(errors=(*row.errors, named))
    return row


def try_budget(model: nn.Module, sample: Any, plan: revolve.Plan, row: Row) -> Row:
    """Compare a step by a plan with a plain one."""
    revolve.checkpointed(model, plan)
    try:
        report = revolve.verify(model, sample, repeats=1)
    finally:
        revolve.restore(model)
    errors = list(row.errors)
    if not report.exact:
        errors.append(f"{len(report.differences)} differ, as {report.differences[0]}")
    if not report.kept:
        errors.append(f"peak {report.measured_peak} over the budget {report.budget}")
    return row._replace(
        exact=(*row.exact, report.exact),
        ratios=(*row.ratios, report.measured_peak / report.predicted_peak),
        kept=(*row.kept, report.kept),
        errors=tuple(errors),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", nargs="+", default=list(POOL), choices=list(POOL))
    parser.add_argument("--models", nargs="+", help="names of models; default all")
    parser.add_argument("--budgets", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    chosen = {name: factory for library in options.libraries for name, factory in POOL[library].items()}
    if options.models:
        unknown = [name for name in options.models if name not in chosen]
        if unknown:
            parser.error(f"no model {unknown[0]!r}; there are {', '.join(chosen)}")
        chosen = {name: chosen[name] for name in options.models}
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    failures = 0
    for name, factory in chosen.items():
        row = try_model(factory, options.budgets)
        failures += bool(row.errors)
        print(f"| {name} | {' | '.join(row.cells())} |", flush=True)
    print(f"\n{len(chosen)} models, {len(chosen) - failures} without an error")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
