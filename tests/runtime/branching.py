"""Networks that are no nn.Sequential: branches, side inputs, shared modules, a forward of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class ResidualNet(nn.Module):
    """As torchvision writes it: in-place ReLU, blocks in a Sequential, flatten between pool and head."""

    def __init__(self, width: int = 12, classes: int = 5) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.layers = nn.Sequential(*(ResidualBlock(width) for _ in range(3)))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        x = self.layers(x)
        return self.fc(torch.flatten(self.pool(x), 1))


class DenseLayer(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, growth, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, functional.dropout(self.conv(self.norm(x).relu()), 0.2, self.training)], 1)


class DenseNet(nn.Module):
    def __init__(self, growth: int = 6, layers: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, growth, 3, padding=1)
        self.block = nn.Sequential(*(DenseLayer(growth * (i + 1), growth) for i in range(layers)))
        self.norm, self.head = nn.BatchNorm2d(growth * (layers + 1)), nn.Linear(growth * (layers + 1), 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.block(self.stem(x)))
        return self.head(functional.relu(x).mean((2, 3)))


class Attention(nn.Module):
    """A block that takes a mask and a table beside its input, and gives a tuple."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.project, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor, *, mask: Tensor, table: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        query, key, value = self.project(self.norm(x) * table["scale"]).chunk(3, -1)
        weights = (query @ key.mT).masked_fill(mask, -1e9).softmax(-1)
        return x + self.dropout(self.out(weights @ value)), weights


class Transformer(nn.Module):
    """Blocks with side inputs, noise drawn between embedding and blocks, and a loss of its own."""

    def __init__(self, width: int = 24, depth: int = 4, words: int = 17) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.scale = nn.Parameter(torch.ones(width))
        self.blocks = nn.ModuleList(Attention(width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words: Tensor, *, skip: int | None = None, stop: int | None = None) -> dict[str, Tensor]:
        x = functional.dropout(self.embed(words), 0.1, self.training)
        mask = torch.ones(words.shape[1], words.shape[1], dtype=torch.bool).triu(1)
        table = {"scale": self.scale * 1.5}
        entropy = x.new_zeros(())
        for index, block in enumerate(self.blocks[:stop]):
            if index != skip:
                x, weights = block(x, mask=mask, table=table)
                entropy = entropy - (weights * (weights + 1e-9).log()).mean()
        return {"logits": self.head(self.norm(x)), "entropy": entropy}


class Cross(nn.Module):
    """Takes states of an encoder that require a gradient."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, states: Tensor) -> Tensor:
        return x + (self.left(x).tanh() * self.right(states).sigmoid())


class EncoderDecoder(nn.Module):
    def __init__(self, width: int = 24, depth: int = 3) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.start = nn.Linear(width, width)
        self.decode = nn.ModuleList(Cross(width) for _ in range(depth))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        states = self.encode(source) * 0.5
        x = self.start(target)
        for layer in self.decode:
            x = layer(x, states)
        return x


class Shared(nn.Module):
    """Calls one layer again and again."""

    def __init__(self, width: int = 24, times: int = 4) -> None:
        super().__init__()
        self.first, self.layer, self.times = nn.Linear(width, width), Cross(width), times
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        side = x * 2
        x = self.first(x)
        for _ in range(self.times):
            x = self.layer(x, side)
        return self.last(x)


class UNet(nn.Module):
    """Keeps inner results for later."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, padding=1)
        self.act, self.pool, self.up = nn.GELU(), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.last = nn.Conv2d(3 * width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.act(self.down1(x))
        b = self.act(self.middle(self.act(self.down2(self.pool(a)))))
        return self.last(torch.cat([a, self.up(b)], 1))


class DenseLists(nn.Module):
    """A dense block that keeps a list of features and concatenates them for every layer."""

    def __init__(self, growth: int = 6, layers: int = 5) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, growth, 3, padding=1), nn.Sigmoid()
        self.layers = nn.ModuleList(nn.Conv2d(growth * (i + 1), growth, 3, padding=1) for i in range(layers))
        self.norms = nn.ModuleList(nn.BatchNorm2d(growth * (i + 1)) for i in range(layers))
        self.head = nn.Conv2d(growth * (layers + 1), 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            features.append(functional.dropout(layer(self.act(norm(torch.cat(features, 1)))), 0.1, self.training))
        return self.head(torch.cat(features, 1))


class Branches(nn.Module):
    """Branches beside one another that are fused again and again, as in an HRNet; the fusing layers are few bytes."""

    def __init__(self, width: int = 8, times: int = 2) -> None:
        super().__init__()
        self.start, self.down = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, 2, 1)
        branch = lambda: nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.GELU())  # noqa: E731
        self.high = nn.ModuleList(branch() for _ in range(times))
        self.low = nn.ModuleList(branch() for _ in range(times))
        self.mix = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(times))
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        high = self.start(x)
        low = self.down(high)
        for upper, lower, mix in zip(self.high, self.low, self.mix, strict=True):
            high, low = upper(high), lower(low)
            high, low = high + self.up(mix(low)), low + functional.avg_pool2d(high, 2)
        return high, low


class Shortcuts(nn.Module):
    """Residual blocks whose shortcut has a layer of its own, called last, and which work in place."""

    def __init__(self, width: int = 8, blocks: int = 3) -> None:
        super().__init__()
        self.start = nn.Conv2d(3, width, 3, padding=1)
        parts = lambda: nn.ModuleList(nn.Conv2d(width, width, size, padding=size // 2) for size in (3, 3, 1))  # noqa: E731
        self.blocks = nn.ModuleList(parts() for _ in range(blocks))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2 * blocks))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for number, (first, second, shortcut) in enumerate(self.blocks):
            y = second(self.act(self.norms[2 * number](first(x))))
            y += self.norms[2 * number + 1](shortcut(x))
            x = self.act(y)
        return x


class Layers(nn.Module):
    """Layers, and functions of the model and of what goes on before each."""

    def __init__(self, body, before, depth=3):
        super().__init__()
        self.layers = nn.ModuleList(body() for _ in range(depth))
        self.before = before

    def forward(self, x, side=None):
        for index, layer in enumerate(self.layers):
            x = layer(x, *self.before(index, side))
        return x


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def words(*shape: int) -> Tensor:
    return torch.randint(0, 17, shape, generator=torch.Generator().manual_seed(3))


NETWORKS = {
    "residual": (ResidualNet, lambda: normal(4, 3, 24, 24)),
    "dense": (DenseNet, lambda: normal(4, 3, 24, 24)),
    "transformer": (Transformer, lambda: {"words": words(4, 32)}),
    "encoder and decoder": (EncoderDecoder, lambda: (normal(256, 24), normal(256, 24) * 0.5)),
    "shared": (Shared, lambda: normal(256, 24)),
    "u-net": (UNet, lambda: normal(4, 3, 24, 24)),
    "dense lists": (DenseLists, lambda: normal(4, 3, 24, 24)),
    "branches": (Branches, lambda: normal(4, 3, 24, 24)),
    "shortcuts": (Shortcuts, lambda: normal(4, 3, 24, 24)),
}


def make(name: str) -> tuple[nn.Module, object]:
    """Return a fresh network and a sample for it; the same call gives the same weights."""
    torch.manual_seed(0)
    build, sample = NETWORKS[name]
    return build(), sample()
