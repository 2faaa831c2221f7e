"""Magnitude pruning of activations while a model trains: a ReLU that gives more zeros, for the bitmap format.

After BitTrain (Hosny, Neseem, Reda: Sparse Bitmap Compression for Memory-Efficient Training on the Edge, SEC 2021,
arXiv:2110.15362), which prunes activations during training to make its bitmaps smaller. The threshold here is the
quantile of an evenly spread sample of at most 4096 elements: no random numbers and no state, so that a stage that
is run again gives the same bits.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["PrunedReLU", "prune_relus"]

Model = TypeVar("Model", bound=nn.Module)

SAMPLE = 4096  # elements: the share of zeros is met within 1 to 2 % of the elements


def sample_of(x: Tensor) -> Tensor:
    """Return at most ``SAMPLE`` elements, evenly spread over the row-major order whatever the memory's."""
    if x.numel() <= SAMPLE:
        return x.reshape(-1)
    step = -(-x.numel() // SAMPLE)
    while math.gcd(step, x.numel()) > 1:  # else the sample could be a few columns of every picture
        step += 1
    places = torch.arange(0, x.numel(), step, device=x.device)
    return x[torch.unravel_index(places, x.shape)]


def prune(x: Tensor, share: float, ceiling: float) -> Tensor:
    """Return the ReLU of x, at most ``ceiling``, without its smallest positive elements."""
    output = x.relu().clamp_(max=ceiling)
    sample = sample_of(x)
    count = int(share * sample.numel())
    if count:
        threshold = sample.kthvalue(count + 1).values  # below it, not at it: what is all alike is not lost
        output.masked_fill_(x < threshold, 0)
    return output


class PruneFunction(torch.autograd.Function):
    """Saves its output alone, as ReLU does; the gradient passes where that is neither 0 nor the ceiling."""

    @staticmethod
    def forward(x: Tensor, share: float, ceiling: float) -> Tensor:
        """Prune."""
        return prune(x, share, ceiling)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        """Save the output."""
        ctx.ceiling = inputs[2]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of x."""
        (output,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradients[0], output, 0, ctx.ceiling), None, None


class PrunedReLU(nn.Module):
    """A ReLU that, in training, also sets its smallest positive outputs to zero.

    About ``share`` of the elements of a whole batch are zero then, or more where the ReLU alone gives more. In
    eval mode it is the plain ReLU: nothing is kept for a backward, so zeros gain nothing there.

    Parameters
    ----------
    share
        Of the elements, in [0, 1); 0 is a plain ReLU.
    ceiling
        Largest output: 6 for ReLU6, whose gradients it equals at a share of 0, though it saves its output
        (sparse, and shared with the next layer), where torch's saves its input.

    Raises
    ------
    ValueError
        If the share is not in [0, 1), or the ceiling is not positive.

    Examples
    --------
    >>> PrunedReLU(0.5)(torch.tensor([-1.0, 1.0, 2.0, 3.0]))
    tensor([0., 0., 2., 3.])
    """

    def __init__(self, share: float, ceiling: float = math.inf) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise ValueError(
                f"share={share!r} of the elements cannot be made zero; pass a number in [0, 1), such as 0.5"
            )
        if not ceiling > 0:
            raise ValueError(f"ceiling={ceiling!r} would leave no output but zero; pass a positive number, 6 for ReLU6")
        self.share = share
        self.ceiling = ceiling

    def forward(self, x: Tensor) -> Tensor:
        """Return the pruned ReLU of a tensor of any shape."""
        share = self.share if self.training else 0.0
        result: Tensor = PruneFunction.apply(x, share, self.ceiling)  # type: ignore[no-untyped-call]
        return result

    def extra_repr(self) -> str:
        """Describe the parameters."""
        return f"share={self.share}" + ("" if self.ceiling == math.inf else f", ceiling={self.ceiling}")


def prune_relus(model: Model, share: float) -> Model:
    """Put a :class:`PrunedReLU` in the place of every ``nn.ReLU`` and ``nn.ReLU6`` inside a model.

    Parameters
    ----------
    model
        Changed in place; measure it afterwards, since other tensors are saved then.
    share
        Of the elements that are to be zero, in [0, 1).

    Returns
    -------
    Model
        The same object.

    Raises
    ------
    ValueError
        If the share is not in [0, 1), or there is nothing to replace.
    """
    ceilings: dict[type, float] = {nn.ReLU: math.inf, nn.ReLU6: 6.0}
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and type(child) in ceilings
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} holds no nn.ReLU or nn.ReLU6 that could be replaced")
    for parent, name, child in found:
        parent._modules[name] = PrunedReLU(share, ceilings[type(child)]).train(child.training)
    return model
