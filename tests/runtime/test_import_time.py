"""``import revolve`` is instant and loads no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import revolve

ROOT = Path(revolve.__file__).parents[1]
CODE = """
import sys, time
start = time.perf_counter()
import revolve
print(time.perf_counter() - start)
loaded = {"torch", "numpy", "numba", "networkx", "matplotlib", "typer", "rich"} & set(sys.modules)
assert not loaded, loaded
assert "measure" in dir(revolve)
try:
    revolve.missing
except AttributeError as error:
    assert "missing" in str(error)
else:
    raise AssertionError
"""


def import_seconds():
    finished = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return float(finished.stdout)


def test_import_takes_less_than_a_fifth_of_a_second():
    assert min(import_seconds() for _ in range(3)) < 0.2
