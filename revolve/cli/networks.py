"""The demo networks, each an nn.Sequential of its stages, weights at random.

References
----------
He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016, table 1 (strides in the
3x3 convolutions, as widely trained); Simonyan, Zisserman: Very Deep Convolutional Networks, ICLR 2015,
table 1, column D, with batch normalisation; Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2, CVPR 2018,
table 2; Vaswani et al.: Attention Is All You Need, NeurIPS 2017,
encoder, with layer norm first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["mlp", "mobilenetv2", "resnet18", "resnet50", "transformer", "vgg16"]


class Residual(nn.Module):
    """A residual block: ``relu(body(x) + shortcut(x))``.

    Parameters
    ----------
    body
        The residual function.
    shortcut
        Fits the input to the body's output; the identity where they fit already.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        out: Tensor = self.body(x)
        out += self.shortcut(x)
        result: Tensor = self.relu(out)
        return result


def convolve(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution without bias and its batch normalisation."""
    convolution = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


def basic_block(inputs: int, width: int, stride: int) -> Residual:
    """Return two 3x3 convolutions around a shortcut."""
    body = [*convolve(inputs, width, 3, stride), nn.ReLU(inplace=True), *convolve(width, width, 3)]
    return Residual(nn.Sequential(*body), make_shortcut(inputs, width, stride))


def bottleneck(inputs: int, width: int, stride: int) -> Residual:
    """Return 1x1, 3x3 and widening 1x1 convolutions around a shortcut."""
    body = [
        *convolve(inputs, width, 1),
        nn.ReLU(inplace=True),
        *convolve(width, width, 3, stride),
        nn.ReLU(inplace=True),
        *convolve(width, 4 * width, 1),
    ]
    return Residual(nn.Sequential(*body), make_shortcut(inputs, 4 * width, stride))


def make_shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Return a 1x1 convolution where the sizes differ, the identity elsewhere."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(*convolve(inputs, outputs, 1, stride))


def residual_network(depths: Sequence[int], *, deep: bool, classes: int) -> nn.Sequential:
    """Return stem, blocks and head; images of any size."""
    stages = dict(zip(("conv1", "bn1"), convolve(3, 64, 7, 2), strict=True))
    stages |= {"relu": nn.ReLU(inplace=True), "maxpool": nn.MaxPool2d(3, stride=2, padding=1)}
    block, expansion = (bottleneck, 4) if deep else (basic_block, 1)
    channels = 64
    for level, depth in enumerate(depths):
        width = 64 << level
        for index in range(depth):
            stages[f"layer{level + 1}_{index}"] = block(channels, width, 2 if level and not index else 1)
            channels = width * expansion
    stages |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(channels, classes)}
    return nn.Sequential(OrderedDict(stages))


def resnet18(classes: int = 1000) -> nn.Sequential:
    """Return ResNet-18: 11,689,512 parameters with 1000 classes."""
    return residual_network((2, 2, 2, 2), deep=False, classes=classes)


def resnet50(classes: int = 1000) -> nn.Sequential:
    """Return ResNet-50: 25,557,032 parameters with 1000 classes."""
    return residual_network((3, 4, 6, 3), deep=True, classes=classes)


def vgg16(classes: int = 1000, width: int = 4096) -> nn.Sequential:
    """Return VGG-16 with batch normalisation and dropout, every layer a child; 138,365,992 parameters.

    Parameters
    ----------
    classes
        Outputs.
    width
        Features of the two hidden linear layers.
    """
    stages: dict[str, nn.Module] = {}
    channels = 3
    for level, (outputs, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
        for index in range(1, depth + 1):
            stages[f"conv{level}_{index}"] = nn.Conv2d(channels, outputs, 3, padding=1)
            stages[f"bn{level}_{index}"] = nn.BatchNorm2d(outputs)
            stages[f"relu{level}_{index}"] = nn.ReLU(inplace=True)
            channels = outputs
        stages[f"pool{level}"] = nn.MaxPool2d(2)
    stages |= {"avgpool": nn.AdaptiveAvgPool2d(7), "flatten": nn.Flatten()}
    for name, inputs in (("fc6", 512 * 49), ("fc7", width)):
        stages |= {name: nn.Linear(inputs, width), f"{name}_relu": nn.ReLU(inplace=True), f"{name}_drop": nn.Dropout()}
    stages["fc8"] = nn.Linear(width, classes)
    return nn.Sequential(OrderedDict(stages))


class Shortcut(nn.Module):
    """A block with a linear end: ``x + body(x)``.

    Parameters
    ----------
    body
        The residual function, its output of the input's shape.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        result: Tensor = x + self.body(x)
        return result


def inverted_residual(inputs: int, outputs: int, expansion: int, stride: int) -> nn.Module:
    """Return widening 1x1, 3x3 depthwise and narrowing 1x1 convolutions, around a shortcut where the shapes fit."""
    width = inputs * expansion
    # Not in place: ReLU6 saves its input, and would have to copy it.
    widening = [*convolve(inputs, width, 1), nn.ReLU6()] if expansion > 1 else []
    depthwise = [*convolve(width, width, 3, stride, groups=width), nn.ReLU6()]
    body = nn.Sequential(*widening, *depthwise, *convolve(width, outputs, 1))
    return Shortcut(body) if stride == 1 and inputs == outputs else body


def mobilenetv2(classes: int = 1000) -> nn.Sequential:
    """Return MobileNetV2, layer by layer but for blocks with a shortcut: 3,504,872 parameters with 1000 classes."""
    stages = dict(zip(("conv1", "bn1"), convolve(3, 32, 3, 2), strict=True)) | {"relu1": nn.ReLU6()}
    channels = 32
    plan = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for level, (expansion, outputs, depth, stride) in enumerate(plan, 1):
        for index in range(depth):
            block = inverted_residual(channels, outputs, expansion, 1 if index else stride)
            stages[f"layer{level}_{index}"] = block
            channels = outputs
    stages |= dict(zip(("conv2", "bn2"), convolve(channels, 1280, 1), strict=True)) | {"relu2": nn.ReLU6()}
    stages |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(1280, classes)}
    return nn.Sequential(OrderedDict(stages))


