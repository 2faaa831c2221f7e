"""Storage formats in models that run their stages themselves: every bit, and the predicted peak."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from branching import NETWORKS, Layers, normal
from formatted import (
    FORMATS,
    LOSSY,
    WITHOUT_ZEROS,
    check,
    forced,
    free_of_charge,
    in_format,
    made,
    skipping,
    total_deviation,
)
from test_formats import SCHEDULES
from test_library_models import llama, timm_model
from torch import nn
from torch.nn import functional
from twins import assert_equal, frontier_of, run

import revolve
from revolve import Plan
from revolve.runtime.exceptions import RecomputeError
from revolve.runtime.interception import chain_of
from revolve.storage.accounts import DenserThanPlanned
from revolve.storage.shared_forms import Forms


@pytest.fixture
def encoded(monkeypatch):
    """Count the forms that are made."""
    count = SimpleNamespace(number=0)
    add = Forms.add

    def counted(self, tensor, codec, shared):
        count.number += 1
        add(self, tensor, codec, shared)

    monkeypatch.setattr(Forms, "add", counted)
    return count


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", ["skipping", *(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS)])
def test_steps_equal_plain_ones_within_the_predicted_peak(name, format_, encoded):
    model, sample = made(name)
    chain = revolve.measure(model, sample, formats=(format_,))
    for schedule in SCHEDULES:
        encoded.number = 0
        ratio = check(model, sample, forced(chain, schedule, format_), format_)
        least = 0 if name == "branches" else len(chain) // 2  # most of what its stages save is held anyway
        assert encoded.number > least or (format_ == "bitmap" and name in WITHOUT_ZEROS)
        assert ratio > 0.7


@pytest.mark.parametrize(
    "format_", ["int8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bitmap", "disk"))]
)
def test_the_solver_chooses_formats(format_):
    """Where formats take no time, plans of most budgets keep them, and smaller ones are feasible than dense."""
    model, sample = skipping()
    chain = revolve.measure(model, sample, formats=(format_,))
    frontier = revolve.solve(free_of_charge(chain, format_), (format_,))
    assert frontier.smallest <= revolve.solve(chain).smallest
    held = revolve.solve(replace(free_of_charge(chain, format_), carried=None), (format_,))
    assert held.smallest < revolve.solve(replace(chain, carried=None)).smallest or format_ == "bitmap"
    plans = [Plan.from_actions(chain, held.plan(int(peak)).actions) for peak in held.peaks]
    plans = [replace(plan, budget=plan.peak) for plan in plans if format_ in plan.formats()]
    assert len(plans) >= len(held.peaks) // 2
    for plan in plans[:: max(1, len(plans) // 4)]:
        assert check(model, sample, plan, format_) > 0.75  # two tensors pass between blocks, and one of them is saved


@pytest.mark.slow
@pytest.mark.usefixtures("torchvision_operators")
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", ["llama", "resnet"])
def test_models_of_libraries(name, format_):
    model, sample = llama() if name == "llama" else timm_model("resnet18")
    chain = revolve.measure(model, sample, formats=(format_,))
    for schedule in SCHEDULES:
        assert check(model, sample, forced(chain, schedule, format_), format_) > 0.85
    frontier = revolve.solve(free_of_charge(chain, format_), (format_,))
    plans = [Plan.from_actions(chain, frontier.plan(int(peak)).actions) for peak in frontier.peaks]
    plans = [replace(plan, budget=plan.peak) for plan in plans if format_ in plan.formats()]
    for plan in plans[:: max(1, len(plans) // 3)]:
        assert check(model, sample, plan, format_) > 0.85
    assert plans or format_ == "bitmap"
    if format_ in LOSSY:
        revolve.checkpointed(model, forced(chain, "saving", format_))
        assert 0 < total_deviation(model, sample) < 0.15  # every stage, and there are 18 layers


def test_gradients_deviate_mildly_in_a_lossy_format():
    model, sample = skipping()
    in_format(model, sample, format_="int8")
    assert 0 < total_deviation(model, sample) < 0.02
    in_format(model, sample, format_="int4")
    assert 0.005 < total_deviation(model, sample) < 0.3


def test_a_function_that_saves_a_tensor_before_it_is_written():
    model = Layers(lambda: nn.Conv2d(8, 8, 3, padding=1), lambda index, side: (), depth=3)
    model.forward = lambda x: model.layers[2](functional.rrelu(model.layers[1](model.layers[0](x)), training=True))
    in_format(model, normal(4, 8, 24, 24))
    with pytest.raises(RecomputeError, match=r"stage 'layers\.2' saves a tensor before it is written"):
        model(normal(4, 8, 24, 24))


@pytest.mark.filterwarnings("ignore::revolve.runtime.exceptions.BudgetWarning")
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_other_orders_of_backward(schedule):
    model, sample = skipping()
    plain = copy.deepcopy(model)
    in_format(model, sample, schedule)
    for again in (False, True):
        found = []
        for twin in (plain, model):
            output = twin(sample)
            loss = output.square().mean()
            first = torch.autograd.grad(loss, list(twin.parameters()), create_graph=again, retain_graph=True)
            scale = sum(gradient.square().sum() for gradient in first)
            found.append([*first, *torch.autograd.grad(scale if again else loss, list(twin.parameters()))])
        assert_equal(*found)


def test_under_autocast():
    model, sample = skipping()
    plain = copy.deepcopy(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_format(model, sample)
    results = []
    for twin in (plain, model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = twin(sample)
        output.float().square().mean().backward()
        results.append([output, *(parameter.grad for parameter in twin.parameters())])
    assert_equal(*results)


def denser(model, by):
    """Let fewer zeros come out of a ReLU."""
    with torch.no_grad():
        model.blocks[1].second.bias += by


def test_a_step_that_is_too_dense_fails_and_the_next_one_is_planned_anew():
    model, sample = skipping()
    in_format(model, sample)
    plain = revolve.restore(copy.deepcopy(model))
    assert_equal(run(model, sample), run(plain, sample))
    denser(model, 3.0)
    denser(plain, 3.0)
    with pytest.raises(DenserThanPlanned, match=r"what stage '.*' saves would take \d+ bytes"):
        model(sample)
    model.zero_grad()
    plain.zero_grad()
    assert_equal(run(model, sample), run(plain, sample))
    report = revolve.verify(model, sample, repeats=1)
    assert report.passed
    assert report.plan is not chain_of(model).plan
    assert report.plan.budget == chain_of(model).plan.budget


def test_other_shapes_are_planned_for_with_formats():
    model, sample = skipping()
    chain = revolve.measure(model, sample, formats=("disk",))
    frontier = revolve.solve(free_of_charge(chain, "disk"), ("disk",))
    revolve.checkpointed(model, frontier.plan(int(1.3 * frontier.smallest)))
    plain = revolve.restore(copy.deepcopy(model))
    larger = normal(5, 3, 24, 24)
    for call in (sample, larger, sample, larger):
        assert_equal(run(model, call), run(plain, call))
    (other,) = chain_of(model).others.values()
    assert "disk" in other.plan.formats()
    report = revolve.verify(model, larger, repeats=1)
    assert report.passed
    assert report.plan is other.plan


def test_a_format_that_cannot_keep_tensors_here_says_so():
    model, sample = skipping()
    with pytest.raises(revolve.RevolveError, match="host"):
        revolve.measure(model, sample, formats=("host",))
    with pytest.raises(revolve.RevolveError, match="no format is named 'zip'"):
        revolve.measure(model, sample, formats=("zip",))
    assert frontier_of(model, sample).chain.formats == {}
