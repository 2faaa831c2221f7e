"""Measuring without running: the sizes of real measurement, nothing touched, nothing allocated."""

from __future__ import annotations

import copy

import pytest
import torch
from steps import CPU
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

import revolve
from revolve.cli.networks import mobilenetv2, transformer
from revolve.runtime.allocations import trace_allocations
from revolve.runtime.exceptions import MeasurementError
from revolve.runtime.fake import RESERVE

COUNTED = ("output_bytes", "saved_bytes", "saves_input", "saves_output", "grad_bytes")
PEAKS = ("forward_extra", "save_extra", "rebuild_extra", "backward_extra")


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def convolutions():
    layers = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    layers += [nn.Conv2d(16, 32, 3, 2, 1), nn.GELU(), nn.Dropout(0.1), nn.MaxPool2d(2), nn.Conv2d(32, 32, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))


def linears():
    return nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.LayerNorm(256), nn.Linear(256, 512), nn.Softmax(-1))


class Last(nn.Module):
    def forward(self, x):
        return x[0][:, -1]


def recurrent():
    return nn.Sequential(nn.Embedding(50, 32), nn.GRU(32, 64, batch_first=True), Last(), nn.Linear(64, 50))


MODELS = {
    "convolutions": (convolutions, normal(4, 3, 32, 32)),
    "gradient of the input": (convolutions, normal(4, 3, 32, 32).requires_grad_()),
    "linears": (linears, normal(64, 64)),
    "mobilenet": (lambda: mobilenetv2(10), normal(2, 3, 64, 64)),
    "recurrent": (recurrent, torch.arange(80).reshape(4, 20) % 50),
    "transformer": (lambda: transformer(64, 3, 4), normal(4, 32, 64)),
    "no dropout": (lambda: transformer(64, 3, 4, 0.0), normal(4, 32, 64)),
}


def build(name):
    make, sample = MODELS[name]
    torch.manual_seed(0)
    return make(), sample


@pytest.mark.parametrize("name", MODELS)
def test_counted_sizes_are_the_measured_ones(name):
    model, sample = build(name)
    real, fake = revolve.measure(model, sample), revolve.measure(model, sample, mode="fake")
    assert [stage.name for stage in fake.stages] == [stage.name for stage in real.stages]
    for field in COUNTED:
        assert [getattr(s, field) for s in fake.stages] == [getattr(s, field) for s in real.stages], field
    assert (fake.input_bytes, fake.input_grad) == (real.input_bytes, real.input_grad)


@pytest.mark.parametrize("name", MODELS)
def test_peaks_are_close_and_budgets_kept(name):
    model, sample = build(name)
    real = revolve.solve(revolve.measure(model, sample))
    fake = revolve.solve(revolve.measure(model, sample, mode="fake"))
    assert 0.99 * real.plain <= fake.plain <= 1.1 * real.plain
    assert 0.99 * real.smallest <= fake.smallest <= 1.1 * real.smallest
    for budget in (fake.smallest, (fake.smallest + fake.plain) // 2):
        revolve.checkpointed(model, fake.plan(budget))
        report = revolve.verify(model, sample, repeats=1)
        revolve.restore(model)
        assert report.exact
        assert report.kept


def test_gradients_that_exist_take_nothing():
    model, sample = build("linears")
    model(sample).sum().backward()
    fake = revolve.measure(model, sample, mode="fake")
    assert [stage.grad_bytes for stage in fake.stages] == [0] * len(fake)


def test_the_model_is_as_before():
    model, sample = build("mobilenet")
    model(sample).sum().backward()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    tables = [dict(t) for m in model.modules() for t in (vars(m), m._parameters, m._buffers)]
    gradients = [parameter.grad for parameter in model.parameters()]
    revolve.measure(model, sample, mode="fake")
    after = [t for m in model.modules() for t in (vars(m), m._parameters, m._buffers)]
    for before, now in zip(tables, after, strict=True):
        assert before.keys() == now.keys()
        assert all(before[key] is now[key] for key in before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is old for p, old in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), random)


