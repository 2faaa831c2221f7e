"""Plans without running beside measured ones: sizes, peaks, ranks of times, and whether such a plan keeps its budget.

    python benchmarks/fake.py [--models resnet18 llama ...] [--all]
    python benchmarks/fake.py --large

``--large`` plans a Llama of 7 billion parameters, by a process of its own whose memory is read. The demo models need
nothing; those of the pool (benchmarks/pool.py) need transformers and timm. The exit code is 1 where a budget was not
kept.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from pool_models import POOL
from torch import nn

import revolve
from revolve.cli.demo_models import DEMO_MODELS

COLUMNS = (
    *("model", "stages", "saved bytes equal", "plain peak", "least peak", "ranks of times"),
    *("measured / budget", "real s", "fake s"),
)
CHOSEN = (*DEMO_MODELS, "llama", "gpt2", "bert", "vit", "timm-convnext", "densenet")
SHARES = (0.2, 0.5, 0.8)  # of the way from the least peak to plain training's

Factory = Callable[[], tuple[nn.Module, Any]]


def demo(name: str) -> tuple[nn.Module, Any]:
    """Return a demo model and a batch of two, or of vectors its own."""
    model = DEMO_MODELS[name]
    shape = model.shape if len(model.shape) == 2 else (2, *model.shape[1:])
    return model.build(), torch.randn(shape)


def factories() -> dict[str, Factory]:
    """Return the factories of all models by name."""
    pool = {name: factory for library in POOL.values() for name, factory in library.items()}
    return pool | {name: partial(demo, name) for name in DEMO_MODELS}


def ranks(values: Sequence[float]) -> np.ndarray:
    """Return ranks, equal ones of equal values; times closer than one in a thousand are equal."""
    rounded = np.array([float(f"{value:.3g}") for value in values])
    _, inverse, counts = np.unique(rounded, return_inverse=True, return_counts=True)
    ends: np.ndarray = np.cumsum(counts)
    result: np.ndarray = (ends - (counts - 1) / 2)[inverse]
    return result


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the rank correlation of two lists; NaN where one has no ranks."""
    with np.errstate(all="ignore"):
        return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def stage_times(chain: revolve.Chain) -> list[float]:
    """Return the seconds of every stage, forward and backward."""
    return [stage.forward + stage.backward for stage in chain.stages]


def timed(call: Callable[[], revolve.Chain]) -> tuple[revolve.Chain, float]:
    """Return a result and the seconds it took."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def compare(name: str, factory: Factory, device: Any, pairs: list[tuple[float, float]]) -> bool:
    """Print one model's row; return whether its plans kept their budgets."""
    torch.manual_seed(0)
    model, sample = factory()
    model.train()
    real, real_seconds = timed(lambda: revolve.measure(model, sample))
    fake, fake_seconds = timed(lambda: revolve.measure(model, sample, mode="fake", device=device))
    equal = sum(a.saved_bytes == b.saved_bytes for a, b in zip(real.stages, fake.stages, strict=True))
    solved, imagined = revolve.solve(real), revolve.solve(fake)
    ratios = []
    for share in SHARES:
        budget = int(imagined.smallest + share * (imagined.plain - imagined.smallest))
        revolve.checkpointed(model, imagined.plan(budget))
        ratios.append(revolve.verify(model, sample, repeats=1).measured_peak / budget)
        revolve.restore(model)
    pairs += zip(stage_times(real), stage_times(fake), strict=True)
    cells = (
        *(name, str(len(real)), f"{equal} of {len(real)}", f"{imagined.plain / solved.plain - 1:+.1%}"),
        f"{imagined.smallest / solved.smallest - 1:+.1%}",
        f"{spearman(stage_times(real), stage_times(fake)):.2f}",
        *(" ".join(f"{ratio:.3f}" for ratio in ratios), f"{real_seconds:.1f}", f"{fake_seconds:.1f}"),
    )
    print(f"| {' | '.join(cells)} |", flush=True)
    return max(ratios) <= 1


LARGE = """
import time
from pool_models import define_vision_operators
define_vision_operators()
from transformers import LlamaConfig, LlamaForCausalLM
import torch, revolve
start, busy = time.perf_counter(), time.process_time()
with torch.device("meta"):
    model = LlamaForCausalLM(LlamaConfig(use_cache=False)).train()
    words = torch.zeros(1, 2048, dtype=torch.long)
chain = revolve.measure(model, {"input_ids": words, "labels": words}, mode="fake", device="h100")
frontier = revolve.solve(chain)
seconds, busy = time.perf_counter() - start, time.process_time() - busy
memory = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
parameters = sum(parameter.numel() for parameter in model.parameters())
print(f"Llama of {parameters / 1e9:.2f} billion parameters, 1 x 2048 words, float32: {len(chain)} stages planned in "
      f"{seconds:.1f} s ({busy:.1f} s of CPU time), host memory at most {int(memory.split()[1]) / 2**20:.2f} GiB; "
      f"plain training adds "
      f"{frontier.plain / 1e9:.1f} GB, of which {sum(s.grad_bytes for s in chain.stages) / 1e9:.1f} GB are gradients; "
      f"least {frontier.smallest / 1e9:.1f} GB")
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a budget was not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CHOSEN))
    parser.add_argument("--all", action="store_true", help="the demo models and the whole pool")
    parser.add_argument("--large", action="store_true", help="only the model of 7 billion parameters")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.large:
        folder = os.path.dirname(os.path.abspath(__file__))
        return subprocess.run([sys.executable, "-W", "ignore", "-c", LARGE], cwd=folder, check=False).returncode
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    known = factories()
    names = list(known) if options.all else options.models
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no model {unknown[0]!r}; there are {', '.join(known)}")
    device = revolve.calibrate()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    pairs: list[tuple[float, float]] = []
    kept = [compare(name, known[name], device, pairs) for name in names]
    real, fake = zip(*pairs, strict=True)
    print(f"\n{len(pairs)} stages of {len(names)} models: ranks of their times correlate by {spearman(real, fake):.2f}")
    return not all(kept)


if __name__ == "__main__":
    sys.exit(main())
