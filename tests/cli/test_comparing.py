import json

import pytest

from revolve.schedules import Chain, compare, solve


def test_frontier_document(invoke, chain, chain_file):
    document = json.loads(invoke("frontier", chain_file, "--json").stdout)
    frontier = solve(chain)
    assert document == {
        "format": "revolve.frontier/1",
        "chain": "example",
        "length": 12,
        "tolerance": 0.0,
        "plain_makespan": chain.plain_makespan,
        "smallest": frontier.smallest,
        "knee": frontier.knee,
        "plain": frontier.plain,
        "peaks": frontier.peaks.tolist(),
        "makespans": frontier.makespans.tolist(),
    }


def test_frontier_table_and_picture(invoke, chain, chain_file, tmp_path):
    out = tmp_path / "curve.svg"
    result = invoke("frontier", chain_file, "--out", out)
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if "%" in line and line[0] != " "}
    frontier = solve(chain)
    for name in ("smallest", "knee", "plain"):
        assert str(getattr(frontier, name)) in rows[name]
    assert f"written: {out}" in result.stdout
    assert "<svg" in out.read_text()


def test_comparison_document(invoke, chain, chain_file):
    document = json.loads(invoke("compare", chain_file, "--fraction", 0.5, "--json").stdout)
    frontier = solve(chain)
    assert document == {
        "format": "revolve.compare/1",
        "chain": "example",
        "length": 12,
        "budget": frontier.plain // 2,
        "plain_peak": frontier.plain,
        "plain_makespan": chain.plain_makespan,
        "strategies": [row.to_json() for row in compare(chain, "50%")],
    }


def test_comparison_table_and_picture(invoke, chain, chain_file, tmp_path):
    out = tmp_path / "curve.svg"
    result = invoke("compare", chain_file, "--budget", solve(chain).plain // 2, "--out", out)
    assert result.exit_code == 0
    assert all(len(line) <= 100 for line in result.stdout.splitlines())
    cells = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    for row in compare(chain, "50%"):
        if row.plan is None:
            assert f"{row.smallest / solve(chain).plain:.1%}" in cells[row.strategy]
        else:
            assert f"{row.plan.ratio:.3f}" in cells[row.plan.strategy]
    assert "budget 36 MB" in out.read_text()


def test_comparison_at_an_overhead(invoke, chain, chain_file):
    document = json.loads(invoke("compare", chain_file, "--overhead", "10%", "--json").stdout)
    assert document["budget"] == solve(chain).budget_for(0.1)
    assert document["strategies"][-1]["ratio"] <= 1.1


def test_some_strategies(invoke, chain, chain_file):
    chosen = ("--strategy", "optimal", "--strategy", "revolve")
    document = json.loads(invoke("compare", chain_file, "--fraction", 0.5, *chosen, "--json").stdout)
    assert [entry["strategy"] for entry in document["strategies"]] == ["revolve", "optimal"]
    assert "chen" not in invoke("compare", chain_file, "--fraction", 0.5, *chosen).stdout


def test_where_nothing_fits_there_is_nothing_to_compare(invoke, chain, chain_file):
    assert str(solve(chain).smallest) in invoke.fail("compare", chain_file, "--budget", "1kB", code=3)


def test_models_are_measured(invoke, nets):
    model = ("nets:mlp", "--input", "32,64")
    result = invoke("compare", *model, "--overhead", "50%", "--save-chain", "chain.json", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    chain = Chain.load(nets / "chain.json")
    assert document["strategies"] == [row.to_json() for row in compare(chain, document["budget"])]
    assert json.loads(invoke("frontier", *model, "--json").stdout)["length"] == len(chain)
    assert json.loads(invoke("compare", *model, "--budget", "50%", "--json").stdout)["budget"] > 1_000_000


def test_a_file_wins_over_a_demo_model_of_its_name(invoke, nets, chain):
    chain.save(nets / "mlp")
    assert json.loads(invoke("frontier", "mlp", "--json").stdout)["chain"] == "example"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--overhead"),
        (["--budget", "50%"], "no device"),
        (["--budget", "lots"], "'lots'"),
        (["--budget", "1MB", "--overhead", "1"], "--budget and --overhead"),
        (["--fraction", "0.5", "--overhead", "1"], "--fraction and --overhead"),
        (["--fraction", "0.5", "--strategy", "best"], "strategy 'best' is unknown; use some of plain, every_nth"),
        (["--overhead", "-1"], "'-1'"),
        (["--overhead", "fast"], "'fast'"),
        (["--fraction", "0.5", "--input", "3,3"], "--input"),
        (["--fraction", "0.5", "--save-chain", "copy.json"], "--save-chain"),
        (["--fraction", "0.5", "--out", "curve.bmp"], ".bmp"),
        (["--fraction", "0.5", "--out", "/no/such/folder/curve.png"], "/no/such/folder"),
        (["--fraction", "0.5", "--format", "zip"], "'zip'"),
    ],
)
def test_bad_options(invoke, chain_file, arguments, words):
    assert words in invoke.fail("compare", chain_file, *arguments)


@pytest.mark.parametrize("command", [["frontier"], ["compare", "--fraction", "0.5"]])
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("resnet51", "'resnet51' is no file; write a chain file, package.module:callable, or one of the demo models"),
        ("absent.json", "'absent.json' is no file"),
        (".", "'.' is no file"),
        ("nets:absent", "--input"),
    ],
)
def test_bad_sources(invoke, nets, command, source, words):
    assert words in invoke.fail(*command, source)


def test_broken_chain_files_are_named(invoke, altered):
    line = invoke.fail("frontier", altered("forward", -1, 3))
    assert "altered.json" in line
    assert "forward" in line
