"""Which rows of a training loop checkpointing keeps bit for bit: revolve beside torch's own, both variants.

Every row runs two steps of a small network plainly and checkpointed, from the same state, and compares outputs,
gradients, buffers and the states of all random number generators. The networks are those of the tests.

    python benchmarks/rows.py
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

import revolve

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))

import test_boundaries
from layers import build
from steps import batch, square
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight

Run = Callable[[Any], Any]


def by_revolve(model: nn.Sequential) -> Run:
    """Let a model run by the plan of its least budget, whatever the modes of the row."""
    frontier = revolve.solve(revolve.measure(model, batch()))
    plan = frontier.plan(frontier.smallest)
    return revolve.checkpointed(model, revolve.Plan.from_actions(plan.chain, plan.actions))


def by_torch(*, reentrant: bool) -> Callable[[nn.Sequential], Run]:
    """Let a model run in as many segments as it has layers."""
    return lambda model: lambda x: checkpoint_sequential(list(model), len(model), x, use_reentrant=reentrant)


CONTENDERS: dict[str, Callable[[nn.Sequential], Run]] = {
    "revolve": by_revolve,
    "torch non-reentrant": by_torch(reentrant=False),
    "torch reentrant": by_torch(reentrant=True),
}


def backward(model: nn.Module, run: Run, x: Any) -> list[Any]:
    """Run an ordinary step."""
    square(run(x)).backward()
    return []


def of_input(model: nn.Module, run: Run, x: Any) -> list[Any]:
    """Ask for gradients by autograd.grad."""
    return list(torch.autograd.grad(square(run(x)), [x, *model.parameters()]))


def twice(model: nn.Module, run: Run, x: Any) -> list[Any]:
    """Run backward twice through a retained graph."""
    loss = square(run(x))
    loss.backward(retain_graph=True)
    loss.backward()
    return []


def partly(model: nn.Module, run: Run, x: Any) -> list[Any]:
    """Run backward for some parameters, then for all."""
    loss = square(run(x))
    loss.backward(inputs=list(model[-1].parameters()), retain_graph=True)
    loss.backward()
    return []


def penalty(model: nn.Module, run: Run, x: Any) -> list[Any]:
    """Differentiate a gradient."""
    (slope,) = torch.autograd.grad(run(x).sum(), [x], create_graph=True)
    slope.square().sum().backward()
    return []


def zero_bubble(model: nn.Module, run: Run, x: Any) -> list[Any]:
    """Run the backwards of inputs and of weights apart."""
    _, groups = stage_backward_input([square(run(x))], None, [x], model.parameters())
    stage_backward_weight(model.parameters(), groups)
    return []


def two_forwards(model: nn.Module, run: Run, x: Any) -> list[Any]:
    """Run two forwards before one backward."""
    (square(run(x)) + square(run(x * 0.5))).backward()
    return []


def mixed(model: nn.Module, run: Run, x: Any) -> list[Any]:
    """Run the forward under autocast."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = run(x)
    output.float().square().mean().backward()
    return []


def other_dtype(model: nn.Module, run: Run, x: Any) -> list[Any]:
    """Change the default dtype between forward and backward."""
    output = run(x)
    torch.set_default_dtype(torch.float64)
    try:
        square(output).backward()
    finally:
        torch.set_default_dtype(torch.float32)
    return []


def eval_between(model: nn.Module, run: Run, x: Any) -> list[Any]:
    """Switch to eval mode between forward and backward."""
    loss = square(run(x))
    model.eval()
    loss.backward()
    model.train()
    return []


class Width(nn.Module):
    """Depends on the default dtype."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale by the size of a new tensor's numbers."""
        return (x * torch.finfo(torch.zeros(()).dtype).bits / 32).sin()


def layers(*kinds: str) -> Callable[[], nn.Sequential]:
    """Return a builder of some layers from the tests' pool."""
    return lambda: build([*kinds, "linear", *kinds])


def in_place() -> nn.Sequential:
    """Return layers followed by ReLUs in place."""
    torch.manual_seed(0)
    return nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(16, 16), nn.ReLU(inplace=True))))


