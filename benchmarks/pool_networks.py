"""Two networks of the model pool whose values leap over stages: a U-Net, and a DenseNet that passes lists."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

__all__ = ["DenseNet", "UNet"]


class DoubleConvolution(nn.Sequential):
    """Two convolutions with batch norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """A U-Net: every level of the way down is read again on the way up (Ronneberger et al., 2015)."""

    def __init__(self, channels: tuple[int, ...] = (8, 16, 24, 32)) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        self.first = DoubleConvolution(3, channels[0])
        self.down = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), DoubleConvolution(a, b)) for a, b in pairs)
        self.widen = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in reversed(pairs))
        self.up = nn.ModuleList(DoubleConvolution(2 * a, a) for a, _ in reversed(pairs))
        self.head = nn.Conv2d(channels[0], 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores of every pixel."""
        skips = [self.first(x)]
        for level in self.down:
            skips.append(level(skips[-1]))
        x = skips.pop()
        for widen, level in zip(self.widen, self.up, strict=True):
            x = level(torch.cat([skips.pop(), widen(x)], dim=1))
        return self.head(x)


class DenseLayer(nn.Module):
    """A layer that takes all values before it in its block."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, growth, 3, padding=1))

    def forward(self, values: list[torch.Tensor]) -> torch.Tensor:
        """Return new channels."""
        return self.layers(torch.cat(values, dim=1))


class DenseNet(nn.Module):
    """Dense blocks that pass lists of tensors (Huang et al., 2017)."""

    def __init__(self, growth: int = 8, blocks: tuple[int, ...] = (4, 4, 4)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks, self.transitions, channels = nn.ModuleList(), nn.ModuleList(), 16
        for size in blocks:
            self.blocks.append(nn.ModuleList(DenseLayer(channels + i * growth, growth) for i in range(size)))
            channels += size * growth
            self.transitions.append(nn.Sequential(nn.Conv2d(channels, channels // 2, 1), nn.AvgPool2d(2)))
            channels //= 2
        self.head = nn.Linear(channels, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores of four classes."""
        x = self.stem(x)
        for block, transition in zip(self.blocks, self.transitions, strict=True):
            values = [x]
            for layer in block:  # type: ignore[attr-defined]
                values.append(layer(values))
            x = transition(torch.cat(values, dim=1))
        return self.head(x.mean((2, 3)))
