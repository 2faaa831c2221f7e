"""revolve beside the checkpointing that transformers and timm bring along, at the same measured peak.

Each model runs with its library's own checkpointing: transformers' of every n-th layer, timm's set_grad_checkpointing.
revolve gets the measured peak as its budget (and the six kilobytes by which its predictions are above what is measured:
the states of generators, and what the root of backward takes). A second row of each lies half the way from there to
plain training, where the library has no setting. Plain, the library's and revolve's steps take turns in one process,
each on a copy of the model; times are medians of the ratios of CPU times in one turn, peaks come from the allocator.
Gradients exist before each step. A second copy with the library's setting takes turns as well: by how much the two
differ (the last column) is by how much equal programs differ here.

The process keeps its pages, as allocators of accelerators do. glibc hands them back to the system at thresholds, and
has them zeroed when they are needed again: one kind of step pays for that and another does not, by the order in which
it frees (--glibc leaves it so).

    python benchmarks/frameworks.py [--models llama timm-resnet50] [--repeats 9]

Needs transformers and timm.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import importlib
import os
import platform
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from pool_models import define_vision_operators, pretrained, seeded
from torch import nn

import revolve
from revolve.runtime.allocations import trace_allocations
from revolve.runtime.bench import GENERATOR_BYTES
from revolve.runtime.measurement import ROOT_BYTES, default_loss

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt
RESERVE = ROOT_BYTES + GENERATOR_BYTES
LENGTH, WORDS, DEPTH, WIDTH = 256, 1000, 8, 256
SIZES = {
    **{"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 4},
    **{"vocab_size": WORDS, "max_position_embeddings": LENGTH, "pad_token_id": 0},
}
GPT2 = {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "n_positions": LENGTH, "vocab_size": WORDS}
VISION = {
    **{"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 4},
    **{"image_size": 128, "patch_size": 8, "num_labels": 10},
}


def words(cache: bool = True) -> dict[str, Any]:
    """Return words and the same as labels."""
    ids = torch.randint(3, WORDS, (4, LENGTH), generator=seeded(1))
    return {"input_ids": ids, "labels": ids} | ({"use_cache": False} if cache else {})


def pictures(batch: int = 4, side: int = 128) -> torch.Tensor:
    """Return images."""
    return torch.randn(batch, 3, side, side, generator=seeded(1))


def timm_model(name: str, sample: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    """Build a model of timm with random weights."""
    define_vision_operators()
    torch.manual_seed(0)
    return importlib.import_module("timm").create_model(name, num_classes=10).train(), sample


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "llama": lambda: pretrained("LlamaForCausalLM", SIZES, words),
    "gpt2": lambda: pretrained("GPT2LMHeadModel", GPT2, words),
    "bert": lambda: pretrained("BertForMaskedLM", SIZES, lambda: words(cache=False)),
    "vit": lambda: pretrained("ViTForImageClassification", VISION, lambda: {"pixel_values": pictures()}),
    "timm-resnet50": lambda: timm_model("resnet50", pictures(8)),
    "timm-vit-small": lambda: timm_model("vit_small_patch16_224", pictures(8, 224)),
    "timm-convnext": lambda: timm_model("convnext_atto", pictures(8)),
    "timm-efficientnet": lambda: timm_model("efficientnet_b0", pictures(8)),
}


def call(model: nn.Module, sample: Any) -> Any:
    """Call a model on its sample."""
    return model(**sample) if isinstance(sample, Mapping) else model(sample)


def step(model: nn.Module, sample: Any) -> float:
    """Run one step; return its CPU seconds."""
    model.zero_grad(set_to_none=False)
    start = time.process_time()
    output = call(model, sample)  # kept to the end, as training loops do
    default_loss(output).backward()
    return time.process_time() - start


def peak_of(model: nn.Module, sample: Any) -> int:
    """Return the peak bytes of a step, when one has been run before."""
    step(model, sample)
    model.zero_grad(set_to_none=False)
    with trace_allocations(torch.device("cpu")) as tracer:
        output = call(model, sample)
        default_loss(output).backward()
        tracer.mark()
    return tracer.phases[0].peak


Switch = Callable[[bool], None]


def settings(model: nn.Module) -> Iterator[tuple[str, Switch]]:
    """Yield each way in which the model's library checkpoints, and what switches it on and off."""
    if hasattr(model, "activation_checkpointing_enable"):
        for every in (1, 2, 4):

            def switch(on: bool, every: int = every) -> None:
                if on:
                    model.activation_checkpointing_enable(every_n_layers=every)
                else:
                    model.activation_checkpointing_disable()

            yield f"every {every}", switch
    else:
        yield "set_grad_checkpointing", model.set_grad_checkpointing


