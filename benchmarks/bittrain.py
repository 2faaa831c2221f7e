"""BitTrain's experiment: saved tensors as bitmaps, with natural and with pruned zeros, beside optimal schedules.

Networks are trained for some steps on crops of scikit-image's pictures, then take a few more with their own ReLUs,
and with ReLUs that prune to 50, 70 and 80 % zeros. *BitTrain's way* saves every stage in the bitmap format and runs
nothing twice; revolve's solver may save, store and run again as it likes. Peaks are the allocator's; times are medians
of CPU time over a plain step's, alternating with them. Gradients exist before each step, so they are in no peak.

    python benchmarks/bittrain.py [--models resnet18 mobilenetv2 vgg16] [--steps 20] [--repeats 3]
"""

from __future__ import annotations

import argparse
import copy
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import revolve
from revolve import Chain, Plan, Report
from revolve.cli.demo_models import DEMO_MODELS
from revolve.storage.codecs import codec_named
from revolve.storage.pruning import PrunedReLU, prune_relus

PICTURES = ("astronaut", "cat", "coffee", "rocket", "immunohistochemistry", "retina", "hubble_deep_field", "colorwheel")
SIDE = 96
# Batches for which activations, not the gradient of the largest weight, make the peak.
MODELS: dict[str, tuple[int, dict[str, int]]] = {
    "resnet18": (16, {"classes": 10}),
    "mobilenetv2": (16, {"classes": 10}),
    "vgg16": (4, {"classes": 10, "width": 256}),
}
SHARES = (None, 0.5, 0.7, 0.8)
RELUS = (nn.ReLU, nn.ReLU6, PrunedReLU)
Batches = Callable[[int], tuple[Tensor, Tensor]]


@cache
def load_picture(name: str) -> Tensor:
    """Return a colour photograph as (3, height, width), between -1 and 1."""
    from skimage import data

    return torch.from_numpy(getattr(data, name)().copy()).permute(2, 0, 1)[:3] / 127.5 - 1


