import json

import pytest

from revolve.schedules import Chain, Plan, simulate, solve


def test_plan_json_and_file_are_the_solver_plan(invoke, chain, chain_file, tmp_path):
    budget = int(solve(chain).peaks[4])
    saved = tmp_path / "plan.json"
    result = invoke("chain", chain_file, "--budget", budget, "--save", saved, "--json")
    assert result.exit_code == 0
    assert Plan.from_json(json.loads(result.stdout)) == Plan.load(saved) == solve(chain).plan(budget)


def test_tables_for_people(invoke, chain_file):
    result = invoke("chain", chain_file, "--fraction", 0.5)
    assert result.exit_code == 0
    assert all(len(line) <= 100 for line in result.stdout.splitlines())
    for words in ("stage 11", "recomputed", "stored", "predicted peak", "recompute ratio"):
        assert words in result.stdout


def test_fraction_is_of_the_plain_peak(invoke, chain, chain_file):
    document = json.loads(invoke("chain", chain_file, "--fraction", 0.5, "--json").stdout)
    plain = [["save", i] for i in range(12)] + [["loss"]] + [["backward", i] for i in reversed(range(12))]
    assert document["budget"] == simulate(chain, plain).peak // 2


def test_overhead_is_of_the_plain_makespan(invoke, chain, chain_file):
    for overhead in ("0.1", "10%"):
        document = json.loads(invoke("chain", chain_file, "--overhead", overhead, "--json").stdout)
        assert Plan.from_json(document) == solve(chain).plan(overhead=0.1)
        assert document["makespan"] <= 1.1 * document["plain_makespan"]


def test_tolerances(invoke, chain, chain_file):
    for text, tolerance in (("auto", 0.0), ("0.5", 0.5)):
        document = json.loads(invoke("chain", chain_file, "--fraction", 0.5, "--tolerance", text, "--json").stdout)
        assert document["tolerance"] == tolerance


def test_without_a_budget_the_frontier_is_shown(invoke, chain, chain_file):
    output = invoke("chain", chain_file).stdout
    assert str(solve(chain).smallest) in output
    assert str(solve(chain).knee) in output
    for words in ("smallest", "knee", "plain", "--budget", "--overhead"):
        assert words in output


def test_infeasible_budget_is_exit_code_3(invoke, chain, chain_file):
    for flags in ([], ["--json"]):
        line = invoke.fail("chain", chain_file, "--budget", "1kB", *flags, code=3)
        assert str(solve(chain).smallest) in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "many"], "'many'"),
        (["--budget", "-5"], "'-5'"),
        (["--budget", "50%"], "no device"),
        (["--budget", "50%"], "--fraction"),
        (["--overhead", "-5%"], "'-5%'"),
        (["--overhead", "0.1", "--fraction", "0.5"], "--fraction and --overhead"),
        (["--overhead", "0.1", "--budget", "20MB"], "--budget and --overhead"),
        (["--budget", "20MB", "--fraction", "0.5"], "--fraction"),
        (["--fraction", "nan"], "nan"),
        (["--fraction", "0"], "0.0"),
        (["--json"], "--budget"),
        (["--save", "plan.json"], "--budget"),
        (["--budget", "20MB", "--save", "/no/such/folder/plan.json"], "/no/such/folder"),
        (["--budget", "20MB", "--save", "."], "folder"),
        (["--budget", "20MB", "--out", "plan.bmp"], ".bmp"),
        (["--budget", "20MB", "--format", "zip"], "'zip'"),
        (["--budget", "20MB", "--tolerance", "-1"], "-1"),
        (["--budget", "20MB", "--tolerance", "inf"], "inf"),
        (["--budget", "20MB", "--tolerance", "little"], "little"),
    ],
)
def test_bad_options(invoke, chain_file, arguments, words):
    assert words in invoke.fail("chain", chain_file, *arguments)


@pytest.mark.parametrize(
    ("field", "value", "stage"),
    [
        ("forward", float("nan"), 3),
        ("saved_bytes", -1, 3),
        ("saved_bytes", "12", 3),
        ("forward", None, 3),
        ("sizes", 1, 3),
        ("stages", [], None),
        ("format", "revolve.chain/9", None),
        ("loss_time", float("inf"), None),
    ],
)
def test_bad_chains_name_file_and_field(invoke, altered, field, value, stage):
    line = invoke.fail("chain", altered(field, value, stage), "--budget", "20MB")
    assert "altered.json" in line
    assert field in line


def test_missing_field_and_files(invoke, chain, tmp_path):
    document = chain.to_json()
    del document["stages"][2]["saved_bytes"]
    (tmp_path / "short.json").write_text(json.dumps(document))
    assert "'saved_bytes' is missing" in invoke.fail("chain", tmp_path / "short.json")
    assert "No such file" in invoke.fail("chain", tmp_path / "absent.json")
    (tmp_path / "noise.json").write_bytes(b"\xff\xfe\x00")
    assert "not a JSON file" in invoke.fail("chain", tmp_path / "noise.json")


def test_plot_writes_a_picture(invoke, plan_file, tmp_path):
    out = tmp_path / "plan.svg"
    assert str(out) in invoke("plot", plan_file, "--out", out).stdout
    document = json.loads(invoke("plot", plan_file, "--out", tmp_path / "plan.pdf", "--json").stdout)
    assert document["peak"] == Plan.load(plan_file).peak
    assert b"<svg" in out.read_bytes()


def test_plot_bad_input(invoke, plan_file, chain_file, tmp_path):
    assert ".tiff" in invoke.fail("plot", plan_file, "--out", tmp_path / "plan.tiff")
    assert "revolve.plan/1" in invoke.fail("plot", chain_file, "--out", tmp_path / "plan.png")
    assert "--out" in invoke.fail("plot", plan_file)
    document = json.loads(plan_file.read_text())
    document["actions"].pop()
    plan_file.write_text(json.dumps(document))
    assert "ends too early" in invoke.fail("plot", plan_file, "--out", tmp_path / "plan.png")
    assert not (tmp_path / "plan.png").exists()


def test_hostile_names_are_only_names(invoke, tmp_path):
    stage = {"forward": 1, "backward": 1, "output_bytes": 10, "saved_bytes": 1}
    names = ["[red]x[/red]", "$\\frac{1}", "[/]", "a\nb", "\u2603"]
    stages = [{"name": name, **stage} for name in names]
    document = {"format": "revolve.chain/1", "name": "[/b] $x", "input_bytes": 1, "stages": stages}
    Chain.from_json(document).save(tmp_path / "chain.json")
    result = invoke("chain", tmp_path / "chain.json", "--fraction", 1, "--out", tmp_path / "plan.png")
    assert result.exit_code == 0
    assert "[red]x[/red]" in result.stdout
    assert "[/b] $x" in result.stdout
