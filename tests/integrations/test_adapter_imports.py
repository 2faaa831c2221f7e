"""An adapter imports its own framework only: what it loads besides is loaded by that framework itself."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FRAMEWORKS = {"transformers", "timm", "lightning", "pytorch_lightning", "accelerate", "peft"}
OWN = {
    "transformers": "transformers.trainer_callback",
    "timm": "torch",
    "lightning": "lightning.pytorch",
    "torch": "torch",
}
SCRIPT = """
import importlib, json, sys
from vision_operators import define_vision_operators
define_vision_operators()
importlib.import_module({own!r})
before = set(sys.modules)
importlib.import_module("revolve.integrations.{adapter}")
print(json.dumps(sorted({{name.split(".")[0] for name in set(sys.modules) - before}})))
"""


@pytest.mark.parametrize("adapter", OWN)
def test_an_adapter_imports_no_other_framework(adapter):
    if find_spec(OWN[adapter].split(".")[0]) is None:
        pytest.skip(f"needs {OWN[adapter]}")
    script = SCRIPT.format(own=OWN[adapter], adapter=adapter)
    found = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=Path(__file__).parent
    )
    loaded = set(json.loads(found.stdout.splitlines()[-1]))
    assert not loaded & (FRAMEWORKS - {OWN[adapter].split(".")[0]})
    assert "revolve" in loaded
