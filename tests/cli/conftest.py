import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from revolve.cli.application import app
from revolve.schedules import Chain, solve

NETS = """
import copy

from torch import nn

print("imported")

def mlp():
    print("built")
    layers = (nn.Linear(64, 64), nn.ReLU(inplace=True), nn.Dropout(0.2))
    return nn.Sequential(*(copy.deepcopy(layer) for _ in range(2) for layer in layers))

def number():
    return 3

def failing():
    raise ValueError("no weights\\nfor this model")

instance = nn.Sequential(nn.Linear(3, 3))
constant = 4
"""


class Invoke:
    """Runs the command in this process; keeps what a test asks about."""

    def __call__(self, *arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="revolve-plan")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def fail(self, *arguments, code=2):
        """Run a command that must fail with one line on stderr and nothing on stdout; return the line."""
        result = self(*arguments)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        lines = [line for line in result.stderr.splitlines() if line not in ("imported", "built")]
        assert len(lines) == 1
        assert lines[0].startswith("revolve-plan: error: ")
        return lines[0]


@pytest.fixture
def invoke():
    return Invoke()


@pytest.fixture
def chain():
    """Twelve unequal stages whose frontier has many points."""
    stages = [
        {
            "name": f"stage {i}",
            "forward": 1e-3 * (1 + i % 3),
            "backward": 2e-3 * (1 + i % 4),
            "output_bytes": 1_000_000 * (1 + i % 5),
            "saved_bytes": 2_000_000 * (i % 4),
        }
        for i in range(12)
    ]
    document = {"format": "revolve.chain/1", "name": "example", "input_bytes": 500_000, "stages": stages}
    return Chain.from_json(document)


@pytest.fixture
def chain_file(chain, tmp_path):
    chain.save(tmp_path / "chain.json")
    return tmp_path / "chain.json"


@pytest.fixture
def plan_file(chain, tmp_path):
    frontier = solve(chain)
    frontier.plan(int(frontier.peaks[len(frontier) // 3])).save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


@pytest.fixture
def altered(chain, tmp_path):
    """Write the chain with one field replaced; returns the file."""

    def write(field, value, stage=None):
        document = chain.to_json()
        (document if stage is None else document["stages"][stage])[field] = value
        path = tmp_path / "altered.json"
        path.write_text(json.dumps(document))
        return path

    return write


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A working directory with modules that hold, or do not hold, models."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "broken.py").write_text("raise RuntimeError('half a module')\n")
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield Path(tmp_path)
    for name in ("nets", "broken", "leaving"):
        sys.modules.pop(name, None)
