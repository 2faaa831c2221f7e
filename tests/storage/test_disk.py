"""Files of storages: written, read, checked, and gone in the end."""

import gc
import os
import subprocess
import sys

import pytest
import torch

from revolve.schedules.exceptions import RevolveError
from revolve.storage import disk
from revolve.storage.disk import DiskCodec
from revolve.storage.exceptions import StorageError


def encode(codec, x):
    return codec.encode(x, lambda _: None)


def files_below(path):
    return sorted(found.name for found in path.rglob("*") if found.is_file())


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.bfloat16, torch.float32, torch.complex128], ids=str)
def test_raw_bytes_go_to_a_file_and_come_back(tmp_path, dtype):
    x = torch.randint(0, 2, (16 * 1000,), dtype=torch.uint8).view(dtype)
    codec = DiskCodec(tmp_path)
    form = encode(codec, x)
    assert form.nbytes == 0
    assert form.path.read_bytes() == bytes(disk.bytes_of(x).tolist())
    assert form.path.is_relative_to(tmp_path)
    assert torch.equal(form.decode(), x)
    assert form.decode().dtype is dtype


def test_a_file_goes_with_its_form_and_the_directory_with_the_codec(tmp_path):
    codec = DiskCodec(tmp_path)
    assert list(tmp_path.iterdir()) == []  # nothing before it is used
    first, second = encode(codec, torch.ones(1000)), encode(codec, torch.zeros(1000))
    assert len(files_below(tmp_path)) == 2
    del first
    gc.collect()
    assert files_below(tmp_path) == [second.path.name]
    del codec
    gc.collect()
    assert torch.equal(second.decode(), torch.zeros(1000))  # a form outlives its codec
    del second
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_the_interpreter_exits(tmp_path):
    code = f"""if True:
        import torch
        from revolve.storage.disk import DiskCodec
        codec = DiskCodec({str(tmp_path)!r})
        form = codec.encode(torch.ones(1000), lambda size: None)
        assert form.path.exists()
        raise SystemExit(3)
    """
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_leaves_its_parents_files_alone(tmp_path):
    code = f"""if True:
        import os, sys, torch
        from revolve.storage.disk import DiskCodec
        codec = DiskCodec({str(tmp_path)!r})
        form = codec.encode(torch.ones(1000), lambda size: None)
        child = os.fork()
        if not child:
            own = codec.encode(torch.zeros(1000), lambda size: None)
            assert own.path.parent != form.path.parent
            assert torch.equal(form.decode(), torch.ones(1000))
            del form
            sys.exit(7)  # with its finalizers
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert torch.equal(form.decode(), torch.ones(1000))
        assert os.listdir({str(tmp_path)!r}) == [form.path.parent.name], "the child's own directory is gone"
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_and_leaves_no_file(tmp_path):
    code = f"""if True:
        import os, resource, torch
        from revolve.storage.disk import DiskCodec
        from revolve.storage.exceptions import StorageError
        codec = DiskCodec({str(tmp_path)!r})
        kept = codec.encode(torch.ones(1000), lambda size: None)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            codec.encode(torch.ones(100_000), lambda size: None)
        except StorageError as error:
            assert str(error).startswith("400000 bytes cannot be written below {tmp_path}: "), error
            assert isinstance(error.__cause__, OSError)
        else:
            raise AssertionError("no error")
        assert os.listdir(kept.path.parent) == [kept.path.name]
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StorageError, match=f"4000 bytes cannot be written below {tmp_path}/none") as raised:
        encode(DiskCodec(tmp_path / "none"), torch.ones(1000))
    assert isinstance(raised.value, OSError)
    assert isinstance(raised.value, RevolveError)


@pytest.mark.parametrize("interruption", [OSError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_interrupted_write_leaves_no_file(tmp_path, monkeypatch, interruption):
    def interrupt(transfer, view):
        transfer(view[:100])
        raise interruption

    monkeypatch.setattr(disk, "fill", interrupt)
    with pytest.raises((StorageError, KeyboardInterrupt)):
        encode(DiskCodec(tmp_path), torch.ones(1000))
    assert files_below(tmp_path) == []


def test_a_short_write_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "fill", lambda transfer, view: transfer(view[:100]))
    with pytest.raises(StorageError, match="100 of 4000 bytes were taken"):
        encode(DiskCodec(tmp_path), torch.ones(1000))
    assert files_below(tmp_path) == []


def test_transfers_may_come_in_pieces():
    taken = bytearray()

    def take(view):
        taken.extend(view[:3])
        return len(view[:3])

    assert disk.fill(take, memoryview(b"0123456789")) == 10
    assert taken == b"0123456789"
    assert disk.fill(lambda view: 0, memoryview(b"0123")) == 0


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_a_file_of_another_length_is_an_error(tmp_path, change):
    form = encode(DiskCodec(tmp_path), torch.ones(1000))
    form.path.write_bytes(change(form.path.read_bytes()))
    with pytest.raises(StorageError, match="not 4000"):
        form.decode()


def test_a_lost_file_is_an_error(tmp_path):
    form = encode(DiskCodec(tmp_path), torch.ones(1000))
    form.path.unlink()
    with pytest.raises(StorageError, match="4000 bytes cannot be read back"):
        form.decode()