def test_the_model_is_as_before_after_a_failure():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 4))
    with pytest.raises(MeasurementError, match="'1' cannot be run"):
        revolve.measure(model, normal(2, 4), mode="fake")
    assert not any(isinstance(parameter, FakeTensor) for parameter in model.parameters())
    assert model[0](normal(2, 4)).shape == (2, 4)


def test_weights_of_the_meta_device_are_planned_for_alike():
    model, sample = build("transformer")
    with torch.device("meta"):
        absent = transformer(64, 3, 4)
    assert revolve.measure(absent, sample.to("meta"), mode="fake") == revolve.measure(model, sample, mode="fake")
    assert all(parameter.is_meta for parameter in absent.parameters())


def test_shared_weights_stay_shared():
    model, sample = build("linears")
    with torch.device("meta"):
        absent = linears()
    absent[0].weight = nn.Parameter(torch.empty(512, 256, device="meta").T[:64].T[:256])
    model[0].weight = nn.Parameter(torch.zeros(512, 256).T[:64].T[:256])
    for twin in (model, absent):
        twin[3].bias = nn.Parameter(twin[0].weight.detach().flatten()[:512])
    real = revolve.measure(model, sample)
    fake = revolve.measure(absent, sample, mode="fake")
    assert [s.grad_bytes for s in fake.stages] == [s.grad_bytes for s in real.stages]


def test_nothing_is_allocated():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 4096))
    sample = torch.empty(4096, 4096, device="meta")
    with trace_allocations(CPU) as tracer:
        chain = revolve.measure(model, sample, mode="fake")
        tracer.mark()
    assert revolve.solve(chain).plain > 2**27
    assert tracer.phases[0].peak < 2**16


def test_times_are_those_of_the_device():
    model, sample = build("linears")
    quick = revolve.DeviceDescription("quick", {"float32": 1e12}, 1e12, 0, 0.0)
    slow = revolve.DeviceDescription("slow", {"float32": 1e10}, 1e10, 0, 0.0)
    first, second = (revolve.measure(model, sample, mode="fake", device=device) for device in (quick, slow))
    assert second.plain_makespan == pytest.approx(100 * first.plain_makespan, rel=0.05)
    # Reads input and weight, writes the output; the product of 64 x 64 and 64 x 256 takes less.
    assert first.stages[1].forward == pytest.approx(2 * 4 * 64 * 256 / 1e12, rel=0.01)
    assert "slow" in second.origin


def test_every_peak_has_the_reserve():
    model, sample = build("linears")
    fake = revolve.measure(model, sample, mode="fake")
    reserve = int(fake.origin.split(" bytes in reserve")[0].split()[-1])
    largest = max(stage.saved_bytes + stage.output_bytes for stage in fake.stages)
    assert reserve >= RESERVE * largest
    assert all(getattr(stage, name) >= reserve for stage in fake.stages for name in PEAKS)


class Choosing(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def test_a_stage_that_looks_at_values_is_named():
    model = nn.Sequential(nn.Linear(4, 4), Choosing(), nn.Linear(4, 4))
    with pytest.raises(MeasurementError, match=r"stage '1'.*values of tensors.*without mode='fake'"):
        revolve.measure(model, normal(2, 4), mode="fake")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "imaginary"}, "mode='imaginary'"),
        ({"device": "h100"}, "only 'fake' takes a device"),
        ({"mode": "fake", "device": "abacus"}, "'abacus' is not described; choose one of odroid-xu4"),
        ({"mode": "fake", "device": 5}, "device 5 is not described; choose one of odroid-xu4"),
        ({"mode": "fake", "formats": ("dense", "bitmap")}, "depends on values"),
    ],
)
def test_requests_that_cannot_be_met(arguments, message):
    model, sample = build("linears")
    with pytest.raises(revolve.RevolveError, match=message):
        revolve.measure(model, sample, **arguments)


def test_a_plan_remembers_where_its_sizes_are_from():
    model, sample = build("linears")
    chain = revolve.measure(model, sample, mode="fake", device="odroid-xu4")
    plan = revolve.solve(chain).plan("10MB")
    assert "odroid-xu4" in revolve.Plan.from_json(plan.to_json()).chain.origin
    assert "origin" not in revolve.measure(model, sample).to_json()
