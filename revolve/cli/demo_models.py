"""Networks to try the commands on, by name; torch is imported when one is built."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .exceptions import CommandError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DEMO_MODELS", "DemoModel", "find_demo_model"]


@dataclass(frozen=True, slots=True)
class DemoModel:
    """One network.

    Attributes
    ----------
    name
        Its name, and that of its builder in ``networks``.
    shape
        Shape of the batch it is shown with; float32.
    description
        For people.
    """

    name: str
    shape: tuple[int, ...]
    description: str

    def build(self, **sizes: Any) -> nn.Sequential:
        """Return the network, freshly initialised.

        Parameters
        ----------
        **sizes
            Passed on to the builder.
        """
        networks = import_module("revolve.cli.networks")
        model: nn.Sequential = getattr(networks, self.name)(**sizes)
        return model


DEMO_MODELS = {
    model.name: model
    for model in (
        DemoModel("resnet18", (8, 3, 224, 224), "ResNet-18: stem, 8 basic blocks, head"),
        DemoModel("resnet50", (8, 3, 224, 224), "ResNet-50: stem, 16 bottleneck blocks, head"),
        DemoModel("vgg16", (4, 3, 224, 224), "VGG-16 with batch normalisation and dropout, layer by layer"),
        DemoModel("mobilenetv2", (8, 3, 224, 224), "MobileNetV2: stem, 17 inverted residuals, head"),
        DemoModel("mlp", (2048, 256), "8 x (linear, layer norm, GELU, dropout)"),
        DemoModel("transformer", (8, 128, 256), "12 pre-norm encoder blocks with dropout"),
    )
}


def find_demo_model(name: str) -> DemoModel:
    """Return a demo model by its name.

    Raises
    ------
    CommandError
        If there is none; the message lists them.
    """
    if name not in DEMO_MODELS:
        known = ", ".join(DEMO_MODELS)
        raise CommandError(
            f"model {name!r} is unknown; write package.module:callable, or one of the demo models {known}"
        )
    return DEMO_MODELS[name]
