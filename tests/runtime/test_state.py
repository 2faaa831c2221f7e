"""Rule [7] of the executor: random numbers, buffers, training flags and autocast of the first run."""

from __future__ import annotations

import pytest
import torch
from steps import assert_equal_steps, assert_same, batch, perceptron, run_step, square, twins
from torch import nn

from revolve.runtime.exceptions import RecomputeError


class MovingMean(nn.Module):
    """Centres by a moving mean in a buffer, changed in place or replaced by a new tensor."""

    def __init__(self, *, replace=False, lazy=False):
        super().__init__()
        self.replace = replace
        self.register_buffer("mean", None if lazy else torch.zeros(16))

    def forward(self, x):
        new = x.detach().mean(0)
        if self.mean is None:
            self.mean = new
        elif self.replace:
            self.mean = 0.9 * self.mean + 0.1 * new
        else:
            self.mean.mul_(0.9).add_(new, alpha=0.1)
        return (x - self.mean.clone()).sin()


def spectral(old):
    normalise = nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm
    return lambda: normalise(nn.Linear(16, 16))


LAYERS = {
    "dropout": [lambda: nn.Dropout(0.4)],
    "batch norm": [lambda: nn.BatchNorm1d(16)],
    "cumulative batch norm": [lambda: nn.BatchNorm1d(16, momentum=None)],
    "batch norm without statistics": [lambda: nn.BatchNorm1d(16, track_running_stats=False)],
    "spectral norm": [spectral(old=False)],
    "old spectral norm": [spectral(old=True)],
    "weight norm": [lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))],
    "moving mean": [MovingMean],
    "replaced buffer": [lambda: MovingMean(replace=True)],
    "lazy buffer": [lambda: MovingMean(replace=True, lazy=True)],
    "all of them": [lambda: nn.Dropout(0.4), lambda: nn.BatchNorm1d(16), MovingMean, lambda: nn.RReLU()],
}


@pytest.mark.parametrize("name", LAYERS)
def test_steps_equal_plain_ones(name):
    assert_equal_steps(perceptron(*LAYERS[name], depth=4), batch(), steps=3)


@pytest.mark.parametrize("first", ["zeros", "momentum"])
def test_statistics_that_the_first_step_leaves_as_they_are(first):
    """A mean of exactly 0, or momentum 0 in the first step: the norm is known by its count."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16), nn.Tanh()) for _ in range(4)]
    planned, plain = twins(nn.Sequential(*layers))
    for turn in range(3):
        for model in (planned, plain):
            for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm1d)):
                norm.momentum = 0.1 if turn or first == "zeros" else 0.0
        x = batch(seed=turn) * float(bool(turn) or first != "zeros")
        assert_same(run_step(planned, x), run_step(plain, x))


def test_statistics_that_a_forward_of_ones_own_reads():
    """A norm whose forward is replaced on the instance may read what it does not update."""
    planned, _ = twins(perceptron(lambda: nn.BatchNorm1d(16)))
    norms = [module for module in planned.modules() if isinstance(module, nn.BatchNorm1d)]
    for norm in norms:
        norm.forward = lambda x, norm=norm: x - norm.running_mean
    loss = square(planned(batch()))
    with torch.no_grad():
        norms[1].running_mean.add_(1)
    with pytest.raises(RecomputeError, match="running_mean"):
        loss.backward()


def test_random_numbers_between_forward_and_backward():
    planned, plain = twins(perceptron(lambda: nn.Dropout(0.4)))
    drawn = []
    for model in (planned, plain):
        torch.manual_seed(3)
        output = model(batch())
        drawn.append(torch.rand(3))
        square(output).backward()
        drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1], drawn[3])
    assert torch.equal(planned[0].weight.grad, plain[0].weight.grad)


def test_random_numbers_drawn_by_tensor_hooks():
    planned, plain = twins(perceptron(lambda: nn.Dropout(0.4)))
    for model in (planned, plain):
        model[3].weight.register_hook(lambda gradient: gradient + torch.randn_like(gradient))
    torch.manual_seed(3)
    expected = run_step(plain, batch())
    torch.manual_seed(3)
    assert_same(run_step(planned, batch()), expected)


def test_buffers_changed_by_another_forward_before_backward():
    planned, plain = twins(perceptron(MovingMean))
    for model in (planned, plain):
        loss = square(model(batch()))
        with torch.no_grad():
            model(batch(seed=9))
        loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(planned.buffers(), plain.buffers(), strict=True))
    assert torch.equal(planned[0].weight.grad, plain[0].weight.grad)


def test_eval_between_forward_and_backward():
    planned, plain = twins(perceptron(lambda: nn.Dropout(0.4), lambda: nn.BatchNorm1d(16)))
    for model in (planned, plain):
        torch.manual_seed(3)
        loss = square(model(batch()))
        model.eval()
        loss.backward()
        assert not any(module.training for module in model.modules())
    assert torch.equal(planned[0].weight.grad, plain[0].weight.grad)
    assert all(torch.equal(a, b) for a, b in zip(planned.buffers(), plain.buffers(), strict=True))


def test_one_norm_in_eval_mode():
    model = perceptron(lambda: nn.BatchNorm1d(16))
    model[1].running_mean.add_(0.5)
    model[1].eval()
    assert_equal_steps(model, batch())


def test_backward_under_no_grad():
    planned, plain = twins(perceptron())
    for model in (planned, plain):
        loss = square(model(batch()))
        with torch.no_grad():
            loss.backward()
    assert torch.equal(planned[0].weight.grad, plain[0].weight.grad)


@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_of_the_first_run(enabled):
    planned, plain = twins(perceptron(lambda: nn.LayerNorm(16), lambda: nn.Dropout(0.4)))
    for model in (planned, plain):
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            output = model(batch())
        assert output.dtype == (torch.bfloat16 if enabled else torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not enabled):
            pass
        output.float().square().mean().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(planned.parameters(), plain.parameters(), strict=True))
    assert not torch.is_autocast_enabled("cpu")


def test_a_loss_beside_the_output():
    """A stage leaves part of the loss in an attribute, as mixtures of experts do."""

    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(16, 16)

        def forward(self, x):
            y = self.body(x).tanh()
            self.loss = y.square().mean()
            return y

    planned, plain = twins(nn.Sequential(*(Auxiliary() for _ in range(4))))
    for model in (planned, plain):
        output = model(batch())
        (square(output) + sum(stage.loss for stage in model)).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(planned.parameters(), plain.parameters(), strict=True))