class Contest:
    """Plain steps of one model beside its library's checkpointing and beside plans, each on a copy of its own.

    Parameters
    ----------
    name
        The model.
    repeats
        Timed steps of each kind.
    """

    def __init__(self, name: str, repeats: int) -> None:
        self.name = name
        self.repeats = repeats
        self.model, self.sample = MODELS[name]()
        self.plain_peak = peak_of(self.model, self.sample)
        self.frontier = revolve.solve(revolve.measure(self.model, self.sample), tolerance="auto")

    def run(self) -> None:
        """Print the rows of every setting."""
        model = copy.deepcopy(self.model)
        for setting, switch in settings(model):
            switch(True)
            theirs = peak_of(model, self.sample)
            if theirs + RESERVE < self.frontier.smallest:
                print(f"| {self.name}, {setting}: peak {theirs / self.plain_peak:.1%}, below revolve's least")
            else:
                print_row((self.name, setting, f"{theirs / self.plain_peak:.1%}", *self.row(theirs, model)))
                print_row((self.name, "", "", *self.row((theirs + self.plain_peak) // 2)))
            switch(False)
        least = self.frontier.plan(self.frontier.smallest)
        shares = f"least budget {least.peak / self.plain_peak:.1%} ({least.ratio - 1:+.1%} planned)"
        print(f"| {self.name}: plain {self.plain_peak / 1e6:.1f} MB, {shares}")

    def row(self, budget: int, theirs: nn.Module | None = None) -> Iterator[str]:
        """Yield the library's time, if there is a setting, and peak and times of revolve."""
        plan = self.frontier.plan(budget + RESERVE)
        own = revolve.checkpointed(copy.deepcopy(self.model), plan)
        own_peak = peak_of(own, self.sample)
        models = {"plain": self.model, "own": own}
        if theirs is not None:
            models |= {"theirs": theirs, "again": copy.deepcopy(theirs)}
        times = alternate({name: partial(step, model, self.sample) for name, model in models.items()}, self.repeats)
        yield "" if theirs is None else f"{median_ratio(times, 'theirs', 'plain') - 1:+.1%}"
        yield f"{own_peak / self.plain_peak:.1%}"
        yield f"{median_ratio(times, 'own', 'plain') - 1:+.1%}"
        yield f"{plan.ratio - 1:+.1%}"
        yield "" if theirs is None else f"{median_ratio(times, 'own', 'theirs'):.3f}"
        yield "" if theirs is None else f"{median_ratio(times, 'again', 'theirs'):.3f}"


def alternate(steps: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of steps that take turns, in an order of its own each time, after two that do not count."""
    shuffled, times = random.Random(0), {name: [] for name in steps}
    for turn in range(-2, repeats):
        for name in shuffled.sample(list(steps), len(steps)):
            seconds = steps[name]()
            if turn >= 0:
                times[name].append(seconds)
    return times


def median_ratio(times: Mapping[str, list[float]], name: str, base: str) -> float:
    """Return the median over the turns of one time over another."""
    return median(one / other for one, other in zip(times[name], times[base], strict=True))


def print_row(cells: tuple[str, ...]) -> None:
    """Print one row of the table."""
    print("| " + " | ".join(cells) + " |", flush=True)


def keep_pages() -> None:
    """Let the process keep the memory that it frees.

    Raises
    ------
    OSError
        If the C library is another one than glibc.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not (libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1)):
        raise OSError(
            "cannot keep pages without glibc's mallopt; pass --glibc to measure with the C library's defaults"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--glibc", action="store_true", help="leave glibc's thresholds for handing pages back")
    options = parser.parse_args()
    if not options.glibc:
        keep_pages()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    print(f"torch {torch.__version__}, {platform.machine()}, {options.threads} thread(s), {options.repeats} repeats")
    titles = "model", "its own", "its peak", "its time", "revolve peak", "revolve time", "planned time", "time ratio"
    print_row((*titles, "its copy's ratio"))
    print_row(("---",) * 9)
    for name in options.models:
        Contest(name, options.repeats).run()


if __name__ == "__main__":
    main()
