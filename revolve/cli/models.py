"""Models and batches from what people type: an import path or a demo name, a shape, a data type."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .demo_models import find_demo_model
from .exceptions import CommandError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["load_model", "make_sample", "parse_shape"]


def load_model(spec: str, dtype: str, seed: int) -> nn.Module:
    """Return the model that a specification names, built from a seed.

    Parameters
    ----------
    spec
        ``package.module:callable`` or the name of a demo model.
    dtype
        Data type of a demo model's weights; other models come as they are.
    seed
        Seeds torch's random numbers before the model is built.

    Raises
    ------
    CommandError
        If there is no such model, or importing or building it fails.
    """
    if ":" not in spec:
        demo = find_demo_model(spec)
    import torch
    from torch import nn

    kind = parse_dtype(dtype)
    try:
        torch.manual_seed(seed)
    except (RuntimeError, ValueError) as error:
        raise CommandError(f"--seed {seed} is not possible: {error}") from error
    if ":" not in spec:
        model = demo.build()
        return model.to(kind) if kind.is_floating_point else model
    target = import_target(spec)
    try:
        result = target if isinstance(target, nn.Module) else target()
    except (Exception, SystemExit) as error:
        raise CommandError(f"building {spec!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(result, nn.Module):
        raise CommandError(f"{spec!r} returned {type(result).__name__}; it must return (or be) a torch.nn.Module")
    return result


def import_target(spec: str) -> Any:
    """Import ``package.module:callable``, with the working directory searched as by ``python -m``."""
    module_name, _, path = spec.partition(":")
    if not module_name or not path:
        raise CommandError(f"model {spec!r} is incomplete; write package.module:callable")
    if (folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, folder)
    try:
        target: Any = import_module(module_name)
    # A module may call sys.exit when imported; that is its failure, not the command's end.
    except (Exception, SystemExit) as error:
        raise CommandError(f"importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    for name in path.split("."):
        if not hasattr(target, name):
            raise CommandError(f"model {spec!r}: {module_name!r} has no {path!r}")
        target = getattr(target, name)
    if not callable(target):
        raise CommandError(f"model {spec!r} is {type(target).__name__}; it must be callable, or a torch.nn.Module")
    return target


def parse_shape(spec: str, text: str | None) -> tuple[int, ...]:
    """Read the shape of a batch, ``"8,3,224,224"``; a demo model brings its own.

    Raises
    ------
    CommandError
        If it is anything but positive whole numbers, or missing.
    """
    if text is None:
        if ":" not in spec:
            return find_demo_model(spec).shape
        raise CommandError(f"model {spec!r} needs --input, the shape of a batch, for example --input 8,3,224,224")
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise CommandError(f"--input {text!r} is no shape; write positive whole numbers, for example 8,3,224,224")
    return tuple(int(part) for part in parts)


def parse_dtype(name: str) -> torch.dtype:
    """Read the name of a torch data type."""
    import torch

    kind = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(kind, torch.dtype):
        raise CommandError(f"--dtype {name!r} is no data type; write for example float32, bfloat16 or int64")
    return kind


def make_sample(model: nn.Module, spec: str, shape: str | None, dtype: str) -> torch.Tensor:
    """Return a random batch on the model's device.

    Parameters
    ----------
    model
        Tells the device.
    spec
        A demo model brings its own shape.
    shape
        Shape as typed; None for a demo model's own.
    dtype
        Real types are drawn from the normal distribution; integers are 0 or 1, which every
        vocabulary holds.

    Raises
    ------
    CommandError
        If the shape cannot be used or memory does not hold the batch.
    """
    import torch

    from revolve.runtime.memory import device_of

    sizes = parse_shape(spec, shape)
    kind, device = parse_dtype(dtype), device_of(model)
    try:
        if kind.is_floating_point:
            return torch.randn(sizes, device=device).to(kind)
        if kind.is_complex:
            return torch.randn(sizes, device=device, dtype=kind)
        return torch.randint(0, 2, sizes, device=device).to(kind)
    except (RuntimeError, MemoryError) as error:
        raise CommandError(f"a batch of shape {sizes} and type {dtype} cannot be made: {error}") from error
