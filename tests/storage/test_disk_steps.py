"""Steps that keep everything on disk: full disks, steps that are given up and other processes leave no files behind."""

import gc
import subprocess
import sys

import pytest
import torch
from torch import nn

import revolve
from revolve import Plan
from revolve.storage import codecs, disk
from revolve.storage.disk import DiskCodec
from revolve.storage.exceptions import StorageError


def build():
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(64, 64), nn.Tanh())))


def on_disk(model, x):
    """Let a model keep all that its stages save on disk."""
    length = len(model)
    chain = revolve.measure(model, x, formats=("disk",))
    actions = [*(["save", i, "disk"] for i in range(length)), ["loss"]]
    return revolve.checkpointed(
        model, Plan.from_actions(chain, [*actions, *(["backward", i] for i in reversed(range(length)))])
    )


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setitem(codecs.CODECS, "disk", lambda: DiskCodec(tmp_path))
    codecs.codec_named.cache_clear()
    yield tmp_path
    codecs.codec_named.cache_clear()


def files_below(path):
    return [found for found in path.rglob("*") if found.is_file()]


def test_a_step_on_a_full_disk_fails_whole_and_the_next_one_is_right(directory, monkeypatch):
    x = torch.randn(100, 64, generator=torch.Generator().manual_seed(1))
    plain, planned = build(), on_disk(build(), x)
    real, written = disk.write_file, []

    def write(path, flat):
        if len(written) == 1:
            raise OSError(28, "No space left on device")
        written.append(path)
        real(path, flat)

    monkeypatch.setattr(disk, "write_file", write)
    with pytest.raises(StorageError, match="No space left on device; free some room there"):
        planned(x)
    gc.collect()
    assert len(written) == 1
    assert files_below(directory) == []
    monkeypatch.setattr(disk, "write_file", real)
    output = planned(x)
    assert len(files_below(directory)) == 2  # what Tanh returns, the next layer takes
    output.square().mean().backward()
    plain(x).square().mean().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(planned.parameters(), plain.parameters(), strict=True))
    assert files_below(directory) == []


CHILD = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_disk_steps import DiskCodec, build, codecs, on_disk
codecs.CODECS["disk"] = lambda: DiskCodec({directory!r})
x = torch.randn(100, 64)
output = on_disk(build(), x)(x)
print("saved", flush=True)
if sys.stdin.readline() == "give up\\n":
    sys.exit(3)
output.square().mean().backward()
"""


def test_processes_share_a_directory_and_leave_it_empty_even_in_the_middle_of_a_step(tmp_path):
    code = CHILD.format(tests=__file__.rpartition("/")[0], directory=str(tmp_path))
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [child.stdout.readline() for child in both] == ["saved\n", "saved\n"]
    assert len(list(tmp_path.iterdir())) == 2
    assert len(files_below(tmp_path)) == 4
    both[0].communicate("give up\n", timeout=120)
    assert len(files_below(tmp_path)) == 2
    both[1].communicate("go on\n", timeout=120)
    assert [child.returncode for child in both] == [3, 0]
    assert list(tmp_path.iterdir()) == []
