"""Random stacks of layers under random valid schedules and in random modes equal plain training, bit for bit.

REVOLVE_FUZZ_CASES sets how many cases are tried; thousands for a night.
"""

from __future__ import annotations

import os
import random
import warnings
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from layers import FIRST_ORDER, LAYERS, build
from random_schedules import describe, random_plan
from steps import batch, named_chain, square

import revolve
from revolve.schedules import StorageCosts
from revolve.storage import codecs

pytestmark = pytest.mark.slow

IGNORED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
CASES = int(os.environ.get("REVOLVE_FUZZ_CASES", "250"))


def one_step(model, x):
    square(model(x)).backward()


def accumulation(model, x):
    for _ in range(2):
        square(model(x)).backward()


def two_forwards(model, x):
    losses = [square(model(x)), square(model(x * 0.5))]
    sum(losses).backward()


def two_losses(model, x):
    output = model(x)
    square(output[:3]).backward(retain_graph=True)
    square(output[3:]).backward()


def repeated(model, x):
    output = model(x)
    square(output).backward(retain_graph=True)
    output.sum().backward()


def one_parameter(model, x):
    output = model(x)
    square(output).backward(inputs=list(model[-1].parameters()), retain_graph=True)
    square(output).backward()


def backwards_by_parameter(model, x):
    output = square(model(x))
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        (parameter.grad,) = torch.autograd.grad(output, [parameter], retain_graph=True, allow_unused=True)


def penalty(model, x):
    output = model(x)
    inputs = [t for t in (x, *model[0].parameters()) if t.requires_grad]
    slopes = torch.autograd.grad(square(output), inputs, create_graph=True)
    (output.sum() + sum(slope.square().sum() for slope in slopes)).backward()


def dropped(model, x):
    model(x)
    square(model(x)).backward()


def other_numbers_between(model, x):
    output = model(x)
    torch.rand(3), random.random(), np.random.uniform()
    square(output).backward()


STEPS = {
    step.__name__: step
    for step in (
        one_step,
        accumulation,
        two_forwards,
        two_losses,
        repeated,
        one_parameter,
        backwards_by_parameter,
        penalty,
        dropped,
        other_numbers_between,
    )
}
SECOND_ORDER = ("penalty",)
PARTS = ("one_parameter", "backwards_by_parameter", "penalty")  # which torch's reentrant checkpoint does not know


def left_by(model, step, x, *, autocast, steps):
    """Run steps; return everything that they leave."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    found = []
    x = x.clone().requires_grad_(x.requires_grad)
    for _ in range(steps):
        context = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext()
        with context:
            step(model, x)
        found += [None if t.grad is None else t.grad.clone() for t in (x, *model.parameters())]
        found += [buffer.clone() for buffer in model.buffers()]
    generators = [module.generator for module in model.modules() if hasattr(module, "generator")]
    found += [torch.get_rng_state(), *(generator.get_state() for generator in generators)]
    return found, (random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2])


@st.composite
def cases(draw):
    """Draw a stack, a schedule, a kind of step, and modes."""
    kinds = draw(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=9))
    if draw(st.booleans()):  # one module in several stages
        kinds = [f"tied {kind}" if kinds.count(kind) > 1 else kind for kind in kinds]
    step = draw(st.sampled_from(sorted(STEPS)))
    if step in PARTS and FIRST_ORDER.intersection(kind.removeprefix("tied ") for kind in kinds):
        step = "repeated"
    flags = draw(st.lists(st.booleans(), min_size=len(kinds), max_size=len(kinds)))
    return kinds, step, flags, *(draw(st.booleans()) for _ in range(3)), draw(st.randoms(use_true_random=False))


def prepare(kinds, flags):
    model = build(kinds)
    for layer, training in zip(list(model)[1:-1], flags, strict=True):
        layer.train(training or not any(flags))
    return model


def free_format(length):
    """Return made-up costs of a format."""
    nothing = (0,) * length
    return StorageCosts(*[(0, *nothing)] * 3, *[nothing] * 5)


@pytest.fixture(autouse=True)
def small_forms(monkeypatch):
    """Encode tensors as small as those of the pool's layers."""
    monkeypatch.setattr(codecs, "SMALLEST", 1)


@settings(
    max_examples=CASES,
    deadline=None,
    suppress_health_check=[*IGNORED, HealthCheck.data_too_large],
    print_blob=True,
)
@given(cases())
def test_random_schedules(case):
    kinds, step, flags, autocast, input_grad, formats, chooser = case
    x = batch().requires_grad_(input_grad)
    planned = prepare(kinds, flags)
    chain = named_chain(planned)
    if formats and not any("rrelu" in kind for kind in kinds):  # which saves its noise before drawing it
        chain = replace(chain, formats={"bitmap": free_format(len(chain))})
    plan = random_plan(chain, chooser)
    note(f"schedule {describe(plan)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = left_by(prepare(kinds, flags), STEPS[step], x, autocast=autocast, steps=2)
        except RuntimeError as error:  # some kernels have no second derivative
            assume(not (step in SECOND_ORDER and "not implemented" in str(error)))
            raise
        planned = revolve.checkpointed(planned, plan)
        found = left_by(planned, STEPS[step], x, autocast=autocast, steps=2)
    assert found[1] == expected[1]
    for number, (ours, theirs) in enumerate(zip(found[0], expected[0], strict=True)):
        assert ours is theirs or torch.equal(ours, theirs), f"value {number} differs"


# Layers whose memory is another one in every step, and one that torch cannot differentiate for some inputs alone.
UNSTEADY = {kind for kind in LAYERS if kind.startswith("stochastic")} | {"rejection", "reentrant checkpoint"}


@settings(max_examples=CASES // 5, deadline=None, suppress_health_check=IGNORED, print_blob=True)
@given(
    kinds=st.lists(st.sampled_from(sorted(set(LAYERS) - UNSTEADY)), min_size=1, max_size=9),
    share=st.floats(0, 1),
    input_grad=st.booleans(),
    formats=st.sampled_from([("dense",), ("dense", "bitmap")]),
)
def test_random_budgets_of_measured_chains(kinds, share, input_grad, formats):
    """The optimal plan of any budget between the least feasible and plain training keeps it, bit for bit."""
    # An LSTM's workspace has parts that are never written: what they hold, and with it their bitmap, is chance.
    assume(formats == ("dense",) or "recurrent" not in kinds)
    model = build(kinds)
    x = batch().requires_grad_(input_grad)
    frontier = revolve.solve(revolve.measure(model, x, formats=formats), formats)
    low, high = frontier.smallest, int(frontier.peaks[-1])
    revolve.checkpointed(model, frontier.plan(low + int(share * (high - low))))
    report = revolve.verify(model, x, repeats=1)
    assert report.exact, report.differences
    assert report.kept, f"{report.measured_peak} bytes measured, {report.predicted_peak} predicted"
