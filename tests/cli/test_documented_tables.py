"""The tables of docs/baselines.md are what the benchmark prints for the chains in the tree."""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHAINS = [f"benchmarks/chains/{name}.json" for name in ("resnet18", "resnet50", "vgg16", "mlp", "transformer")]


def test_baselines_page_quotes_the_benchmark(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["benchmarks/compare.py", *CHAINS])
    runpy.run_path("benchmarks/compare.py", run_name="__main__")
    printed = capsys.readouterr().out.strip().split("\n\n")
    assert len(printed) == 9  # five tables, and the words above four of them
    page = (ROOT / "docs" / "baselines.md").read_text()
    for part in printed:
        assert f"\n{part}\n" in page
