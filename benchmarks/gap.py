"""How often schedules that are not persistent beat the exact solver, by exhaustive search on short chains.

Run ``python benchmarks/gap.py`` for the table, and ``python benchmarks/gap.py docs`` to draw the smallest
counter-example as well, the solver's plan and the optimum, into that folder. It takes about five minutes.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from revolve.report.plots import draw_schedule
from revolve.schedules import Chain, Plan, solve

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "schedules"))

from exhaustive import least_makespan  # noqa: E402
from random_chains import random_chain  # noqa: E402
from test_gap import COUNTER_EXAMPLES, narrowing_chain  # noqa: E402
from test_optimality import Case, compare  # noqa: E402

CHAINS = 400
BUDGETS = 6
WINDOW = 5  # stages
# Of the first counter-example; the search finds one of the same time that is harder to read.
OPTIMUM = [
    *(["forward", 0], ["store", 1, "dense"], ["forward", 1], ["forward", 2], ["save", 3], ["loss"], ["backward", 3]),
    *(["load", 1], ["drop", 1], ["forward", 1], ["save", 2], ["backward", 2]),
    *(["load", 0], ["save", 0], ["rebuild", 1], ["backward", 1], ["backward", 0]),
]


def random_chains(seed: int, make: Callable[[random.Random, int], Chain]) -> Iterator[Chain]:
    """Yield chains of 2 to 5 stages."""
    rng = random.Random(seed)
    for _ in range(CHAINS):
        yield make(rng, rng.choice((2, 3, 3, 4, 4, 4, 5)))


def measured_windows() -> Iterator[Chain]:
    """Yield parts of the measured chains, a few stages each."""
    for path in sorted((HERE / "chains").glob("*.json")):
        chain = Chain.load(path)
        for start in range(len(chain) - WINDOW + 1):
            yield replace(
                chain,
                stages=chain.stages[start : start + WINDOW],
                input_bytes=chain.activation_bytes(start),
                formats={},
            )


def compare_all(chains: Iterator[Chain], seed: int) -> list[Case]:
    """Compare plans with the optimum at the ends of the frontier, just below it, and between."""
    rng = random.Random(seed)
    found = []
    for chain in chains:
        frontier = solve(chain, formats=tuple(chain.formats))
        low, high = frontier.smallest, frontier.plain
        budgets = {max(low - 1, 0), low, *(rng.randint(low, high) for _ in range(BUDGETS - 2))}
        found += [compare(chain, budget, frontier) for budget in sorted(budgets)]
    return found


def print_table(console: Console) -> None:
    """Print how often the solver misses the optimum."""
    samples = {
        "random, up to one format": random_chains(1, random_chain),
        "random, inconsistent extras": random_chains(2, partial(random_chain, consistent=False)),
        "random, no formats": random_chains(3, partial(random_chain, formats=0)),
        "narrowing, no gradients left": random_chains(4, narrowing_chain),
        f"windows of {WINDOW} measured stages": measured_windows(),
    }
    table = Table(
        "chains", "cases", "not optimal", "of these refused", "worst excess", title="Beside exhaustive search"
    )
    for name, chains in samples.items():
        found = compare_all(chains, 0)
        missed = [case for case in found if case.excess > 0]
        refused = sum(case.excess == float("inf") for case in missed)
        worst = max((case.excess for case in missed if case.excess < float("inf")), default=0.0)
        share = f"{len(missed)} ({len(missed) / len(found):.2%})"
        table.add_row(name, str(len(found)), share, str(refused), f"{worst:.1%}")
    console.print(table)


def draw_counter_example(folder: Path) -> None:
    """Draw the solver's plan and the optimum of the smallest counter-example without transient bytes."""
    case = COUNTER_EXAMPLES["checkpoint given up early"]
    chain = replace(case.chain(), name=f"budget {case.budget} bytes")
    planned = solve(chain).plan(case.budget)
    optimum = Plan.from_actions(chain, OPTIMUM, "by hand", case.budget)
    found = least_makespan(chain, case.budget)
    assert found is not None
    assert found[0] == round(optimum.makespan * 1e9)
    draw_schedule(planned, folder / "gap-solver.png", f"The solver's plan: {planned.makespan:.0f} s within 6 bytes")
    title = (
        f"The optimum: {optimum.makespan:.0f} s; x_1 is stored for stages 2 and 3 alone, dropped as 2 needs its byte"
    )
    draw_schedule(optimum, folder / "gap-optimum.png", title)


def main() -> None:
    """Print the table; draw where asked to."""
    if len(sys.argv) > 1:
        draw_counter_example(Path(sys.argv[1]))
    print_table(Console(width=120))


if __name__ == "__main__":
    main()
