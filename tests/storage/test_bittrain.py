"""The benchmark of BitTrain's experiment, on a network whose saved bytes can be counted by hand."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from revolve.storage.pruning import prune_relus

ROOT = Path(__file__).parents[2]
PIXELS = 2 * 8 * 16 * 16  # of two pictures with 8 channels


@pytest.fixture(scope="module")
def bench():
    return runpy.run_path(str(ROOT / "benchmarks" / "bittrain.py"))


def convolutions(relu):
    torch.manual_seed(0)
    layers = []
    for inputs in (3, 8):
        layers += [nn.Conv2d(inputs, 8, 3, padding=1), nn.BatchNorm2d(8), relu()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 16 * 16, 5))


def batches(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([1, 3])


@pytest.mark.parametrize(("relu", "inputs"), [(nn.ReLU, 0), (nn.ReLU6, 2)])
def test_saved_storages_are_counted_once_and_named(bench, relu, inputs):
    model = convolutions(relu)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    saved = bench["inspect_saved"](model, batches(0)[0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    dense = 4 * PIXELS
    statistics = 2 * 2 * 8 * 4  # mean and deviation of each channel
    counts = {"ReLU outputs": 2, "BatchNorm inputs": 2, "ReLU6 inputs": inputs}
    assert saved.sources == {**{name: n * dense for name, n in counts.items()}, "other": statistics}
    assert saved.dense == sum(saved.sources.values())
    assert 0.4 < saved.zeros < 0.6
    values = round((1 - saved.zeros) * 2 * PIXELS)
    forms = 4 * values + 2 * PIXELS // 8  # and headers and padding
    assert saved.bitmap - (saved.dense - 2 * dense) == pytest.approx(forms, abs=2 * 100)


def test_one_row_of_the_table(bench):
    model = prune_relus(convolutions(nn.ReLU), 0.7)
    bench["train"](model, batches, range(2))
    assert all(parameter.grad is not None for parameter in model.parameters())
    found = bench["examine"](model, batches, range(2, 4), 1)
    assert found.saved.zeros == pytest.approx(0.7, abs=0.03)
    assert found.equal
    reports = (found.bittrain, found.least, found.same)
    assert all(report.exact and report.kept for report in reports)
    assert found.least.measured_peak <= found.bittrain.measured_peak < found.bittrain.plain_peak
    assert found.same.measured_peak <= found.bittrain.measured_peak
    assert {action[2] for action in found.bittrain.plan.to_json()["actions"] if action[0] == "save"} == {"bitmap"}
    row = bench["describe"]("tiny", 0.7, found)
    assert len(row) == len(bench["HEADINGS"])
    assert row[:2] == ("tiny", "pruned, 70%")
    assert row[11] == "yes"


def test_training_that_differs_is_noticed(bench):
    model = convolutions(nn.ReLU)
    chain = bench["revolve"].measure(model, batches(0)[0], formats=("bitmap",))
    plan = bench["in_bitmap"](chain)
    assert bench["equal_training"](model, plan, batches, range(2))[0]
    lossy = bench["revolve"].measure(model, batches(0)[0], formats=("int4",))
    actions = [[*action[:2], "int4"] if action[0] == "save" else action for action in plan.to_json()["actions"]]
    plan = bench["revolve"].Plan.from_actions(lossy, actions)
    assert not bench["equal_training"](model, plan, batches, range(2))[0]