def crop_pictures(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return random crops, and which photograph each is from."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(PICTURES), (batch,), generator=generator)
    crops = []
    for label in labels.tolist():
        picture = load_picture(PICTURES[label])
        top, left = (int(torch.randint(n - SIDE + 1, (), generator=generator)) for n in picture.shape[1:])
        crops.append(picture[:, top : top + SIDE, left : left + SIDE])
    return torch.stack(crops), labels


def train(model: nn.Module, batches: Batches, seeds: range) -> list[float]:
    """Take a step of gradient descent with each batch; return the losses. Leaves gradients of zero."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003)
    losses = []
    for seed in seeds:
        pictures, labels = batches(seed)
        loss = functional.cross_entropy(model(pictures), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        losses.append(loss.item())
    return losses


@dataclass
class Saved:
    """What one plain forward saves for its backward, each storage once; bytes.

    Attributes
    ----------
    zeros
        Share of zeros in what ReLUs return.
    dense, bitmap
        All storages, and their forms.
    sources
        Dense bytes by what the storage is.
    """

    zeros: float
    dense: int
    bitmap: int
    sources: dict[str, int]


@contextmanager
def watched(model: nn.Module, watch: Callable[[nn.Module, Tensor, Tensor], None]) -> Iterator[None]:
    """Tell a function of the input and output of every layer."""
    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    handles = [leaf.register_forward_hook(lambda m, args, out: watch(m, args[0], out)) for leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def inspect_saved(model: nn.Module, pictures: Tensor) -> Saved:
    """Run a copy of a model forward, and look at what autograd keeps."""
    model = copy.deepcopy(model)
    kept: dict[int, Tensor] = {}
    kinds: dict[int, str] = {}
    zeros = elements = 0

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.detach()  # alive, so that no two have one identity
        return tensor

    def watch(module: nn.Module, value: Tensor, output: Tensor) -> None:
        nonlocal zeros, elements
        if isinstance(module, RELUS):
            zeros += int((output == 0).sum())
            elements += output.numel()
            kinds[output.untyped_storage()._cdata] = "ReLU outputs"
            if isinstance(module, nn.ReLU6):
                kinds[value.untyped_storage()._cdata] = "ReLU6 inputs"
        if isinstance(module, nn.BatchNorm2d):
            kinds.setdefault(value.untyped_storage()._cdata, "BatchNorm inputs")

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), watched(model, watch):
        output = model(pictures)
    for tensor in (*model.parameters(), *model.buffers(), pictures):
        kept.pop(tensor.untyped_storage()._cdata, None)
    sources = dict.fromkeys(("ReLU outputs", "BatchNorm inputs", "ReLU6 inputs", "other"), 0)
    bitmap = 0
    for key, tensor in kept.items():
        sources[kinds.get(key, "other")] += tensor.untyped_storage().nbytes()
        bitmap += bytes_in_bitmap(tensor)
    del output
    return Saved(zeros / elements, sum(sources.values()), bitmap, sources)


def bytes_in_bitmap(tensor: Tensor) -> int:
    """Return the bytes of a tensor's storage in the bitmap format, its dense ones where those are not more."""
    storage = tensor.untyped_storage()
    flat = tensor.as_strided((storage.nbytes() // tensor.element_size(),), (1,), 0)
    form = codec_named("bitmap").encode(flat, lambda _: None)
    return storage.nbytes() if form is None else form.nbytes


def in_bitmap(chain: Chain) -> Plan:
    """Return BitTrain's way: every stage saved in the bitmap format, nothing run again."""
    forward = [["save", index, "bitmap"] for index in range(len(chain))]
    backward = [["backward", index] for index in reversed(range(len(chain)))]
    return Plan.from_actions(chain, [*forward, ["loss"], *backward], "in bitmap")


@dataclass
class Result:
    """What was found for one model with one kind of ReLU.

    Attributes
    ----------
    saved
        What a plain forward saves.
    bittrain, least, same
        Reports of steps: all in bitmap; the solver's least peak; its fastest within the first one's peak.
    equal
        Whether losses, parameters and buffers after some steps in bitmap are those of plain ones.
    loss
        The last of these losses.
    """

    saved: Saved
    bittrain: Report
    least: Report
    same: Report
    equal: bool
    loss: float


def equal_training(model: nn.Module, plan: Plan, batches: Batches, seeds: range) -> tuple[bool, float]:
    """Train a plain and a planned copy; say whether every bit is equal, and the last loss."""
    plain, planned = copy.deepcopy(model), revolve.checkpointed(copy.deepcopy(model), plan)
    losses = [train(each, batches, seeds) for each in (plain, planned)]
    states = zip(plain.state_dict().values(), planned.state_dict().values(), strict=True)
    return losses[0] == losses[1] and all(torch.equal(a, b) for a, b in states), losses[0][-1]


def examine(model: nn.Sequential, batches: Batches, seeds: range, repeats: int) -> Result:
    """Measure one model with its ReLUs; it has gradients."""
    pictures, labels = batches(seeds.start)

    def loss(output: Any) -> Tensor:
        return functional.cross_entropy(output, labels)

    def verify(plan: Plan, repeats: int) -> Report:
        planned = revolve.checkpointed(model, plan)
        try:
            return revolve.verify(planned, pictures, loss, repeats=repeats)
        finally:
            revolve.restore(model)

    chain = revolve.measure(model, pictures, loss, formats=("bitmap",))
    frontier = revolve.solve(chain, ("bitmap",))
    bittrain = verify(in_bitmap(chain), repeats)
    least = verify(frontier.plan(frontier.smallest), 1)
    same = verify(frontier.plan(bittrain.measured_peak), repeats)
    equal, last = equal_training(model, in_bitmap(chain), batches, seeds)
    return Result(inspect_saved(model, pictures), bittrain, least, same, equal, last)


HEADINGS = (
    *("model", "ReLUs", "zeros", "saved, MB", "in bitmap", "plain peak, MB", "BitTrain's way, peak", "time"),
    *("revolve at that peak, time", "revolve's least peak", "time", "5 steps equal", "loss"),
)


def describe(name: str, share: float | None, found: Result) -> tuple[str, ...]:
    """Return a row of the table."""
    plain, saved = found.bittrain.plain_peak, found.saved
    reports = (found.bittrain, found.least, found.same)
    ratios = [f"{report.measured_time / report.plain_time:.2f}" for report in reports]
    return (
        name,
        "its own" if share is None else f"pruned, {share:.0%}",
        f"{saved.zeros:.1%}",
        f"{saved.dense / 1e6:.1f}",
        f"{saved.bitmap / saved.dense - 1:+.1%}",
        f"{plain / 1e6:.1f}",
        f"{found.bittrain.measured_peak / plain - 1:+.1%}",
        ratios[0],
        ratios[2],
        f"{found.least.measured_peak / plain - 1:+.1%}",
        ratios[1],
        "yes" if found.equal and all(report.exact and report.kept for report in reports) else "**no**",
        f"{found.loss:.3f}",
    )


def run_model(name: str, steps: int, repeats: int) -> Iterator[tuple[float | None, Result]]:
    """Train a network, and yield what is found with each kind of ReLU in it."""
    batch, sizes = MODELS[name]

    def batches(seed: int) -> tuple[Tensor, Tensor]:
        return crop_pictures(batch, seed)

    torch.manual_seed(0)
    trained = DEMO_MODELS[name].build(**sizes)
    train(trained, batches, range(steps))
    for share in SHARES:
        model = copy.deepcopy(trained)
        if share is not None:
            prune_relus(model, share)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        yield share, examine(model, batches, range(steps, steps + 5), repeats)


def print_row(*cells: str) -> None:
    """Print one row of a Markdown table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--steps", type=int, default=20, help="of training before anything is measured")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each kind")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread, {options.steps} steps of training\n")
    print_row(*HEADINGS)
    print_row(*["---"] * len(HEADINGS))
    sources = {}
    for name in options.models:
        for share, found in run_model(name, options.steps, options.repeats):
            print_row(*describe(name, share, found))
            if share is None or name == "mobilenetv2":
                sources[name, share] = found.saved
    print("\nWhat the saved bytes are, dense:\n")
    print_row("model", "ReLUs", *next(iter(sources.values())).sources)
    print_row(*["---"] * 6)
    for (name, share), saved in sources.items():
        cells = (f"{part / saved.dense:.1%}" for part in saved.sources.values())
        print_row(name, "its own" if share is None else f"pruned, {share:.0%}", *cells)


if __name__ == "__main__":
    main()
