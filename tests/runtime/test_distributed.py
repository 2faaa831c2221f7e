"""Two gloo processes: parameters after five planned steps equal those of plain ones, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent
GROUPS = {
    "ddp": ("test_ddp", "test_ddp_static_graph", "test_ddp_unused_parameters", "test_ddp_accumulation"),
    "fsdp": (
        "test_fsdp",
        "test_fsdp_without_resharding",
        "test_fsdp_mixed_precision",
        "test_fsdp_two_forwards",
        "test_fsdp_gathers_few_blocks_at_a_time",
        "test_fsdp_is_measured_before",
    ),
    "pipelines": ("test_pipelines", "test_zero_bubble_pipeline"),
}


@pytest.mark.parametrize("group", GROUPS)
def test_two_processes(group):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [*launcher, "distributed.py", *GROUPS[group]],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    for name in GROUPS[group]:
        assert finished.stdout.count(f"passed {name}") >= 2


def test_every_scenario_is_run():
    lines = (FOLDER / "distributed.py").read_text(encoding="utf-8").splitlines()
    written = {line.split()[1].split("(")[0] for line in lines if line.startswith("def test_")}
    assert written == {name for group in GROUPS.values() for name in group}
