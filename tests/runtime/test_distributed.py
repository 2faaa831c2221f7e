"""Two gloo processes: parameters after five planned steps equal those of plain ones, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent
GROUPS = {
    "ddp": (
        "test_ddp",
        "test_ddp_static_graph",
        "test_ddp_unused_parameters",
        "test_ddp_accumulation",
    ),
    "fsdp": (
        "test_fsdp",
        "test_fsdp_without_resharding",
        "test_fsdp_mixed_precision",
        "test_fsdp_two_forwards",
        "test_fsdp_gathers_few_blocks_at_a_time",
        "test_fsdp_is_measured_before",
        "test_fsdp_agrees_on_a_plan",
        "test_fsdp_formats",
    ),
    "calls": (
        "test_ddp_called",
        "test_fsdp_called",
        "test_fsdp_called_with_units_around_and_inside",
        "test_fsdp_called_state",
        "test_fsdp_called_mixed_precision",
        "test_fsdp_called_agrees_on_a_plan",
        "test_fsdp_called_peak",
        "test_fsdp_called_sharded_late",
        "test_fsdp_called_casts_between_stages",
        "test_fsdp_called_formats",
        "test_fsdp_called_formats_peak",
    ),
    "pipelines": ("test_pipelines", "test_zero_bubble_pipeline"),
}


def file_of(group):
    """Return where the scenarios of a group are."""
    return "distributed_calls.py" if group == "calls" else "distributed.py"


@pytest.mark.parametrize("group", GROUPS)
def test_two_processes(group):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [*launcher, file_of(group), *GROUPS[group]],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},  # a process that aborts says where
    )
    assert finished.returncode == 0, f"{finished.stdout}\n{finished.stderr}"
    for name in GROUPS[group]:
        assert finished.stdout.count(f"passed {name}") >= 2


@pytest.mark.parametrize("file", ["distributed.py", "distributed_calls.py"])
def test_every_scenario_is_run(file):
    lines = (FOLDER / file).read_text(encoding="utf-8").splitlines()
    written = {line.split()[1].split("(")[0] for line in lines if line.startswith("def test_")}
    assert written == {name for group, names in GROUPS.items() if file_of(group) == file for name in names}
