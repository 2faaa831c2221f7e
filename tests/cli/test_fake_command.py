"""``revolve-plan model --fake``."""

import json

import torch

from revolve.schedules import Plan


def test_a_plan_without_running(invoke, monkeypatch):
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda tensor, **_: check_absent(tensor))
    result = invoke("model", "mlp", "--fake", "--device", "odroid-xu4", "--fraction", 0.6, "--json")
    assert result.exit_code == 0, result.stderr
    plan = Plan.from_json(json.loads(result.stdout))
    assert plan.peak <= plan.budget
    assert "odroid-xu4" in plan.chain.origin


def check_absent(tensor):
    assert tensor.is_meta


def test_tables_say_that_nothing_was_measured(invoke):
    result = invoke("model", "mlp", "--fake")
    assert result.exit_code == 0, result.stderr
    assert "sizes counted without running" in result.stdout
    assert "in reserve" in result.stdout


def test_a_share_of_the_device_that_is_not_there(invoke):
    arguments = ("model", "mlp", "--fake", "--device", "raspberry-pi-5", "--budget", "50%", "--json")
    budget = json.loads(invoke(*arguments).stdout)["budget"]
    assert 0.49 * 8 * 2**30 < budget < 4 * 2**30


def test_a_share_of_no_device(invoke):
    result = invoke("model", "mlp", "--fake", "--budget", "50%")
    assert result.exit_code == 2
    assert "no device is known" in result.stderr


def test_a_device_needs_fake(invoke):
    result = invoke("model", "mlp", "--device", "h100")
    assert result.exit_code == 2
    assert "add --fake" in result.stderr


def test_a_device_that_is_not_described(invoke):
    result = invoke("model", "mlp", "--fake", "--device", "abacus")
    assert result.exit_code == 2
    assert "'abacus' is not described" in result.stderr
