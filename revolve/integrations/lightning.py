"""Lightning inside a byte budget: a callback for ``lightning.pytorch`` and ``pytorch_lightning``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from revolve.runtime.exceptions import ModelError
from revolve.runtime.instrumentation import checkpointed, restore
from revolve.schedules.plans import Plan

from .announcement import describe_plan
from .conflicts import refuse_own_checkpointing
from .first_call import FirstCall, plan_module

if TYPE_CHECKING:
    from lightning.pytorch import Callback
elif "pytorch_lightning" in sys.modules and "lightning" not in sys.modules:  # two packages with a class of their own
    from pytorch_lightning import Callback
else:
    try:
        from lightning.pytorch import Callback
    except ModuleNotFoundError:
        from pytorch_lightning import Callback

__all__ = ["RevolveCallback"]


class RevolveCallback(Callback):  # type: ignore[misc]
    """Lets ``Trainer.fit`` train inside a byte budget: it measures a module at its first call, plans, and says how.

    Parameters
    ----------
    budget
        Bytes, or a string as ``"2GiB"`` or ``"80%"`` of what the device has free: what a step may add to memory.
    module
        Path of the module to plan for, as in ``named_modules()``; default the LightningModule itself if its
        training_step calls it, else the one of its children that has most parameters.
    loss
        Maps the module's output to a scalar, as training_step does; default the output's own ``loss``, else half its
        mean square.
    formats
        Storage formats that checkpoints and saved tensors may be kept in, besides the dense one: ``"bitmap"``,
        ``"disk"``, ``"host"`` ... (docs/storage.md). With lossy ones gradients are not those of plain training.
    show
        Gets the lines that describe the plan, on rank 0; None for nothing.

    Attributes
    ----------
    plan
        The plan, once there is one.

    Notes
    -----
    The plan is made in the first training step, under the autocast and on the device of that step, and is part of
    every checkpoint of the Trainer: a run that is resumed with the same budget goes on by it without measuring.
    Validation runs untouched. The plan is taken back when the fit ends, also by an error.

    Examples
    --------
    >>> Trainer(callbacks=[RevolveCallback("2GiB")]).fit(module, loader)  # doctest: +SKIP
    """

    def __init__(
        self,
        budget: int | str,
        *,
        module: str | None = None,
        loss: Callable[[Any], torch.Tensor] | None = None,
        formats: Sequence[str] = (),
        show: Callable[[str], None] | None = print,
    ) -> None:
        self.budget = budget
        self.module = module
        self.loss = loss
        self.formats = (formats,) if isinstance(formats, str) else tuple(formats)
        self.show = show
        self.plan: Plan | None = None
        self.planned: str | None = None
        self.stack = ExitStack()

    @property
    def state_key(self) -> str:
        """Key of the callback's state in a checkpoint."""
        return "RevolveCallback"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Put the plan of a checkpoint on, or wait for the first call."""
        self.stack.close()
        modules = dict(pl_module.named_modules())
        refuse_own_checkpointing(pl_module)
        if self.plan is not None and self.planned in modules:
            self.put_on(modules[self.planned], self.plan)
            return
        shown = self.show if trainer.is_global_zero else None
        candidates = {path: modules[path] for path in candidate_paths(pl_module, self.module)}
        for path, module in candidates.items():
            self.wait(path, module, shown)

    def wait(self, path: str, module: nn.Module, shown: Callable[[str], None] | None) -> None:
        """Wait for the first call of a module; then wait for no other."""

        def plan_now(module: nn.Module, sample: Any) -> None:
            self.stack.close()
            planned = plan_module(module, sample, self.budget, self.loss, self.formats)
            self.plan, self.planned = planned.plan, path
            self.stack.callback(restore, module)
            if shown is not None:
                shown(describe_plan(planned.plan, planned.coverage))

        self.stack.callback(FirstCall(module, plan_now).give_up)

    def put_on(self, module: nn.Module, plan: Plan) -> None:
        """Put a plan on a module."""
        checkpointed(module, plan)
        self.stack.callback(restore, module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Take the plan back."""
        self.stack.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Take the plan back."""
        self.stack.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the plan and what it is for, to be kept in checkpoints."""
        if self.plan is None:
            return {}
        return {**self.asked(), "module": self.planned, "plan": self.plan.to_json()}

    def asked(self) -> dict[str, Any]:
        """Return what a plan of a checkpoint has to be made for."""
        return {"budget": self.budget, "formats": self.formats}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a plan from a checkpoint, if it was made for the same budget, formats and module."""
        same = all(state_dict.get(name) == value for name, value in self.asked().items())
        if same and self.module in (None, state_dict["module"]):
            self.plan, self.planned = Plan.from_json(state_dict["plan"]), state_dict["module"]


def candidate_paths(pl_module: nn.Module, path: str | None) -> list[str]:
    """Return the paths of the modules one of which is to be planned for: the first that is called.

    Raises
    ------
    ModelError
        If there is no module of that path, or none has parameters.
    """
    if path is not None:
        if path not in dict(pl_module.named_modules()):
            known = ", ".join(repr(name) for name, _ in pl_module.named_children())
            raise ModelError(f"module={path!r}: the {type(pl_module).__name__} has no such module; it has {known}")
        return [path]
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in pl_module.named_children()}
    if not any(sizes.values()):
        raise ModelError(
            f"the {type(pl_module).__name__} has no children with parameters; pass RevolveCallback(module=...)"
        )
    return ["", max(sizes, key=lambda name: sizes[name])]
