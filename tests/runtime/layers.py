"""A pool of layers that keep eight rows of sixteen numbers, with everything that makes running again hard."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint


class Apply(nn.Module):
    """A function of a linear layer and the input."""

    def __init__(self, function):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.function = function

    def forward(self, x):
        return self.function(self.linear, x)


class MovingMean(nn.Module):
    """Centres by a moving mean in a buffer, changed in place or replaced by a new tensor."""

    def __init__(self, *, replace=False, lazy=False):
        super().__init__()
        self.replace = replace
        self.register_buffer("mean", None if lazy else torch.zeros(16))

    def forward(self, x):
        new = x.detach().float().mean(0)
        if self.mean is None:
            self.mean = new
        elif self.replace:
            self.mean = 0.9 * self.mean + 0.1 * new
        else:
            self.mean.mul_(0.9).add_(new, alpha=0.1)
        return (x - self.mean.clone()).sin()


class Codebook(nn.Module):
    """Vector quantisation with moving averages of codes, as in VQ-VAE, with the codes from the first batch."""

    def __init__(self, codes=5):
        super().__init__()
        self.register_buffer("codes", torch.zeros(codes, 16))
        self.register_buffer("sizes", torch.zeros(codes))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, x):
        rows = x.detach().float()
        if not self.started:
            self.codes.copy_(rows[torch.randperm(len(rows))[: len(self.codes)]])
            self.started.fill_(True)
        chosen = torch.cdist(rows, self.codes).argmin(1)
        quantised = self.codes[chosen]
        if self.training:
            one_hot = functional.one_hot(chosen, len(self.codes)).float()
            self.sizes.mul_(0.9).add_(one_hot.sum(0), alpha=0.1)
            self.codes.mul_(0.9).add_(one_hot.t() @ rows, alpha=0.1)
        return x + (quantised - x).detach() + 0.1 * x.sin()


class OwnGenerator(nn.Module):
    """Draws noise from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(7)

    def forward(self, x):
        return x.tanh() * torch.rand(x.shape, generator=self.generator)


class Rejection(nn.Module):
    """Draws until it likes the number: how many random numbers depends on the data."""

    def forward(self, x):
        limit = x.detach().float().sigmoid().mean()
        noise = torch.rand(())
        while noise > limit:
            noise = torch.rand(())
        return (x * noise).sin()


class StochasticDepth(nn.Module):
    """Leaves out its body now and then."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw
        self.body = nn.Linear(16, 16)

    def forward(self, x):
        return x * 0.5 if self.training and self.draw() < 0.5 else x + self.body(x).tanh()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(16, 48)

    def forward(self, x):
        query, key, value = self.project(x).view(1, 8, 3, 2, 8).permute(2, 0, 3, 1, 4)
        dropout = 0.2 if self.training else 0.0
        return functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout).reshape(8, 16)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.3, batch_first=True)

    def forward(self, x):
        return self.lstm(x.float().reshape(8, 4, 4))[0].flatten(1)


class Folded(nn.Module):
    """A module that works on images, between two views."""

    def __init__(self, *body):
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x):
        return self.body(x.reshape(8, 2, 2, 4)).flatten(1)


class Lora(nn.Module):
    """A frozen layer with a trained correction of low rank."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.down, self.up = nn.Linear(16, 2, bias=False), nn.Linear(2, 16, bias=False)

    def forward(self, x):
        return (self.frozen(x) + self.up(self.down(x))).tanh()


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).t()


class Doubled(nn.Module):
    """Calls its layer twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(0.2))

    def forward(self, x):
        return self.layer(self.layer(x).relu())


class Inner(nn.Module):
    """torch's own checkpoint inside a stage."""

    def __init__(self, *, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.body = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.3), nn.GELU())

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


def without_gradient(linear: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = linear(x).sigmoid()
    with torch.set_grad_enabled(x.requires_grad):
        return x * scale


def own_autocast(linear: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = linear(x)
    return y.float().sin()


def symmetric() -> nn.Module:
    layer = nn.Linear(16, 16)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


LAYERS = {
    "linear": lambda: nn.Linear(16, 16),
    "relu in place": lambda: Apply(lambda linear, x: functional.relu_(linear(x))),
    "in place": lambda: Apply(lambda linear, x: linear(x).mul_(2).add_(1).tanh_()),
    "gelu": nn.GELU,
    "softmax": lambda: nn.Softmax(-1),
    "dropout": lambda: nn.Dropout(0.4),
    "alpha dropout": lambda: nn.AlphaDropout(0.3),
    "rrelu": nn.RReLU,
    "layer norm": lambda: nn.LayerNorm(16),
    "batch norm": lambda: nn.BatchNorm1d(16),
    "cumulative batch norm": lambda: nn.BatchNorm1d(16, momentum=None),
    "batch norm without statistics": lambda: nn.BatchNorm1d(16, track_running_stats=False),
    "synchronised batch norm": lambda: nn.SyncBatchNorm(16),
    "instance norm": lambda: Folded(nn.InstanceNorm2d(2, affine=True, track_running_stats=True)),
    "convolution": lambda: Folded(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 2, 1)),
    "pooling": lambda: Folded(nn.Conv2d(2, 8, 1), nn.MaxPool2d(2)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(16, 16)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(16, 16)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(16, 16)),
    "parametrised": symmetric,
    "moving mean": MovingMean,
    "replaced buffer": lambda: MovingMean(replace=True),
    "lazy buffer": lambda: MovingMean(replace=True, lazy=True),
    "codebook": Codebook,
    "own generator": OwnGenerator,
    "rejection": Rejection,
    "stochastic depth": lambda: StochasticDepth(lambda: torch.rand(())),
    "stochastic depth by Python": lambda: StochasticDepth(random.random),
    "stochastic depth by NumPy": lambda: StochasticDepth(np.random.uniform),
    "attention": Attention,
    "recurrent": Recurrent,
    "low rank": Lora,
    "frozen": lambda: nn.Linear(16, 16).requires_grad_(False),
    "twice": Doubled,
    "checkpoint": lambda: Inner(reentrant=False),
    "reentrant checkpoint": lambda: Inner(reentrant=True),
    "without gradient": lambda: Apply(without_gradient),
    "own autocast": lambda: Apply(own_autocast),
    "detached branch": lambda: Apply(lambda linear, x: linear(x).tanh() + linear(x).detach().sin()),
    "transposed": lambda: Apply(lambda linear, x: linear(x).t().contiguous().sin().t() * 1.5),
}
# Layers without a second derivative, or that torch's engine allows under backward() alone.
FIRST_ORDER = {"reentrant checkpoint"}


def build(kinds: list[str]) -> nn.Sequential:
    """Return fresh layers of some kinds, the first and last ones linear; the same call gives the same weights."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    made = {kind: LAYERS[kind.removeprefix("tied ")]() for kind in dict.fromkeys(kinds) if kind.startswith("tied ")}
    body = [made[kind] if kind in made else LAYERS[kind]() for kind in kinds]
    return nn.Sequential(nn.Linear(16, 16), *body, nn.Linear(16, 16))
