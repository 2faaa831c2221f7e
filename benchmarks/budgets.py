"""Every demo model at five budgets from the least feasible to plain training: bits, peaks and times.

For each budget, ``revolve.verify`` runs planned beside plain steps of the full-size model.

    python benchmarks/budgets.py [--models resnet50 mlp]
"""

from __future__ import annotations

import argparse

import torch

import revolve
from revolve.cli.demo_models import DEMO_MODELS


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(DEMO_MODELS), choices=list(DEMO_MODELS))
    parser.add_argument("--budgets", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| model | budget / plain | equal bits | kept | measured / predicted peak | planned time | measured time |")
    print("|---|---|---|---|---|---|---|")
    for name in options.models:
        torch.manual_seed(0)
        model, sample = DEMO_MODELS[name].build(), torch.randn(DEMO_MODELS[name].shape)
        frontier = revolve.solve(revolve.measure(model, sample))
        low, high = frontier.smallest, int(frontier.peaks[-1])
        for index in range(options.budgets):
            budget = low + (high - low) * index // max(1, options.budgets - 1)
            plan = frontier.plan(budget)
            report = revolve.verify(revolve.checkpointed(model, plan), sample, repeats=options.repeats)
            revolve.restore(model)
            cells = (
                name,
                f"{budget / high:.1%}",
                "yes" if report.exact else f"NO: {report.differences[0]}",
                "yes" if report.kept else "NO",
                f"{report.measured_peak / report.predicted_peak:.4f}",
                f"{plan.ratio - 1:+.1%}",
                f"{report.measured_time / report.plain_time - 1:+.1%}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
