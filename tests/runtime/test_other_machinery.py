"""What torch's compiler, exporter and tracers see of a planned model: never a silent loss of the plan."""

from __future__ import annotations

import copy
import inspect
import pickle
import shutil

import pytest
import torch
from branching import Transformer, make, words
from steps import batch, perceptron, tight_plan
from torch import nn
from twins import assert_equal, forgetful_plan, loss_of, run

import revolve
from revolve.runtime.exceptions import ModelError
from revolve.runtime.executor import Run

COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


def planned(name):
    model, sample = make(name)
    return revolve.checkpointed(model, forgetful_plan(revolve.measure(model, sample))), sample


def planned_sequential():
    model = perceptron()
    return revolve.checkpointed(model, tight_plan(model)), batch()


MODELS = {"u-net": lambda: planned("u-net"), "sequential": planned_sequential}


pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def runs(monkeypatch):
    """Collect the runs of steps; those that are rehearsed while a model is measured are others."""
    found = []
    create = Run.__init__
    monkeypatch.setattr(
        Run, "__init__", lambda self, *a: (found.extend([1] * (type(self) is Run)), create(self, *a))[1]
    )
    return found


def test_what_stands_in_for_a_forward_has_its_signature():
    """By it, transformers' Trainer chooses the columns of a data set."""
    sample = {"words": words(4, 32)}
    model = Transformer()
    revolve.checkpointed(model, forgetful_plan(revolve.measure(model, sample)))
    for module, plain in zip(model.modules(), Transformer().modules(), strict=True):
        if type(module).forward is not nn.Module.forward:
            assert inspect.signature(module.forward) == inspect.signature(plain.forward)
    assert list(inspect.signature(planned_sequential()[0].forward).parameters) == ["input"]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_export_sees_the_plain_model(name, train, runs):
    model, sample = MODELS[name]()
    model.train(train)
    exported = torch.export.export(model, (sample,))
    assert runs == []
    assert torch.allclose(exported.module()(sample), model(sample), atol=1e-6)
    assert len(runs) == train
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert torch.equal(twin(sample), model(sample))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_trace_sees_the_plain_model(name, train, runs):
    model, sample = MODELS[name]()
    model.train(train)
    traced = torch.jit.trace(model, sample)
    assert runs == []
    assert torch.allclose(traced(sample), model(sample), atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_what_needs_the_source_says_what_to_do(name):
    model, sample = MODELS[name]()
    with pytest.raises(AttributeError, match=r"call revolve\.restore\(model\) first"):
        torch.jit.script(model)
    unsupported = torch._dynamo.exc.Unsupported  # or, where torch does not look into the forward, our own error
    with pytest.raises((unsupported, ModelError), match=r"revolve\.restore\(model\) before it is exported"):
        torch.export.export(model, (sample,), strict=True)
    with pytest.raises(unsupported, match=r"revolve\.restore\(model\) before it is exported"):
        torch.compile(lambda x: loss_of(model(x)), backend="eager", fullgraph=True)(sample)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["function", "method", "inner"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=COMPILER)])
@pytest.mark.parametrize("name", ["residual", "transformer"])
def test_a_compiled_model_that_calls_its_stages(name, backend, how, runs, monkeypatch):
    """It runs by its plan, uncompiled, unless what is compiled are forwards inside."""
    model, sample = planned(name)
    plain, _ = make(name)
    kind = type(model.blocks[0]) if name == "transformer" else type(model.layers[0])
    asked, forward = [], kind.forward
    monkeypatch.setattr(
        kind, "forward", lambda self, *a, **k: (asked.append(revolve.is_recomputing()), forward(self, *a, **k))[1]
    )
    if how == "function":
        compiled = torch.compile(model, backend=backend)
    else:
        (model if how == "method" else getattr(model, "fc", None) or model.head).compile(backend=backend)
        compiled = model
    for _ in range(2):
        plain.zero_grad(), model.zero_grad()
        assert_equal(run(compiled, sample), run(plain, sample))
    assert len(runs) == 2
    assert asked.count(True) > asked.count(False) / 2


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=COMPILER)])
def test_a_compiled_model_around_one_that_calls_its_stages(backend, runs):
    class Around(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner((x * 2).sin()).cos() + 1

    inner, sample = planned("u-net")
    plain = Around(make("u-net")[0])
    model = torch.compile(Around(inner), backend=backend)
    for step in range(2):
        found = []
        for module in (model, plain):
            torch.manual_seed(step)
            module.zero_grad()
            output = module(sample)
            loss_of(output).backward()
            found.append([output, *(p.grad for p in module.parameters())])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)
    assert len(runs) == 2
