"""What stands between stages: tuples, dicts, views, integers, complex and sparse tensors, in-place stages."""

from __future__ import annotations

import pytest
import torch
from steps import assert_equal_steps, assert_same, batch, perceptron, run_step, square
from torch import nn

import revolve


class Apply(nn.Module):
    """A function as a module, with a linear layer to use."""

    def __init__(self, function):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.function = function

    def forward(self, x):
        return self.function(self.linear, x)


def apply_all(*functions):
    torch.manual_seed(0)
    return nn.Sequential(*map(Apply, functions))


TUPLES = apply_all(
    lambda linear, x: (linear(x).tanh(), x.sin(), "label", 3),
    lambda linear, v: (linear(v[0]) * v[1], v[0].sin(), v[2], v[3] + 1),
    lambda linear, v: [linear(v[0]).exp(), (v[1] * v[3], None)],
    lambda linear, v: linear(v[0]) + v[1][0].cos(),
)
DICTS = apply_all(
    lambda linear, x: {"x": linear(x).tanh(), "mask": x > 0, "names": ["a", "b"]},
    lambda linear, v: {**v, "x": linear(v["x"]).sin() * v["mask"], "mask": v["mask"].logical_not()},
    lambda linear, v: (linear(v["x"]).exp() * v["mask"]).sum(1),
)
PARTLY_DETACHED = apply_all(
    lambda linear, x: (linear(x).tanh(), linear(x).detach().sin()),
    lambda linear, v: (linear(v[0]).sin(), v[1] * 2),
    lambda linear, v: linear(v[0]) * v[1],
)
VIEWS = apply_all(
    lambda linear, x: linear(x).sin().t(),
    lambda linear, x: linear(x.t()).exp()[2:, ::2],
    lambda linear, x: linear(torch.cat([x, x], 1)).mean(0, keepdim=True).expand(4, 16),
    lambda linear, x: linear(x).view(2, 32).tanh(),
)
INPLACE_INSIDE = apply_all(*[lambda linear, x: linear(x).mul_(2).add_(1).tanh_()] * 4)


@pytest.mark.parametrize(
    "model",
    [TUPLES, DICTS, PARTLY_DETACHED, VIEWS, INPLACE_INSIDE],
    ids=["tuple", "dict", "detached", "view", "inplace"],
)
def test_boundaries(model):
    assert_equal_steps(model, batch())
    assert_equal_steps(model, batch().requires_grad_())
    frontier = revolve.solve(revolve.measure(model, batch()))
    for peak in frontier.peaks:
        revolve.checkpointed(model, frontier.plan(int(peak)))
        assert revolve.verify(model, batch(), repeats=1).exact


def test_inputs_in_tuples_and_dicts():
    model = apply_all(lambda linear, v: linear(v["x"][0]).sin() * v["x"][1], *[lambda linear, x: linear(x).exp()] * 3)
    assert_equal_steps(model, {"x": (batch(), 3), "unused": None})


@pytest.mark.parametrize("sparse", [False, True])
def test_integer_input(sparse):
    model = nn.Sequential(nn.Embedding(20, 16, sparse=sparse), *perceptron())
    x = torch.arange(8).reshape(2, 4)
    frontier = revolve.solve(revolve.measure(model, x))
    assert not frontier.chain.input_grad
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    report = revolve.verify(model, x, repeats=1)
    assert report.exact
    assert report.measured_peak <= report.predicted_peak
    if not sparse:
        assert_equal_steps(model, x)


def test_complex_activations():
    model = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(16, 16, dtype=torch.cfloat), nn.Tanh())))
    x = torch.complex(batch(), batch(seed=2))
    frontier = revolve.solve(revolve.measure(model, x))
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    assert revolve.verify(model, x, repeats=1).exact
    revolve.restore(model)
    assert_equal_steps(model, x, loss=lambda y: y.abs().square().mean())


def test_a_sparse_buffer():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("edges", torch.eye(8).roll(1, 0).to_sparse())
            self.linear = nn.Linear(16, 16)

        def forward(self, x):
            return torch.sparse.mm(self.edges, self.linear(x)).tanh()

    model = nn.Sequential(*(Graph() for _ in range(4)))
    frontier = revolve.solve(revolve.measure(model, batch()))
    plain = run_step_without_buffers(model)
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    assert all(torch.equal(a, b) for a, b in zip(run_step_without_buffers(model), plain, strict=True))


def run_step_without_buffers(model):
    model.zero_grad()
    square(model(batch())).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    assert_equal_steps(perceptron(lambda: nn.Dropout(0.3)).to(dtype), batch().to(dtype))


def test_functions_that_cannot_be_separated_are_glued():
    model = nn.Sequential(
        nn.Linear(16, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(inplace=True),
        nn.Unflatten(1, (4, 4)),
        nn.Flatten(),
        nn.Identity(),
        nn.Linear(16, 16),
        nn.Dropout(0.3, inplace=True),
        nn.Linear(16, 16),
    )
    chain = revolve.measure(model, batch())
    assert [stage.name for stage in chain.stages] == ["0", "1+2+3+4+5", "6+7", "8"]
    frontier = revolve.solve(chain)
    plain = run_step(model, batch())
    for peak in frontier.peaks:
        torch.manual_seed(0)
        revolve.checkpointed(model, frontier.plan(int(peak)))
        assert revolve.verify(model, batch(), repeats=1).exact
    assert plain.output.shape == (8, 16)


def test_a_view_of_the_input_joins_what_follows():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Sigmoid(), nn.Linear(16, 4))
    x = batch().reshape(8, 4, 4)
    chain = revolve.measure(model, x)
    assert [stage.name for stage in chain.stages] == ["0+1", "2", "3"]
    plain = run_step(model, x)
    frontier = revolve.solve(chain)
    assert_same(run_step(revolve.checkpointed(model, frontier.plan(frontier.smallest)), x), plain)
