"""Train a ResNet-50 inside 40 % of the memory that plain training needs, and check every bit of it.

Run with ``make demo``. Measures the network's chain, solves it, compares one planned step with a plain
one, then trains both ways from the same start and compares the weights. Writes a picture of the schedule.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from pathlib import Path

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the profiler warns of blocks older than its trace

import torch
from rich.console import Console
from skimage import data
from torch import nn

import revolve
from revolve.cli.demo_models import DEMO_MODELS
from revolve.cli.output import show_progress
from revolve.report.plots import draw_schedule
from revolve.report.tables import tabulate_chain, tabulate_plan, tabulate_report
from revolve.schedules import format_bytes

PICTURES = ("astronaut", "cat", "coffee", "rocket")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def crop_pictures(batch: int, side: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random crops of scikit-image's photographs, and which photograph each is from."""
    generator = torch.Generator().manual_seed(seed)
    crops, labels = [], []
    for index in range(batch):
        label = index % len(PICTURES)
        picture = torch.from_numpy(getattr(data, PICTURES[label])().copy()).permute(2, 0, 1)[:3] / 255
        top, left = (int(torch.randint(n - side + 1, (), generator=generator)) for n in picture.shape[1:])
        crop = picture[:, top : top + side, left : left + side]
        crops.append((crop - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])
        labels.append(label)
    return torch.stack(crops), torch.tensor(labels)


def train(model: nn.Module, steps: int, batch: int, side: int) -> list[float]:
    """Take optimiser steps on fresh crops; return the losses."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for step in range(steps):
        images, labels = crop_pictures(batch, side, seed=step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> int:
    """Run the demonstration; 0 if every bit was equal and the budget was kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=224, help="of the square pictures, at most 300")
    parser.add_argument("--fraction", type=float, default=0.4, help="budget, as a share of plain training's peak")
    parser.add_argument("--steps", type=int, default=3, help="optimiser steps")
    parser.add_argument("--out", type=Path, default=Path("demo-output/resnet50.png"), help="the picture")
    options = parser.parse_args()
    console = Console(width=100, highlight=False)

    torch.manual_seed(0)
    model = DEMO_MODELS["resnet50"].build(classes=len(PICTURES))
    images, labels = crop_pictures(options.batch, options.side, seed=0)

    def loss(output: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, labels)

    with show_progress("measuring") as progress:
        chain = revolve.measure(model, images, loss, progress=progress)
    console.print(tabulate_chain(chain))

    frontier = revolve.solve(chain)
    plan = frontier.plan(int(options.fraction * frontier.peaks[-1]))
    console.print(tabulate_plan(plan))

    plain = copy.deepcopy(model)
    revolve.checkpointed(model, plan)
    report = revolve.verify(model, images, loss)
    console.print(tabulate_report(report))

    planned_losses = train(model, options.steps, options.batch, options.side)
    plain_losses = train(plain, options.steps, options.batch, options.side)
    pairs = zip(model.state_dict().values(), plain.state_dict().values(), strict=True)
    equal = planned_losses == plain_losses and all(torch.equal(a, b) for a, b in pairs)
    steps = ", ".join(f"{value:.4f}" for value in planned_losses)
    console.print(f"\n{options.steps} optimiser steps on photographs, losses {steps}: weights and BatchNorm statistics")
    console.print("are bit for bit those of plain training." if equal else "DIFFER from plain training.")

    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw_schedule(plan, options.out, title=f"ResNet-50 within {format_bytes(plan.budget or plan.peak)}")
    console.print(f"The schedule is drawn in {options.out}.")
    return 0 if report.exact and report.kept and equal else 1


if __name__ == "__main__":
    sys.exit(main())
