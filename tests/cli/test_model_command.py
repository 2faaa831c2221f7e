import json
import sys

import pytest

from revolve.schedules import Chain, Plan, solve

SMALL = ("nets:mlp", "--input", "32,64")


def test_model_plans_and_keeps_stdout_pure(invoke, nets):
    result = invoke("model", *SMALL, "--fraction", 0.8, "--json", "--save", "plan.json", "--save-chain", "chain.json")
    assert result.exit_code == 0, result.stderr
    plan = Plan.from_json(json.loads(result.stdout))
    assert plan == Plan.load(nets / "plan.json")
    assert plan.chain == Chain.load(nets / "chain.json")
    assert plan.peak <= plan.budget
    assert plan.chain.name == "nets:mlp"
    assert "imported" in result.stderr


def test_model_without_a_budget_shows_the_frontier(invoke, nets):
    result = invoke("model", *SMALL)
    assert result.exit_code == 0, result.stderr
    assert "Frontier" in result.stdout


def test_share_of_free_memory(invoke, nets):
    result = invoke("model", *SMALL, "--budget", "50%", "--json")
    assert json.loads(result.stdout)["budget"] > 1_000_000


def test_overhead_chooses_the_budget(invoke, nets):
    document = json.loads(invoke("model", *SMALL, "--overhead", "30%", "--json").stdout)
    assert document["makespan"] <= 1.3 * document["plain_makespan"]
    assert document["budget"] == document["peak"] <= document["plain_peak"]


def test_infeasible_model_still_leaves_its_chain(invoke, nets):
    result = invoke("model", *SMALL, "--budget", "10B", "--json", "--save-chain", "chain.json")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert len(Chain.load(nets / "chain.json")) > 1


def test_verify_reports_equality_and_peaks(invoke, nets):
    result = invoke("verify", *SMALL, "--fraction", 0.85, "--repeats", 1, "--save", "plan.json", "--out", "plan.png")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("bit-identical") == 5
    assert (nets / "plan.png").exists()
    again = invoke("verify", *SMALL, "--plan", "plan.json", "--repeats", 1, "--json")
    document = json.loads(again.stdout)
    assert again.exit_code == 0
    assert document["exact"] is True
    assert document["measured_peak"] <= document["budget"]


CALLED = """
from torch import nn

class Called(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(5))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu() + x
        return x
"""


def test_formats_of_a_model_that_runs_its_stages_itself(invoke, nets):
    (nets / "called.py").write_text(CALLED)
    network = ("called:Called", "--input", "256,64")
    result = invoke("model", *network, "--format", "disk", "--save-chain", "chain.json")
    assert result.exit_code == 0, result.output
    chain = Chain.load(nets / "chain.json")
    budget = solve(chain, ("disk",)).smallest + 20_000
    assert budget < solve(chain).smallest
    result = invoke("verify", *network, "--format", "disk", "--budget", budget, "--repeats", 1, "--save", "plan.json")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("bit-identical") == 5
    assert "disk" in Plan.load(nets / "plan.json").formats()


def test_verify_fails_where_the_step_is_not_exact(invoke, nets, monkeypatch):
    from dataclasses import replace

    from revolve.runtime import verification

    honest = verification.verify
    monkeypatch.setattr(
        verification,
        "verify",
        lambda *a, **k: replace(honest(*a, **k), gradients_equal=False, differences=("gradient of 0.weight",)),
    )
    result = invoke("verify", *SMALL, "--fraction", 0.9, "--repeats", 1)
    assert result.exit_code == 1
    assert "DIFFERS" in result.stdout
    assert "gradient of 0.weight" in result.stdout


def test_verify_fails_above_the_budget(invoke, nets, monkeypatch):
    from dataclasses import replace

    from revolve.runtime import verification

    honest = verification.verify
    monkeypatch.setattr(verification, "verify", lambda *a, **k: replace(honest(*a, **k), measured_peak=10**9))
    result = invoke("verify", *SMALL, "--fraction", 0.9, "--repeats", 1)
    assert result.exit_code == 1
    assert "EXCEEDED" in result.stdout


def test_plan_of_another_model_is_refused(invoke, nets, plan_file):
    result = invoke("verify", *SMALL, "--plan", plan_file)
    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resnet"], "resnet50"),
        (["nets"], "package.module:callable"),
        (["nets:mlp"], "--input"),
        (["nets:mlp", "--input", "32,x"], "'32,x'"),
        (["nets:mlp", "--input", "32,0"], "'32,0'"),
        (["nets:mlp", "--input", "32,63"], "32, 63"),
        (["nets:mlp", "--input", "32,64", "--dtype", "float33"], "float33"),
        (["nets:mlp", "--input", "32,64", "--dtype", "int64"], "cannot be run"),
        (["nets:mlp", "--input", "9999999999,9999999999"], "batch"),
        (["nets:absent", "--input", "1"], "'absent'"),
        (["nets:", "--input", "1"], "incomplete"),
        (["nets:number", "--input", "1"], "returned int"),
        (["nets:constant", "--input", "1"], "int"),
        (["nets:failing", "--input", "1"], "ValueError: no weights for this model"),
        (["broken:mlp", "--input", "1"], "importing 'broken' failed: RuntimeError: half a module"),
        (["leaving:mlp", "--input", "1"], "importing 'leaving' failed"),
        (["no_such_module:mlp", "--input", "1"], "no_such_module"),
        (["nets:mlp", "--input", "32,64", "--budget", "lots"], "'lots'"),
        (["nets:mlp", "--input", "32,64", "--overhead", "lots"], "'lots'"),
        (["nets:mlp", "--input", "32,64", "--save-chain", "/no/such/folder/chain.json"], "/no/such/folder"),
    ],
)
def test_bad_models(invoke, nets, arguments, words):
    assert words in invoke.fail("model", *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--plan"),
        (["--plan", "plan.json", "--budget", "1MB"], "--plan"),
        (["--plan", "plan.json", "--overhead", "0.1"], "--plan"),
        (["--overhead", "0.1", "--fraction", "0.5"], "--fraction and --overhead"),
        (["--plan", "absent.json"], "absent.json"),
        (["--fraction", "0.5", "--repeats", "0"], "--repeats"),
    ],
)
def test_bad_verify_options(invoke, nets, arguments, words):
    assert words in invoke.fail("verify", *SMALL, *arguments)


def test_instances_are_models_too(invoke, nets):
    result = invoke("model", "nets:instance", "--input", "2,3", "--fraction", 1, "--json")
    assert result.exit_code == 0, result.stderr
    assert len(json.loads(result.stdout)["chain"]["stages"]) == 1
    assert "nets" in sys.modules
