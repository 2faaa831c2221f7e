"""Lets torchvision be imported where it has no operators of its own."""

from __future__ import annotations

import importlib

import torch

KEPT = []  # the definitions go when the library object does


def define_vision_operators():
    """Define the operators that torchvision looks for, since it has no build for the CPU.

    timm imports it, and where it is installed so do transformers and, by torchmetrics, Lightning.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError:
        KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in ("nms", "qnms"):
            KEPT[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
