"""Models of timm inside a byte budget, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from revolve.runtime.instrumentation import restore
from revolve.runtime.stages import check_model

from .conflicts import refuse_own_checkpointing
from .first_call import plan_module

__all__ = ["checkpointed", "restore"]

Model = TypeVar("Model", bound=nn.Module)


def checkpointed(
    model: Model,
    images: torch.Tensor,
    budget: int | str,
    *,
    loss: Callable[[Any], torch.Tensor] | None = None,
    formats: Sequence[str] = (),
) -> Model:
    """Let a model of timm train inside a byte budget; every bit is that of plain training.

    Parameters
    ----------
    model
        A model from ``timm.create_model``, also with ``features_only=True``, in training mode.
    images
        A batch as in training, on the model's device: of the largest size that there will be.
    budget
        Bytes, or a string as ``"2GiB"`` or ``"80%"`` of what the device has free: what a step may add to memory.
    loss
        Maps the output to a scalar; default half its mean square. What the loss itself takes is in the budget.
    formats
        Storage formats that checkpoints and saved tensors may be kept in, besides the dense one: ``"bitmap"``,
        ``"disk"``, ``"host"`` ... (docs/storage.md). With lossy ones gradients are not those of plain training.

    Returns
    -------
    nn.Module
        The same object; :func:`restore` takes the plan back.

    Raises
    ------
    InfeasibleBudget
        If the budget is below the least feasible one, which the message names.
    ModelError
        If ``set_grad_checkpointing`` is switched on, or the model has no chain of stages.
    MeasurementError
        If the model cannot be run with the images.

    Examples
    --------
    >>> import timm, torch  # doctest: +SKIP
    >>> model = timm.create_model("resnet50").train()  # doctest: +SKIP
    >>> model = checkpointed(model, torch.randn(8, 3, 224, 224), "300MB")  # doctest: +SKIP
    """
    refuse_own_checkpointing(check_model(model))
    restore(model)
    plan_module(model, images, budget, loss, formats)
    return model
