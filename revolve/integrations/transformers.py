"""Models of transformers inside a byte budget: one call, or a callback of its Trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import TrainerCallback

from revolve.runtime import instrumentation
from revolve.runtime.exceptions import ModelError
from revolve.runtime.memory import device_of
from revolve.runtime.stages import check_model
from revolve.schedules.plans import Plan
from revolve.storage.boundary import map_tensors

from .announcement import describe_plan
from .conflicts import refuse_own_checkpointing
from .first_call import FirstCall, plan_module
from .layer_export import LayerSetting, every_n_layers

__all__ = ["LayerSetting", "RevolveCallback", "checkpointed", "every_n_layers", "restore"]

Model = TypeVar("Model", bound=nn.Module)
Loss = Callable[[Any], torch.Tensor]


def checkpointed(
    model: Model, batch: Any, budget: int | str, *, loss: Loss | None = None, formats: Sequence[str] = ()
) -> Model:
    """Let a model of transformers train inside a byte budget; every bit is that of plain training.

    Parameters
    ----------
    model
        A model, also with adapters of PEFT on it, in training mode.
    batch
        A batch as in training, on the model's device, such as a tokenizer returns it with labels added: of the
        largest size that there will be.
    budget
        Bytes, or a string as ``"2GiB"`` or ``"80%"`` of what the device has free: what a step may add to memory.
    loss
        Maps the output to a scalar; default the output's own ``loss``, which it has where there are labels.
    formats
        Storage formats that checkpoints and saved tensors may be kept in, besides the dense one: ``"bitmap"``,
        ``"disk"``, ``"host"`` ... (docs/storage.md). With lossy ones gradients are not those of plain training.

    Returns
    -------
    nn.Module
        The same object. In training it makes no cache of keys and values, unless it is told ``use_cache=True``;
        :func:`restore` takes this and the plan back.

    Raises
    ------
    InfeasibleBudget
        If the budget is below the least feasible one, which the message names.
    ModelError
        If the model's own activation checkpointing is switched on, or it has no chain of stages.
    MeasurementError
        If the model cannot be run with the batch.

    Notes
    -----
    Of an encoder-decoder both stacks are planned where one chain of stages runs through them; else the one that saves
    more, and the other is trained plainly: what it takes is in the budget.
    """
    refuse_own_checkpointing(check_model(model))
    restore(model)
    switch_off_caches(model)
    with undone_by_errors(model):
        plan_module(model, dict(batch) if isinstance(batch, Mapping) else batch, budget, loss, formats)
    return model


def restore(model: Model) -> Model:
    """Take a plan off a model again, and let it make caches as before; does nothing to a model without a plan.

    Returns
    -------
    nn.Module
        The same object.
    """
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook is without_cache:
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
    return instrumentation.restore(model)


@contextmanager
def undone_by_errors(model: nn.Module) -> Iterator[None]:
    """Restore a model where planning for it fails."""
    try:
        yield
    except BaseException:
        restore(model)
        raise


def switch_off_caches(model: nn.Module) -> None:
    """Let models inside of a model make no cache in training, where they are not told to.

    A hook and not the configuration, which belongs to evaluation as well and is saved with the model.
    """
    for module in model.modules():
        if "use_cache" in inspect.signature(module.forward).parameters and hasattr(module, "config"):
            module.register_forward_pre_hook(without_cache, prepend=True, with_kwargs=True)


def without_cache(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Return the arguments of a call with ``use_cache=False`` in training, where nothing is said about it."""
    if not module.training or not torch.is_grad_enabled() or kwargs.get("use_cache") is not None:
        return None
    names = list(inspect.signature(module.forward).parameters)
    return None if "use_cache" in names[: len(args)] else (args, {**kwargs, "use_cache": False})


class RevolveCallback(TrainerCallback):  # type: ignore[misc]
    """Lets a Trainer train inside a byte budget: it measures the model on the first batch, plans, and says how.

    Parameters
    ----------
    budget
        Bytes, or a string as ``"2GiB"`` or ``"80%"`` of what the device has free: what a step may add to memory.
    batch
        Measure with this batch (tensors by argument name) instead of the first one: pass one of the largest size where
        later batches may be larger.
    loss
        Maps the output to a scalar; default the output's own ``loss``.
    formats
        As in :func:`checkpointed`.
    show
        Gets the lines that describe the plan, in the main process; None for nothing.

    Attributes
    ----------
    plan
        The plan, once there is one.

    Notes
    -----
    The plan is taken back when training ends; where it ends by an error, by :func:`restore`. Gradient accumulation,
    mixed precision and resuming need nothing else. A budget that is too small is an InfeasibleBudget at the first
    batch, and names the least one.

    Examples
    --------
    >>> Trainer(model, arguments, train_dataset=data, callbacks=[RevolveCallback("2GiB")])  # doctest: +SKIP
    """

    def __init__(
        self,
        budget: int | str,
        *,
        batch: Mapping[str, Any] | None = None,
        loss: Loss | None = None,
        formats: Sequence[str] = (),
        show: Callable[[str], None] | None = print,
    ) -> None:
        self.budget = budget
        self.batch = batch
        self.loss = loss
        self.formats = formats
        self.show = show
        self.plan: Plan | None = None
        self.waiting: FirstCall | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Refuse a Trainer that checkpoints by itself."""
        refuse_arguments(args)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Wait for the first batch."""
        refuse_arguments(args)
        refuse_own_checkpointing(check_model(model))
        restore(model)
        switch_off_caches(model)
        shown = self.show if state.is_world_process_zero else None

        def plan_now(module: nn.Module, sample: Any) -> None:
            if self.batch is not None:
                device = device_of(module)
                sample = map_tensors(lambda tensor: tensor.to(device), dict(self.batch))
            with undone_by_errors(module):
                planned = plan_module(module, sample, self.budget, self.loss, self.formats)
            self.plan = planned.plan
            if shown is not None:
                shown(describe_plan(planned.plan, planned.coverage))

        self.waiting = FirstCall(model, plan_now)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Take the plan back."""
        if self.waiting is not None:
            self.waiting.give_up()
            self.waiting = None
        restore(model)


def refuse_arguments(args: Any) -> None:
    """Refuse arguments of a Trainer that let it checkpoint by itself.

    Raises
    ------
    ModelError
        If there are such.
    """
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        if getattr(args, name, False):
            raise ModelError(
                f"TrainingArguments({name}=True) and RevolveCallback would both run layers again; leave {name} out, "
                "the callback keeps the budget"
            )