def frozen() -> nn.Sequential:
    """Return a network whose first layers are frozen."""
    model = layers("gelu", "linear")()
    model[:3].requires_grad_(False)
    return model


def widths() -> nn.Sequential:
    """Return layers that depend on the default dtype."""
    torch.manual_seed(0)
    return nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(16, 16), Width())))


SIMPLE = layers("gelu")
# Row: builder, step, whether the input requires a gradient.
ROWS: dict[str, tuple[Callable[[], nn.Sequential], Callable[..., list[Any]], bool]] = {
    "dropout": (layers("dropout", "alpha dropout"), backward, True),
    "RReLU": (layers("rrelu"), backward, True),
    "stochastic depth, data-dependent draws": (layers("stochastic depth", "rejection"), backward, True),
    "user-owned torch.Generator": (layers("own generator"), backward, True),
    "draws from Python's random and NumPy": (
        layers("stochastic depth by Python", "stochastic depth by NumPy"),
        backward,
        True,
    ),
    "BatchNorm, momentum=None": (layers("batch norm", "cumulative batch norm"), backward, True),
    "InstanceNorm with statistics": (layers("instance norm"), backward, True),
    "spectral_norm, both kinds": (layers("spectral norm", "old spectral norm"), backward, True),
    "EMA codebook, user buffers": (layers("codebook", "moving mean", "replaced buffer"), backward, True),
    "input without gradient, frozen prefix": (frozen, backward, False),
    "LoRA, tied and reused modules": (layers("low rank", "tied linear", "parametrised"), backward, True),
    "autocast": (layers("layer norm", "dropout"), mixed, True),
    "default dtype changed before backward": (widths, other_dtype, True),
    "eval() before backward": (layers("dropout"), eval_between, True),
    "ReLU(inplace=True) at every cut": (in_place, backward, True),
    "autograd.grad": (SIMPLE, of_input, True),
    "retain_graph, two backwards": (layers("dropout"), twice, True),
    "backward(inputs=...)": (layers("dropout"), partly, True),
    "gradient penalty (create_graph)": (SIMPLE, penalty, True),
    "zero-bubble (inputs and weights apart)": (layers("dropout"), zero_bubble, True),
    "two forwards before backward": (layers("dropout", "layer norm"), two_forwards, True),
    "tuples between stages": (lambda: test_boundaries.TUPLES, backward, True),
    "dicts between stages": (lambda: test_boundaries.DICTS, backward, True),
    "dataclasses between stages": (lambda: test_boundaries.DATACLASSES, backward, True),
}


def left_by(name: str, wrap: Callable[[nn.Sequential], Run] | None) -> list[Any]:
    """Run two steps of a row; return everything they leave."""
    make, step, input_grad = ROWS[name]
    model = make()
    model.zero_grad()
    run = wrap(model) if wrap else model
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    x = batch().requires_grad_(input_grad)
    try:
        found = [value for _ in range(2) for value in step(model, run, x)]
    finally:
        revolve.restore(model)
    found += [None if t.grad is None else t.grad.clone() for t in (x, *model.parameters())]
    found += [buffer.clone() for buffer in model.buffers()]
    found += [torch.get_rng_state(), *(m.generator.get_state() for m in model if hasattr(m, "generator"))]
    return [*found, torch.tensor(random.getstate()[1]), torch.tensor(np.random.get_state()[1].astype(int))]


def verdict(name: str, wrap: Callable[[nn.Sequential], Run]) -> str:
    """Say whether a row equals plain training."""
    expected = left_by(name, None)
    try:
        found = left_by(name, wrap)
    except Exception as error:
        return f"error: {type(error).__name__}"
    wrong = [
        a is not b and (a is None or b is None or not torch.equal(a, b)) for a, b in zip(found, expected, strict=True)
    ]
    return f"**differs** ({sum(wrong)} of {len(wrong)} tensors)" if any(wrong) else "equal"


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"| row | {' | '.join(CONTENDERS)} |")
    print("|---|" + "---|" * len(CONTENDERS))
    for name in ROWS:
        print(f"| {name} | {' | '.join(verdict(name, wrap) for wrap in CONTENDERS.values())} |", flush=True)


if __name__ == "__main__":
    main()
