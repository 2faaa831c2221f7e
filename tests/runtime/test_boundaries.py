"""What stands between stages: tuples, dicts, views, integers, complex and sparse tensors, in-place stages."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import pytest
import torch
from layers import Apply
from steps import assert_equal_steps, assert_same, batch, perceptron, run_step, square, twins
from torch import nn

import revolve


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


@dataclass
class State:
    x: torch.Tensor
    mask: torch.Tensor | None
    label: str = "state"


@dataclass(frozen=True)
class Frozen:
    parts: tuple[torch.Tensor, ...]
    nothing: None = None


DATACLASSES = apply_all(
    lambda linear, x: State(linear(x).tanh(), x > 0),
    lambda linear, v: State(linear(v.x).sin() * v.mask, None, v.label + "!"),
    lambda linear, v: Frozen((linear(v.x).exp(), v.x.cos())),
    lambda linear, v: linear(v.parts[0]) + v.parts[1],
)


def test_dataclasses():
    assert_equal_steps(DATACLASSES, batch())
    assert_equal_steps(DATACLASSES, batch().requires_grad_())
    frontier = revolve.solve(revolve.measure(DATACLASSES, batch()))
    assert len(frontier.chain) == 4
    revolve.checkpointed(DATACLASSES, frontier.plan(frontier.smallest))
    report = revolve.verify(DATACLASSES, batch(), repeats=1)
    assert report.exact
    assert report.measured_peak <= report.predicted_peak


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(16, 16, dropout=0.2, num_layers=2)

    def forward(self, sequence):
        return self.lstm(sequence)[0]


def test_packed_sequences():
    torch.manual_seed(0)
    model = nn.Sequential(Packed(), Packed(), Packed(), Apply(lambda linear, v: linear(v.data)))
    x = nn.utils.rnn.pack_sequence([batch(5), batch(3), batch(2)])
    assert_equal_steps(model, x)


def with_mask(function):
    return lambda linear, v: {"x": function(linear, v), "mask": v["mask"], "context": v["context"]}


@pytest.mark.parametrize("context_grad", [False, True])
@pytest.mark.parametrize("made", [False, True])
def test_side_inputs_of_many_stages(context_grad, made):
    """Masks and contexts that every stage passes on, from the caller or made by the first stage."""
    steps = [with_mask(lambda linear, v: (linear(v["x"]).tanh() * v["mask"] + v["context"]).sin())] * 5
    last = lambda linear, v: linear(v["x"]) + v["context"]  # noqa: E731
    first = lambda linear, x: {"x": x.sin(), "mask": x > 0, "context": linear(x).cos()}  # noqa: E731
    if made:
        model, x = apply_all(first, *steps, last), batch().requires_grad_(context_grad)
    else:
        model = apply_all(*steps, last)
        x = {"x": batch(), "mask": batch() > 0, "context": batch(seed=3).requires_grad_(context_grad)}
    frontier = revolve.solve(revolve.measure(model, x))
    assert len(frontier.chain) == len(model)
    for peak in frontier.peaks:
        revolve.checkpointed(model, frontier.plan(int(peak)))
        report = revolve.verify(model, x, repeats=1)
        assert report.exact, report.differences
        assert report.measured_peak <= report.predicted_peak
    if made:
        assert_equal_steps(revolve.restore(model), x)


def test_tuples_leave_no_reference_cycles():
    planned, _ = twins(TUPLES)
    square(planned(batch())).backward()
    gc.collect()
    gc.disable()
    try:
        square(planned(batch())).backward()
        assert gc.collect() == 0
    finally:
        gc.enable()
