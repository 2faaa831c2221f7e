"""Measuring leaves the model as it was, whether it succeeds or fails."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from layers import build
from steps import batch, perceptron, run_step, square
from torch import nn
from torch.profiler import profile

import revolve
from revolve.runtime.exceptions import MeasurementError, ModelError


class Snapshot:
    """Everything of a model that measuring must leave alone."""

    def __init__(self, model):
        self.model = model
        self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.gradients = [(p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
        self.random = torch.get_rng_state()
        self.attributes = [dict(vars(module)) for module in model.modules()]
        self.tables = [[*m._parameters.values(), *m._buffers.values()] for m in model.modules()]
        self.flags = [p.requires_grad for p in model.parameters()]

    def check(self):
        now = self.model.state_dict()
        assert list(now) == list(self.state)
        assert all(torch.equal(now[name], self.state[name]) for name in now)
        for parameter, (gradient, values) in zip(self.model.parameters(), self.gradients, strict=True):
            assert parameter.grad is gradient
            assert gradient is None or torch.equal(gradient, values)
        assert torch.equal(torch.get_rng_state(), self.random)
        assert [p.requires_grad for p in self.model.parameters()] == self.flags
        for module, attributes, table in zip(self.model.modules(), self.attributes, self.tables, strict=True):
            assert vars(module) == attributes
            now = [*module._parameters.values(), *module._buffers.values()]
            assert all(a is b for a, b in zip(now, table, strict=True))


class Busy(nn.Module):
    """Keeps counts, tensors and replaced buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))
        self.register_buffer("late", None)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        self.last = x
        self.mean = 0.5 * self.mean + x.detach().mean(0)
        self.late = self.mean * 2
        return (x - self.mean.clone()).sin()


def busy_model():
    model = perceptron(
        lambda: nn.BatchNorm1d(16),
        lambda: nn.Dropout(0.3),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16)),
        lambda: nn.utils.spectral_norm(nn.Linear(16, 16)),
        Busy,
        depth=2,
    )
    model[0].weight.requires_grad_(False)
    model[2].eval()
    return model


@pytest.mark.parametrize("gradients", [False, True])
def test_success_leaves_everything_alone(gradients):
    model = busy_model()
    fired = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: fired.append("hook"))
            parameter.register_post_accumulate_grad_hook(lambda parameter: fired.append("optimizer"))
            if gradients:
                parameter.grad = torch.full_like(parameter, 2.0)
    snapshot = Snapshot(model)
    chain = revolve.measure(model, batch())
    snapshot.check()
    assert not fired
    assert any(stage.grad_bytes for stage in chain.stages) is not gradients
    frontier = revolve.solve(chain)
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    assert revolve.verify(model, batch(), repeats=1).exact
    revolve.restore(model)
    snapshot.check()
    assert not fired
    copy.deepcopy(model)


class Raising(nn.Module):
    def forward(self, x):
        raise ArithmeticError("no more\nof this")


class Returning(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value


class RaisingInBackward(nn.Module):
    def forward(self, x):
        y = x.sin()
        y.register_hook(lambda gradient: [][0])
        return y


@pytest.mark.parametrize(
    ("position", "module", "message"),
    [
        (2, nn.Linear(3, 3), r"stage '2' cannot be run on its input \(float32\[8, 16\]\): .*mat1 and mat2"),
        (3, Raising(), r"stage '3' cannot be run on its input \(float32\[8, 16\]\): no more$"),
        (3, RaisingInBackward(), r"stage '3' cannot be run on its input .*: list index out of range"),
        (4, Returning("text"), "stage '4' returns no tensor, but str"),
        (4, Returning(None), "stage '4' returns no tensor, but NoneType"),
        (1, nn.LazyLinear(16), "LazyLinear.* is not initialised; run the model once"),
        (0, nn.ReLU(inplace=True), "stage '0' changes the model's input in place.*inplace=False"),
    ],
)
def test_failure_names_the_stage_and_leaves_everything_alone(position, module, message):
    layers = list(busy_model())
    layers.insert(position, module)
    model = nn.Sequential(*layers)
    lazy = isinstance(module, nn.LazyLinear)
    snapshot = None if lazy else Snapshot(model)
    with pytest.raises(MeasurementError, match=message):
        revolve.measure(model, batch())
    if snapshot:
        snapshot.check()


def test_models_and_samples_that_cannot_be_measured():
    with pytest.raises(ModelError, match="no module call of the Linear can be a stage: it calls none"):
        revolve.measure(nn.Linear(16, 2), batch())
    model = busy_model()
    snapshot = Snapshot(model)
    for sample in (batch(width=3), batch().long(), None, "text"):
        with pytest.raises(MeasurementError, match="stage '0' cannot be run on its input"):
            revolve.measure(model, sample)
    for loss in (lambda y: y, lambda y: y.detach().sum(), lambda y: 3.0):
        with pytest.raises(MeasurementError, match=r"the loss returned .*; it must return a scalar"):
            revolve.measure(model, batch(), loss)
    snapshot.check()
    with pytest.raises(MeasurementError, match="in eval mode"):
        revolve.measure(model.eval(), batch())


def test_another_profiler_is_in_the_way():
    model = busy_model()
    snapshot = Snapshot(model)
    with profile(), pytest.raises(MeasurementError, match="another torch profiler"):
        revolve.measure(model, batch())
    snapshot.check()


def test_a_sample_that_requires_a_gradient():
    x = batch().requires_grad_()
    x.grad = torch.ones_like(x)
    chain = revolve.measure(perceptron(), x, square)
    assert chain.input_grad
    assert torch.equal(x.grad, torch.ones_like(x))


def test_progress_names_every_stage():
    seen = []
    revolve.measure(perceptron(depth=2), batch(), progress=lambda *step: seen.append(step))
    assert [name for _, _, name in seen][:4] == ["0", "1", "2", "3"]
    assert seen[-1][0] == seen[-1][1]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(16, 16, num_layers=2, dropout=0.3, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


def test_recurrent_stages():
    torch.manual_seed(0)
    model = nn.Sequential(*(Recurrent() for _ in range(4)))
    x = torch.randn(4, 6, 16)
    snapshot = Snapshot(model)
    weights = [weight for module in model for weight in module.lstm._flat_weights]
    frontier = revolve.solve(revolve.measure(model, x))
    snapshot.check()
    assert all(a is b for a, b in zip(weights, [w for m in model for w in m.lstm._flat_weights], strict=True))
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    assert revolve.verify(model, x, repeats=1).exact


@pytest.mark.parametrize("kind", ["stochastic depth", "stochastic depth by Python", "stochastic depth by NumPy"])
def test_stages_that_leave_out_layers_at_random(kind):
    for seed in range(4):
        model = build([kind] * 5)
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        snapshot = Snapshot(model)
        states = random.getstate(), np.random.get_state()[2]
        frontier = revolve.solve(revolve.measure(model, batch()))
        snapshot.check()
        assert (random.getstate(), np.random.get_state()[2]) == states
        revolve.checkpointed(model, frontier.plan(frontier.smallest))
        run_step(model, batch())
