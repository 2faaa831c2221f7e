import json
import os
import signal
import subprocess
import sys
import time

import pytest

COMMAND = [sys.executable, "-c", "from revolve.cli.application import main; main()"]
TORCHLESS = """
import sys
from revolve.cli.application import main
try:
    main()
finally:
    loaded = sorted(set(sys.modules) & {"torch", "networkx", "rich", "matplotlib"})
    print("loaded:", *loaded, file=sys.stderr)
"""


def run(*arguments, program=COMMAND, **settings):
    return subprocess.run(
        [*program, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False, **settings
    )


def loaded(*arguments):
    """Return which heavy packages a command loads."""
    result = run(*arguments, program=[sys.executable, "-c", TORCHLESS])
    assert result.returncode == 0, result.stderr
    return result.stderr.splitlines()[-1].split()[1:]


def test_steps_loads_nothing_heavy():
    assert loaded("steps", 10, "--slots", 3) == []
    assert loaded("steps", 10, "--slots", 3, "--json") == []


def test_planning_and_drawing_load_no_torch(chain_file, plan_file, tmp_path):
    assert loaded("chain", chain_file, "--fraction", 0.5) == ["rich"]
    assert loaded("chain", chain_file, "--fraction", 0.5, "--json") == []
    assert loaded("frontier", chain_file) == loaded("compare", chain_file, "--fraction", 0.5) == ["rich"]
    assert loaded("compare", chain_file, "--overhead", 0.1, "--json") == []
    assert loaded("frontier", chain_file, "--json", "--out", tmp_path / "curve.png") == ["matplotlib"]
    assert loaded("plot", plan_file, "--out", tmp_path / "plan.png") == ["matplotlib"]
    assert loaded("steps", 5, "--slots", 2, "--out", tmp_path / "steps.png") == ["matplotlib"]


def test_version_and_help():
    assert run("--version").stdout.startswith("revolve-plan ")
    for arguments in ((), ("--help",)):
        result = run(*arguments)
        assert result.returncode == 0
        for command in ("steps", "chain", "model", "verify", "frontier", "compare", "plot"):
            assert command in result.stdout


def test_usage_errors_take_one_line():
    for arguments in (["bogus"], ["steps"], ["chain", "--bogus"], ["--bogus"]):
        result = run(*arguments)
        assert result.returncode == 2
        assert result.stdout == ""
        assert result.stderr.startswith("revolve-plan: error: ")
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.skipif(os.name == "nt", reason="pipes and signals as on Unix")
def test_closed_pipe_is_quiet():
    process = subprocess.Popen(
        [*COMMAND, "steps", "100000", "--slots", "3", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.read(30).startswith(b'{"format"')
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


def listen():
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(os.name == "nt", reason="pipes and signals as on Unix")
def test_interrupt_is_quiet():
    process = subprocess.Popen(
        [*COMMAND, "steps", "10000000", "--slots", "3", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=listen,  # shells let what they start in the background ignore it, and with it these tests
    )
    process.stdout.read(30)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_full_disk_is_an_error():
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [*COMMAND, "steps", "5", "--slots", "2"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert process.returncode == 2
    assert process.stderr == "revolve-plan: error: standard output: No space left on device\n"


def test_any_encoding_will_do(chain_file):
    document = json.loads(chain_file.read_text())
    document["stages"][0]["name"] = "\u2603"
    chain_file.write_text(json.dumps(document))
    result = run("chain", chain_file, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0
    assert "\\u2603" in result.stdout
