"""revolve beside torch.compile's activation memory budget, on whole models of transformers and timm.

``torch._functorch.config.activation_memory_budget`` is a share of the activations, not a number of bytes, so each
setting is compiled first and its peak measured. Compiling alone makes steps smaller and faster, hence two comparisons.
Plans on the model as it is: at the same share of its own plain peak, with its time over its own plain time. Plans on a
model whose stages are compiled one by one: at the same bytes, with both times over those of the model compiled as a
whole without a budget. Steps take turns in one process; medians of ratios of CPU times in one turn, peaks from the
allocator.

    python benchmarks/compiled.py [--models llama vit] [--budgets 0.8 0.5 0.2] [--repeats 7]

Needs transformers, timm and a C++ compiler. Each budget takes a minute to compile.
"""

from __future__ import annotations

import argparse
import copy
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from frameworks import MODELS, RESERVE, alternate, median_ratio, peak_of, print_row, step
from torch import nn
from torch._functorch import config
from torch._inductor.compile_fx import compile_fx

import revolve

COLUMNS = (
    *("model", "its budget", "its peak", "of its plain", "its time"),
    *("revolve peak", "revolve time", "compiled stages: peak", "time", "time ratio"),
)


def backend(budget: float) -> Callable[..., Any]:
    """Return inductor within a share of the activations."""

    def compile_graph(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        with config.patch(activation_memory_budget=budget):
            return compile_fx(graph, inputs)

    return compile_graph


def budgeted(model: nn.Module, budget: float) -> Callable[..., Any]:
    """Return a copy of a model that is compiled within a share of its activations."""
    return torch.compile(copy.deepcopy(model), backend=backend(budget))


def compile_stages(model: nn.Module, names: Iterable[str], budget: float) -> nn.Module:
    """Return a copy of a model with the modules of each stage compiled by themselves."""
    compiled, inductor = copy.deepcopy(model), backend(budget)
    paths = {path for name in names for path in name.split("+")}
    for module in [module for path, module in compiled.named_modules() if path in paths]:
        module.forward = torch.compile(module.forward, backend=inductor)
    return compiled


class Contest:
    """A model within torch.compile's budgets, beside plans for it.

    Parameters
    ----------
    name
        The model.
    repeats
        Timed steps of each kind.
    inside
        Budget of the stages that are compiled by themselves.
    """

    def __init__(self, name: str, repeats: int, inside: float) -> None:
        self.name, self.repeats = name, repeats
        self.eager, self.sample = MODELS[name]()
        self.whole = budgeted(self.eager, 1.0)
        self.eager_peak, self.whole_peak = peak_of(self.eager, self.sample), peak_of(self.whole, self.sample)
        chain = revolve.measure(self.eager, self.sample)
        self.stages = compile_stages(self.eager, [stage.name for stage in chain.stages], inside)
        peak_of(self.stages, self.sample)  # compiled before they are measured
        self.on_eager = revolve.solve(chain, tolerance="auto")
        self.on_stages = revolve.solve(revolve.measure(self.stages, self.sample), tolerance="auto")

    def run(self, budgets: list[float]) -> None:
        """Print a row for each budget, and what plain training takes."""
        for budget in budgets:
            print_row(tuple(self.row(budget)))
        plain = f"plain {self.eager_peak / 1e6:.1f} MB, compiled {self.whole_peak / 1e6:.1f} MB"
        least, compiled = self.on_eager.smallest / 1e6, self.on_stages.smallest / 1e6
        print(f"| {self.name}: {plain}; revolve's least {least:.1f} MB, with compiled stages {compiled:.1f} MB")

    def row(self, budget: float) -> Iterator[str]:
        """Yield the cells of one budget."""
        theirs = budgeted(self.eager, budget)
        peak = peak_of(theirs, self.sample)
        share = peak / self.whole_peak
        own = planned(copy.deepcopy(self.eager), self.on_eager, round(share * self.eager_peak))
        own_stages = planned(self.stages, self.on_stages, peak)
        models = {"eager": self.eager, "whole": self.whole, "theirs": theirs, "own": own, "own stages": own_stages}
        own_peak, stages_peak = peak_of(own, self.sample), peak_of(own_stages, self.sample)
        times = alternate({name: partial(step, model, self.sample) for name, model in models.items()}, self.repeats)
        revolve.restore(self.stages)
        ratio = partial(median_ratio, times)
        yield from (self.name, f"{budget}", f"{peak / 1e6:.1f} MB", f"{share:.1%}")
        yield f"{ratio('theirs', 'whole') - 1:+.1%}"
        yield from (f"{own_peak / self.eager_peak:.1%}", f"{ratio('own', 'eager') - 1:+.1%}")
        yield from (f"{stages_peak / 1e6:.1f} MB", f"{ratio('own stages', 'whole') - 1:+.1%}")
        yield f"{ratio('own stages', 'theirs'):.3f}"


def planned(model: nn.Module, frontier: revolve.Frontier, limit: int) -> nn.Module:
    """Return a model with the plan for a number of bytes, or for the least possible."""
    return revolve.checkpointed(model, frontier.plan(max(limit + RESERVE, frontier.smallest)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["llama", "vit"], choices=list(MODELS))
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.8, 0.5, 0.2])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--inside", type=float, default=1.0, help="budget of the stages that are compiled by themselves"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64  # a compiled model for each budget shares its code
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread, {options.repeats} repeats")
    print_row(COLUMNS)
    print_row(("---",) * len(COLUMNS))
    for name in options.models:
        Contest(name, options.repeats, options.inside).run(options.budgets)


if __name__ == "__main__":
    main()
