"""Rule [7] of the executor: a stage runs again in the modes of its first run, and they are put back."""

from __future__ import annotations

import random
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from layers import LAYERS, Attention, OwnGenerator, build
from steps import PLANNERS, assert_equal_steps, assert_same, batch, perceptron, run_step, square, tight_plan, twins
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize

import revolve
from revolve.runtime.exceptions import ModelError
from revolve.runtime.generators import TorchRandom
from revolve.runtime.modes import Modes


@contextmanager
def switched(read, write, value):
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def default_dtype():
    return switched(torch.get_default_dtype, torch.set_default_dtype, torch.float64)


def deterministic():
    return switched(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True)


def precision():
    return switched(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium")


class Sensitive(nn.Module):
    """Computes something else in every mode."""

    def forward(self, x):
        width = torch.finfo(torch.zeros(()).dtype).bits
        extra = 1 + torch.are_deterministic_algorithms_enabled()
        medium = 2 if torch.get_float32_matmul_precision() == "medium" else 1
        where = 0.5 if torch.empty(0).is_meta else 1.0
        return (x * (width * extra * medium * where / 32)).sin()


CONTEXTS = {
    "default dtype": default_dtype,
    "deterministic": deterministic,
    "precision": precision,
    "device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "attention kernel": lambda: sdpa_kernel([SDPBackend.MATH]),
    "gradients on": lambda: torch.set_grad_enabled(True),
}


@pytest.mark.parametrize("around", ["forward", "backward", "both"])
@pytest.mark.parametrize("name", CONTEXTS)
def test_a_mode_around(name, around):
    for planner in PLANNERS.values():
        found = []
        for model in twins(perceptron(Sensitive, Attention, lambda: nn.Dropout(0.3)), planner):
            torch.manual_seed(3)
            x, before = batch(), Modes.current(())
            with CONTEXTS[name]() if around != "backward" else nullcontext():
                output = model(x)
            with CONTEXTS[name]() if around != "forward" else nullcontext():
                output.float().square().mean().backward()
            assert Modes.current(()) == before
            found.append([output, *(p.grad for p in model.parameters())])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_gradient_scaler():
    for planner in PLANNERS.values():
        found = []
        for model in twins(perceptron(lambda: nn.Dropout(0.3)), planner):
            optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
            torch.manual_seed(3)
            for step in range(3):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = model(batch(seed=step)).float().square().mean()
                scaler.scale(loss * (float("inf") if step == 1 else 1)).backward()
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
            found.append([*model.parameters(), torch.tensor(scaler.get_scale())])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_grad_mode_off_around_training():
    planned, plain = twins(perceptron())
    with torch.no_grad(), torch.enable_grad():
        ours, theirs = run_step(planned, batch()), run_step(plain, batch())
    assert_same(ours, theirs)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_every_layer_of_the_pool(name):
    """Each alone with dropout, over three steps, at every kind of plan."""
    for planner in PLANNERS.values():
        found = []
        for planned in (True, False):
            model = build([name, "dropout", name])
            if planned:
                revolve.checkpointed(model, planner(model))
            torch.manual_seed(4), random.seed(4), np.random.seed(4)
            steps = [run_step(model, batch(seed=seed)) for seed in range(3)]
            found.append((steps, random.getstate(), np.random.get_state()[2]))
        for ours, theirs in zip(found[0][0], found[1][0], strict=True):
            assert_same(ours, theirs)
        assert found[0][1:] == found[1][1:]


def test_a_generator_that_several_stages_share():
    shared = torch.Generator().manual_seed(3)

    def model():
        layers = build(["own generator", "linear", "own generator", "own generator"])
        for layer in layers:
            if isinstance(layer, OwnGenerator):
                layer.generator = shared
        return layers

    found = []
    for planner in (*PLANNERS.values(), None):
        layers = model()
        if planner:
            revolve.checkpointed(layers, planner(layers))
        shared.manual_seed(3)
        run_step(layers, batch())
        found.append([run_step(layers, batch()).gradients["0.weight"], shared.get_state()])
    for ours in found[:-1]:
        assert all(torch.equal(a, b) for a, b in zip(ours, found[-1], strict=True))


def test_a_generator_in_a_closure():
    from revolve.integrations.torch import checkpoint_sequential

    generator = torch.Generator()
    layers = [nn.Linear(16, 16), lambda x: x.tanh() * torch.rand(x.shape, generator=generator), nn.Linear(16, 16)] * 3
    found = []
    for checkpointing in (True, False):
        generator.manual_seed(5)
        x = batch(64).requires_grad_()
        y = x
        if checkpointing:
            y = checkpoint_sequential(layers, 3, x)
        else:
            for layer in layers:
                y = layer(y)
        found.append([y, *torch.autograd.grad(square(y), [x]), generator.get_state()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_stages_that_draw_nothing_pay_nothing(monkeypatch):
    written = []
    write = TorchRandom.write
    monkeypatch.setattr(TorchRandom, "write", lambda self, state: written.append(1) or write(self, state))
    without, _ = twins(perceptron())
    run_step(without, batch())
    assert not written
    model = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.3), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    planned, _ = twins(model)
    again = planned.forward.plan.stage_counts()[1]
    run_step(planned, batch())
    assert len(written) == 2 * (again["forward"] - 1 + again["rebuild"])  # set for each run, and put back


def test_a_cached_parametrisation_is_refused():
    """Inside parametrize.cached a weight is computed once for all stages."""
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(16, 16))
    planned, _ = twins(nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh()), tight_plan)
    with (
        parametrize.cached(),
        pytest.raises(ModelError, match=r"parametrize\.cached\(\).*call the model outside of it"),
    ):
        planned(batch())
    with parametrize.cached():
        assert_same(
            run_step(revolve.checkpointed(perceptron(), tight_plan(perceptron())), batch()),
            run_step(perceptron(), batch()),
        )
    assert_equal_steps(nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh()), batch())


class Renorm(nn.BatchNorm1d):
    """Reads its moving statistics in training, as batch renormalisation does."""

    def forward(self, x):
        y = (x - self.running_mean) * torch.rsqrt(self.running_var + 1)
        super().forward(x)
        return y


def test_norms_that_read_their_statistics_in_training():
    assert_equal_steps(perceptron(lambda: Renorm(16)), batch(), steps=3)


def test_hooks_that_read_statistics():
    """As DeepInversion's regulariser does."""

    def look(module, inputs, output):
        return output * module.running_var.detach().clone().sqrt() + module.running_mean.detach().clone()

    model = perceptron(lambda: nn.BatchNorm1d(16))
    for layer in model:
        if isinstance(layer, nn.BatchNorm1d):
            layer.register_forward_hook(look)
    assert_equal_steps(model, batch(), steps=3)


def test_one_norm_in_two_stages_that_reads_its_statistics():
    norm = Renorm(16)
    model = nn.Sequential(nn.Linear(16, 16), norm, nn.Tanh(), nn.Linear(16, 16), norm, nn.Tanh(), nn.Linear(16, 16))
    assert_equal_steps(model, batch(), steps=3)
