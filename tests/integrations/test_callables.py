"""The drop-in with every kind of callable: what it uses is found, and put back or refused."""

from __future__ import annotations

import copy
import gc
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import revolve
from revolve.integrations.torch import PLANS, checkpoint_sequential

HELPED = nn.BatchNorm1d(32)


def help_with_norm(x):
    return torch.tanh(HELPED(x))


@dataclass
class Scale:
    factor: float

    def __call__(self, x):
        return x * self.factor


class Slotted:
    __slots__ = ("module",)

    def __init__(self, module):
        self.module = module

    def __call__(self, x):
        return torch.tanh(self.module(x))


def blocks(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32), nn.Tanh()) for _ in range(count)]


def run(functions, x):
    for function in functions:
        x = function(x)
    return x


def test_callables_that_cannot_be_hashed():
    array, chosen = np.float32(2) * np.ones(32, np.float32), {1, 2}
    functions = [
        *blocks(3),
        Scale(1.5),
        lambda v: v * torch.from_numpy(array),
        lambda v: v * len(chosen),
    ]
    x = torch.randn(64, 32)
    assert torch.equal(checkpoint_sequential(functions, 2, x), run(functions, x))


def test_a_counter_in_a_closure_asks_for_no_new_plan():
    layers = blocks(3)
    x = torch.randn(64, 32)
    before = len(PLANS)
    for step in range(3):
        nn.ModuleList(layers).zero_grad()
        checkpoint_sequential([*layers, lambda v, step=step: v + step], 2, x).sum().backward()
    assert len(PLANS) == before + 1


@pytest.mark.parametrize("make", [Slotted, lambda norm: lambda v: torch.tanh(norm(v))], ids=["slots", "closure"])
def test_statistics_of_modules_inside_callables(make):
    layers, norm = blocks(4), nn.BatchNorm1d(32)
    plain = copy.deepcopy(norm)
    x = torch.randn(64, 32)
    run([*layers[:2], make(plain), *layers[2:]], x).sum().backward()
    checkpoint_sequential([*layers[:2], make(norm), *layers[2:]], 3, x).sum().backward()
    for a, b in zip(plain.buffers(), norm.buffers(), strict=True):
        assert torch.equal(a, b)


def test_statistics_of_a_module_used_by_a_helper_function():
    layers = blocks(4)
    x = torch.randn(64, 32)
    plain = copy.deepcopy(HELPED)
    torch.tanh(plain(run(layers[:2], x)))
    checkpoint_sequential([*layers[:2], lambda v: help_with_norm(v), *layers[2:]], 3, x).sum().backward()
    for a, b in zip(plain.buffers(), HELPED.buffers(), strict=True):
        assert torch.equal(a, b)


def test_a_loose_tensor_that_changes_before_backward_is_an_error():
    weight = torch.randn(32, requires_grad=True)
    functions = [lambda v: torch.tanh(torch.sin(v + weight).exp())] * 6  # whichever the plan runs again
    y = checkpoint_sequential(functions, 3, torch.randn(512, 32))
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match=r"tensor 0 outside of modules has been changed in place"):
        y.sum().backward()


def test_first_calls_from_several_threads():
    results = {}

    def work(number):
        layers = blocks(3)
        x = torch.full((64, 32), float(number))
        results[number] = torch.equal(checkpoint_sequential(layers, 2, x), run(layers, x))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: True, 1: True, 2: True}


def test_steps_leave_no_reference_cycles():
    layers = nn.Sequential(*blocks(4))
    x = torch.randn(64, 32)
    frontier = revolve.solve(revolve.measure(layers, x))
    revolve.checkpointed(layers, frontier.plan(frontier.smallest))
    layers(x).sum().backward()
    gc.collect()
    gc.disable()
    try:
        layers(x).sum().backward()
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_stage_that_changes_its_own_parameter_is_refused_by_name():
    model = nn.Sequential(nn.Embedding(10, 32, max_norm=0.1), *blocks(2))
    with pytest.raises(revolve.RevolveError, match=r"changes weight of module 0 \(Embedding\) in its own forward"):
        revolve.measure(model, torch.arange(10))
