"""Recomputing alone, formats alone, and both, at the same budgets.

*Formats alone* runs nothing again and keeps saved tensors in whichever formats suit the budget: the fastest of such
schedules, found by the solver on the same chain with forward times so long that nothing is run twice.
Each cell is the measured step over a plain one of the same run; every schedule's gradients are compared bit for bit.

    python benchmarks/formats.py [--networks convolutions transformer] [--formats bitmap]

With ``--least`` it prints the least feasible budget of each format instead, and the least one at which no stage is run
twice, as shares of plain training's peak; all of these plans are executed.

    python benchmarks/formats.py --least --networks timm-resnet18 gpt2 --formats bitmap bf16 int8 disk

Needs timm and transformers for the networks that are theirs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from pool_models import define_vision_operators
from torch import nn

import revolve
from revolve import Chain, Frontier, Plan
from revolve.cli.demo_models import DEMO_MODELS
from revolve.schedules import InfeasibleBudget

LONG = 10_000.0  # times a forward: more than any number of other things is worth


def convolutions(depth: int = 14, channels: int = 32) -> tuple[nn.Module, torch.Tensor]:
    """Return a plain stack of convolutions and ReLUs, as in VGG but for the pooling, and a batch."""
    widths = [3, *[channels] * depth]
    layers = [m for a, b in pairwise(widths) for m in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    return nn.Sequential(*layers, *head), torch.randn(8, 3, 48, 48)


def demo(name: str, *shape: int) -> Callable[[], tuple[nn.Module, torch.Tensor]]:
    """Return a demo model with a batch of another shape."""
    return lambda: (DEMO_MODELS[name].build(), torch.randn(shape))


def timm_resnet() -> tuple[nn.Module, torch.Tensor]:
    """Return timm's ResNet-18 and images: its forward runs the stages itself."""
    define_vision_operators()
    import timm

    return timm.create_model("resnet18", num_classes=10).train(), torch.randn(16, 3, 112, 112)


def gpt2() -> tuple[nn.Module, dict[str, Any]]:
    """Return a small GPT-2 of transformers, and words with labels."""
    define_vision_operators()
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 128, "n_layer": 6, "n_head": 4, "vocab_size": 1024, "n_positions": 256}
    words = torch.randint(0, 1024, (4, 256))
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).train()
    return model, {"input_ids": words, "labels": words, "use_cache": False}


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "convolutions": convolutions,
    "resnet18": demo("resnet18", 8, 3, 160, 160),
    "transformer": demo("transformer", 4, 128, 256),
    "timm-resnet18": timm_resnet,
    "gpt2": gpt2,
}
SEQUENTIAL = ("convolutions", "resnet18", "transformer")


def slow(chain: Chain) -> Chain:
    """Return a chain whose stages take so long that nothing is worth running twice."""
    scale = LONG * chain.plain_makespan
    return replace(chain, stages=tuple(replace(s, forward=scale, rebuild=scale) for s in chain.stages))


def formats_alone(chain: Chain, frontier: Frontier, budget: int) -> Plan | None:
    """Return the fastest schedule within a budget that runs every stage once; None if there is none."""
    try:
        plan = frontier.plan(budget)
    except InfeasibleBudget:
        return None
    counts = plan.counts()
    if counts["forward"] or counts["rebuild"] or counts["save"] > len(chain):
        return None
    return Plan.from_actions(chain, plan.actions, "formats alone", budget)


def plan_within(frontier: Frontier, budget: int) -> Plan | None:
    """Return the optimal plan within a budget, None if there is none."""
    return frontier.plan(budget) if budget >= frontier.smallest else None


def measure_plan(model: nn.Module, sample: Any, plan: Plan | None, repeats: int) -> str:
    """Run a plan beside plain steps; return what it took, and whether bits and budget were kept."""
    if plan is None:
        return "no schedule"
    report = revolve.verify(revolve.checkpointed(model, plan), sample, repeats=repeats)
    revolve.restore(model)
    faults = [*(["DIFFERS"] if not report.passed and report.kept else []), *([] if report.kept else ["EXCEEDED"])]
    used = sorted({action.format for action in plan.actions if getattr(action, "format", "dense") != "dense"})
    time = report.measured_time / report.plain_time - 1
    return " ".join([f"{time:+.1%} (planned {plan.ratio - 1:+.1%})", *used, *faults])


def measure_least(name: str, formats: Sequence[str]) -> list[str]:
    """Return for each format, dense first, the least budgets of all and without running stages twice, over plain's."""
    torch.manual_seed(0)
    model, sample = NETWORKS[name]()
    chain = revolve.measure(model, sample, formats=formats)
    cells = []
    for allowed in ((), *((name,) for name in formats)):
        frontier, once = revolve.solve(chain, allowed), revolve.solve(slow(chain), allowed)
        alone = (formats_alone(chain, once, int(peak)) for peak in once.peaks)
        plans = frontier.plan(frontier.smallest), next(plan for plan in alone if plan is not None)
        words = []
        for plan in plans:
            report = revolve.verify(revolve.checkpointed(model, plan), sample, repeats=1)
            fault = "" if report.passed else " DIFFERS" if report.kept else " EXCEEDED"
            words.append(f"{plan.peak / plan.plain_peak:.0%}{fault}")
        revolve.restore(model)
        cells.append(", ".join(words))
    return cells


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(SEQUENTIAL), choices=list(NETWORKS))
    parser.add_argument("--formats", nargs="+", default=["bitmap"])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.35])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--least", action="store_true", help="print the least budget of each format")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.least:
        print(f"| network | dense | {' | '.join(options.formats)} |\n|{'---|' * (2 + len(options.formats))}")
        for name in options.networks:
            print(f"| {name} | {' | '.join(measure_least(name, options.formats))} |", flush=True)
        return
    print("| network | budget / plain | recomputing alone | formats alone | both |")
    print("|---|---|---|---|---|")
    for name in options.networks:
        torch.manual_seed(0)
        model, sample = NETWORKS[name]()
        chain = revolve.measure(model, sample, formats=options.formats)
        recomputing, both = revolve.solve(chain), revolve.solve(chain, options.formats)
        once = revolve.solve(slow(chain), options.formats)
        for share in options.shares:
            budget = int(share * both.plain)
            plans = (
                plan_within(recomputing, budget),
                formats_alone(chain, once, budget),
                plan_within(both, budget),
            )
            cells = [measure_plan(model, sample, plan, options.repeats) for plan in plans]
            if any(plan is not None for plan in plans):
                print(f"| {name} | {share:.0%} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
