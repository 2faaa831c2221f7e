"""What only shows in a new interpreter: what is imported, and the kernels without the JIT."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from random_chains import random_chain

import revolve
from revolve.schedules import Chain, solve

ROOT = Path(revolve.__file__).parents[1]

SOLVE = """
import json, sys
from numba import config
from revolve.schedules import Chain, solve
from revolve.schedules.kernels.frontier import fill_cells
assert config.DISABLE_JIT and not hasattr(fill_cells, "py_func")
for line in sys.stdin:
    chain = Chain.from_json(json.loads(line))
    frontier = solve(chain, formats=tuple(chain.formats))
    plan = frontier.plan(frontier.smallest)
    actions = [action.to_json() for action in plan.actions]
    print(json.dumps([frontier.peaks.tolist(), frontier.makespans.tolist(), actions]))
"""


def run(code: str, stdin: str = "", **environment: str) -> str:
    """Return what ``code`` prints in a fresh interpreter that finds the package under test."""
    finished = subprocess.run(
        [sys.executable, "-c", code],
        input=stdin,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_schedules_import_no_torch():
    loaded = json.loads(run("import json, sys, revolve.schedules; print(json.dumps(sorted(sys.modules)))"))
    assert "revolve.schedules" in loaded
    assert "torch" not in loaded
    assert not {"matplotlib", "rich", "typer", "networkx"} & set(loaded)


def test_kernels_agree_with_and_without_the_jit():
    rng = random.Random(5)
    kinds = [{"formats": formats, "modes": modes} for formats, modes in ((0, False), (1, False), (2, False), (2, True))]
    chains = [random_chain(rng, length, **kind) for length in (1, 3, 5, 8) for kind in kinds]
    printed = run(SOLVE, "\n".join(json.dumps(chain.to_json()) for chain in chains), NUMBA_DISABLE_JIT="1")
    for chain, line in zip(chains, printed.splitlines(), strict=True):
        frontier = solve(chain, formats=tuple(chain.formats))
        actions = [action.to_json() for action in frontier.plan(frontier.smallest).actions]
        assert json.loads(line) == [frontier.peaks.tolist(), frontier.makespans.tolist(), actions]


def test_processes_that_start_at_once_share_an_empty_cache(tmp_path):
    # As the ranks of a distributed run do: each compiles or reads what another one wrote, and all agree.
    code = "from revolve.schedules import Chain, solve; print(solve(Chain.uniform(6)).makespans.tolist())"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=environment, cwd=ROOT, **pipes) for _ in range(3)]
    printed = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], printed
    assert {out for out, _ in printed} == {f"{solve(Chain.uniform(6)).makespans.tolist()}\n"}
    assert list(tmp_path.rglob("*.nbc"))
