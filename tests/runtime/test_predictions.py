"""The predicted peak is the measured one: never below, at most 3 % above, at every point of the frontier."""

from __future__ import annotations

import pytest
import torch
from layers import build
from steps import CPU, run_step
from torch import nn

import revolve
from revolve.runtime.allocations import trace_allocations


def convolutions(*last):
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    for width, stride in ((8, 1), (16, 2), (16, 1)):
        layers += [nn.Conv2d(8 if width == 8 or stride == 2 else 16, width, 3, stride, 1), nn.GELU(), nn.Dropout(0.1)]
    return nn.Sequential(*layers, *last)


def linears(*last):
    return nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Sigmoid(), nn.Linear(256, 512), *last)


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


IMAGES, ROWS = normal(8, 3, 48, 48), normal(128, 64)


class Wide(nn.Module):
    """Saves much more than its output, which it saves as well."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(64, 2048), nn.Linear(2048, 512)

    def forward(self, x):
        return self.down(self.up(x).tanh().exp()).softmax(-1)


def heavy_loss(output):
    return output.repeat(1, 12).exp().square().sum()


CASES = {
    "convolutions": (convolutions, IMAGES, None),
    "pooled": (lambda: convolutions(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)), IMAGES, None),
    "gradient of the input": (convolutions, IMAGES.clone().requires_grad_(), None),
    "softmax last": (lambda: linears(nn.Softmax(-1)), ROWS, None),
    "sigmoid last": (lambda: convolutions(nn.Sigmoid()), IMAGES, None),
    "sigmoid last, heavy loss": (lambda: linears(nn.Sigmoid()), ROWS, heavy_loss),
    "wide last, heavy loss": (lambda: nn.Sequential(*linears(nn.Linear(512, 64)), Wide()), ROWS, heavy_loss),
}


@pytest.mark.parametrize("name", CASES)
def test_every_point_of_the_frontier(name):
    build, x, loss = CASES[name]
    torch.manual_seed(0)
    model = build()
    frontier = revolve.solve(revolve.measure(model, x, loss))
    for peak in frontier.peaks:
        plan = frontier.plan(int(peak))
        revolve.checkpointed(model, plan)
        report = revolve.verify(model, x, loss, repeats=1)
        assert report.exact, report.differences
        assert report.kept
        assert 0.97 * plan.peak <= report.measured_peak <= plan.peak
        assert 0.97 * plan.plain_peak <= report.plain_peak <= plan.plain_peak


def test_gradients_that_exist_already():
    model = linears()
    run_step(model, ROWS)
    frontier = revolve.solve(revolve.measure(model, ROWS))
    assert not any(stage.grad_bytes for stage in frontier.chain.stages)
    for peak in frontier.peaks:
        revolve.checkpointed(model, frontier.plan(int(peak)))
        report = revolve.verify(model, ROWS, repeats=1)
        assert 0.97 * report.predicted_peak <= report.measured_peak <= report.predicted_peak


def test_autocast_is_never_underestimated():
    """The casts of parameters live until the autocast block ends, or as long as a stage is saved."""
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(5) for layer in (nn.Linear(64, 64), nn.Sigmoid())))
    x = normal(1024, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        frontier = revolve.solve(revolve.measure(model, x))
    for peak in frontier.peaks:
        revolve.checkpointed(model, frontier.plan(int(peak)))
        for _ in range(2):
            model.zero_grad()
            with trace_allocations(CPU) as tracer:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = 0.5 * model(x).square().mean()
                loss.backward()
                tracer.mark()
        assert tracer.phases[0].peak <= peak


def test_tensors_that_stages_leave_in_attributes():
    """Found by the fuzz test: the weight that the old spectral_norm computes is alive from forward to forward."""
    model, x = build(["codebook", "alpha dropout", "old spectral norm"]), normal(8, 16)
    frontier = revolve.solve(revolve.measure(model, x))
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    report = revolve.verify(model, x, repeats=1)
    assert report.exact
    assert report.kept, f"{report.measured_peak} bytes measured, {report.predicted_peak} predicted"