def mlp(features: int = 256, width: int = 256, depth: int = 8, classes: int = 10) -> nn.Sequential:
    """Return a multi-layer perceptron with layer norm, GELU and dropout, every layer a child.

    Parameters
    ----------
    features, width, classes
        Inputs, hidden features, outputs.
    depth
        Number of hidden layers.
    """
    stages: dict[str, nn.Module] = {}
    for index in range(1, depth + 1):
        stages[f"linear{index}"] = nn.Linear(features if index == 1 else width, width)
        stages[f"norm{index}"] = nn.LayerNorm(width)
        stages[f"gelu{index}"] = nn.GELU()
        stages[f"drop{index}"] = nn.Dropout(0.1)
    stages["head"] = nn.Linear(width if depth else features, classes)
    return nn.Sequential(OrderedDict(stages))


class Block(nn.Module):
    """A pre-norm encoder block: attention, then two linear layers, each around a shortcut.

    Parameters
    ----------
    features
        Size of a token.
    heads
        Attention heads; a divisor of ``features``.
    dropout
        Probability with which attention weights and residual values are dropped.
    """

    def __init__(self, features: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm = nn.LayerNorm(features)
        self.project_in = nn.Linear(features, 3 * features)
        self.project_out = nn.Sequential(nn.Linear(features, features), nn.Dropout(dropout))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(features),
            nn.Linear(features, 4 * features),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * features, features),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on (batch, tokens, features)."""
        batch, tokens, features = x.shape
        parts = self.project_in(self.norm(x)).view(batch, tokens, 3, self.heads, features // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        probability = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=probability)
        x = x + self.project_out(mixed.transpose(1, 2).reshape(batch, tokens, features))
        result: Tensor = x + self.feed_forward(x)
        return result


def transformer(
    features: int = 256, depth: int = 12, heads: int = 8, dropout: float = 0.1, outputs: int = 64
) -> nn.Sequential:
    """Return an encoder of pre-norm blocks, a final norm and a linear head.

    Parameters
    ----------
    features
        Size of a token.
    depth
        Number of blocks.
    heads
        Attention heads of each block.
    dropout
        Dropout probability everywhere.
    outputs
        Outputs for each token.
    """
    if features % heads:
        raise ValueError(f"features={features} does not split into heads={heads}")
    stages: dict[str, nn.Module] = {f"block{index}": Block(features, heads, dropout) for index in range(1, depth + 1)}
    stages |= {"norm": nn.LayerNorm(features), "head": nn.Linear(features, outputs)}
    return nn.Sequential(OrderedDict(stages))
