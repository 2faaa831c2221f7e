"""Fixtures that several folders of tests share."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture
def no_hooks(monkeypatch):
    """Let every saved-tensor hook be an error."""
    from torch.autograd.graph import saved_tensors_hooks  # here, since most tests need no torch

    def forbidden(*_):
        raise AssertionError("a hook was set")

    monkeypatch.setattr(saved_tensors_hooks, "__enter__", forbidden)
    monkeypatch.setattr("revolve.runtime.saving.push_hooks", forbidden)


@pytest.fixture(scope="session")
def torchvision_operators():
    """Define the operators that torchvision looks for: its builds need CUDA; timm and transformers import it."""
    torch = pytest.importorskip("torch")
    library = None
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        pass  # transformers does without it; importing timm says that it is missing
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library  # the operators live as long as this object
