"""The examples in the docstrings of baselines and choices run as written."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

MODULES = (
    "comparison",
    "families",
    "frontier",
    "greedy",
    "homogeneous",
    "overheads",
    "periodic",
    "segments",
    "sublinear",
    "subsets",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, _ = doctest.testmod(import_module(f"revolve.schedules.{name}"))
    assert failed == 0
