"""Fixtures that several folders of tests share."""

from __future__ import annotations

import pytest


@pytest.fixture
def no_hooks(monkeypatch):
    """Let every saved-tensor hook be an error."""
    from torch.autograd.graph import saved_tensors_hooks  # here, since most tests need no torch

    def forbidden(self):
        raise AssertionError("a hook was set")

    monkeypatch.setattr(saved_tensors_hooks, "__enter__", forbidden)
