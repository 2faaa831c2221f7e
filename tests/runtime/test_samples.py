"""What can be measured and what cannot: models and samples of every kind, and what the errors say."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from steps import batch, perceptron
from torch import nn

import revolve
from revolve.integrations.first_call import sample_of
from revolve.runtime.exceptions import MeasurementError, ModelError

NO_TENSOR = "the sample has no tensor: pass a tensor, a tuple of positional or a mapping of keyword arguments"


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return x + self.down(self.up(x).tanh())


class Tower(nn.Module):
    """Runs its blocks itself."""

    def __init__(self, first=None):
        super().__init__()
        self.first = first or nn.Linear(16, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


class Product(nn.Module):
    """Multiplies a sparse input."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16, 16))

    def forward(self, x):
        return torch.sparse.mm(x, self.weight)


MODELS = {"tower": Tower, "sequence": perceptron}
SPARSE = {
    "coo": torch.Tensor.to_sparse,
    "coo with a gradient": lambda x: x.to_sparse().requires_grad_(),
    "csr": torch.Tensor.to_sparse_csr,
    "csc": torch.Tensor.to_sparse_csc,
}


@pytest.mark.filterwarnings("ignore:Sparse CS[RC] tensor support")
@pytest.mark.parametrize("layout", SPARSE)
@pytest.mark.parametrize("build", [lambda: Tower(Product()), lambda: nn.Sequential(Product(), *perceptron())])
def test_sparse_samples(build, layout):
    model, x = build(), SPARSE[layout](batch())
    assert revolve.linearize(model, x)
    frontier = revolve.solve(revolve.measure(model, x))
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    assert revolve.verify(model, x, repeats=1).passed
    with pytest.raises(MeasurementError, match=r"layout torch.sparse_\w+, and fake ones are dense; measure without"):
        revolve.measure(build(), x, mode="fake")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("mode", ["real", "fake"])
def test_layouts_whose_bytes_cannot_be_counted(build, mode):
    x = batch()
    nested = [torch.nested.nested_tensor([x, x[:3]], layout=layout) for layout in (torch.strided, torch.jagged)]
    for sample in (x.to_mkldnn(), *nested):
        with pytest.raises(
            MeasurementError, match=rf"layout (nested, )?{sample.layout}, whose bytes cannot be counted"
        ):
            revolve.measure(build(), sample, mode=mode)
        with pytest.raises(MeasurementError, match="whose bytes cannot be counted; pass dense tensors"):
            revolve.linearize(build(), sample)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("compile_", [torch.jit.script, lambda model: torch.jit.trace(model, batch())])
def test_models_of_torch_jit(build, compile_):
    model, x = compile_(build()), batch()
    name = type(build()).__name__
    for call in (
        lambda: revolve.measure(model, x),
        lambda: revolve.measure(model, x, mode="fake"),
        lambda: revolve.linearize(model, x),
        lambda: revolve.checkpointed(model, sample=x, budget="1GiB"),
        lambda: revolve.verify(model, x),
    ):
        with pytest.raises(ModelError, match=rf"the model is a \w+ of torch.jit, .*; pass the {name} that it was made"):
            call()
    outer = Tower()
    outer.blocks[1] = torch.jit.script(Block())
    with pytest.raises(
        ModelError, match=r"module 'blocks.1' of the model is a \w+ of torch.jit, .* pass the Block that"
    ):
        revolve.measure(outer, x)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_tensors_without_values(build):
    message = r"without values: {} on the meta device; .*mode='fake'"
    with pytest.raises(MeasurementError, match=message.format(r"\w+.weight and \d+ more")):
        revolve.measure(build().to("meta"), batch())
    with pytest.raises(MeasurementError, match=message.format(r"\w+.weight and \d+ more")):
        revolve.checkpointed(build().to("meta"), sample=batch().to("meta"), budget="1GiB")
    with pytest.raises(MeasurementError, match=message.format("the sample")):
        revolve.measure(build(), batch().to("meta"))


SAMPLES = {
    "()": ((), r"no arguments", r"\(\)"),
    "{}": ({}, r"no arguments", r"\{\}"),
    "text": ("some text", "'some text'", "'some text'"),
    "array": (np.ones((8, 16)), r"ndarray float64\[8, 16\]", r"ndarray float64\[8, 16\]"),
    "arrays": ([np.ones(3)] * 2, *[r"list of ndarray float64\[3\], ..."] * 2),
    "array by name": ({"x": np.ones(3)}, *[r"x=ndarray float64\[3\]"] * 2),
    "positional array": ((np.ones(3),), r"ndarray float64\[3\]", r"tuple of ndarray float64\[3\]"),
    "numbers": ([[1.0, 2.0]], *[r"list of list of 1.0, ..."] * 2),
}


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("name", MODELS)
def test_samples_without_tensors(name, kind):
    sample, *described = SAMPLES[kind]
    model = MODELS[name]()
    message = rf"cannot be run on its input \({described[name == 'sequence']}\): .*; {NO_TENSOR}"
    frontier = revolve.solve(revolve.measure(model, batch()))
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    for call in (revolve.measure, revolve.linearize, revolve.verify, lambda m, x: revolve.measure(m, x, mode="fake")):
        with pytest.raises(MeasurementError, match=message):
            call(model, sample)
    with pytest.raises(MeasurementError, match=message):
        revolve.checkpointed(model, sample=sample, budget="1GiB")


class Own(Tower):
    """Makes its own input."""

    def forward(self, rows=8):
        return super().forward(torch.ones(rows, 16))


@pytest.mark.parametrize("sample", [(), {}, 4, (4,), {"rows": 4}], ids=repr)
def test_models_that_take_no_tensor(sample):
    model = Own()
    frontier = revolve.solve(revolve.measure(model, sample))
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    assert revolve.verify(model, sample, repeats=1).passed


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_what_fails_on_fake_tensors_is_said_once(build):
    """torch logs the traceback of what it then raises."""
    logger, records = logging.getLogger("torch._subclasses.fake_tensor"), []
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    try:
        with pytest.raises(MeasurementError, match=r"cannot be run on its input \(float32\[8, 3\]\)"):
            revolve.measure(build(), batch(width=3), mode="fake")
        assert not records
        logger.error("something else, later")
        assert len(records) == 1
    finally:
        logger.removeHandler(handler)


def test_a_sequence_called_by_name_is_planned_for_with_what_it_is_given():
    x = batch()
    assert sample_of(perceptron(), ((), {"input": x})) is x
    assert sample_of(perceptron(), ((x,), {})) is x


@pytest.mark.parametrize("measured", ["rows", "slice"])
@pytest.mark.parametrize("called", ["rows", "slice"])
def test_a_slice_of_a_larger_tensor_is_recognised_as_the_measured_input(measured, called, monkeypatch):
    """A batch that is cut out of a data set shares its storage."""
    inputs = {"rows": batch(rows=256), "slice": batch(rows=1024)[256:512]}
    model = perceptron()
    frontier = revolve.solve(revolve.measure(model, inputs[measured]))
    assert frontier.chain.input_bytes == 256 * 16 * 4
    assert not frontier.plan(frontier.smallest).plain
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    monkeypatch.setattr("revolve.runtime.runner.measure_children", None)  # a call would be measured anew
    model(inputs[called]).sum().backward()
