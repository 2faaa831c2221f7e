"""What a plan cannot work together with: checkpointing that a library does itself."""

from __future__ import annotations

from torch import nn

from revolve.runtime.exceptions import ModelError

__all__ = ["refuse_own_checkpointing"]

# Each library's flag on modules, and how it is switched off.
FLAGS = {
    "gradient_checkpointing": (
        "call model.activation_checkpointing_disable(), and leave activation_checkpointing=True out of "
        "TrainingArguments"
    ),
    "grad_checkpointing": "call model.set_grad_checkpointing(False)",
}


def refuse_own_checkpointing(model: nn.Module) -> None:
    """Refuse a model that checkpoints by itself: stages would be run again twice, and the budget would not hold.

    Raises
    ------
    ModelError
        If the checkpointing of transformers or of timm is switched on in any module.
    """
    for path, module in model.named_modules():
        for flag, remedy in FLAGS.items():
            if getattr(module, flag, False) is True:
                where = f"its module {path!r}" if path else "it"
                raise ModelError(
                    f"the {type(model).__name__} checkpoints by itself ({where} has {flag}=True), and so would run "
                    f"layers again twice; to train it by a plan, {remedy}"
                )
