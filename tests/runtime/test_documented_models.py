"""The example of docs/linearize.md runs."""

from __future__ import annotations

from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def test_the_example_of_linearize(capsys):
    torch.manual_seed(0)
    code = (ROOT / "docs" / "linearize.md").read_text().split("```python\n")[1].split("```")[0]
    assert "assert report.exact and report.kept" in code
    exec(compile(code, "docs/linearize.md", "exec"), {"__name__": "example"})
    assert "blocks.0" in capsys.readouterr().out
