"""The disk: one file of raw bytes a storage, in a private directory, gone when nobody wants it any more."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import torch

from .exceptions import StorageError
from .forms import SMALLEST

__all__ = ["DiskCodec"]

CHUNK = 1 << 24  # bytes that an accelerator's tensor passes through the host at a time


def run_in_process(owner: int, function: Callable[[], object]) -> None:
    """Call a function unless this is a forked child: what is there belongs to its parent."""
    if os.getpid() == owner:
        function()


def bytes_of(flat: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a one-dimensional contiguous tensor as uint8, the same memory."""
    flat = flat.as_strided((len(flat),), (1,))  # a single element may come with any stride
    return torch.view_as_real(flat).view(-1).view(torch.uint8) if flat.is_complex() else flat.view(torch.uint8)


class Directory:
    """A private directory of one process, removed with this object or when the interpreter exits."""

    __slots__ = ("__weakref__", "numbers", "path")

    def __init__(self, parent: Path) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="revolve-", dir=parent))
        self.numbers = count(1)
        weakref.finalize(self, run_in_process, os.getpid(), partial(shutil.rmtree, self.path, ignore_errors=True))


class DiskForm:
    """A file of a storage; it is removed with this object, or when the interpreter exits."""

    __slots__ = ("__weakref__", "device", "directory", "dtype", "length", "path", "size")

    def __init__(self, flat: torch.Tensor, directory: Directory, path: Path) -> None:
        self.dtype, self.device, self.length, self.size = flat.dtype, flat.device, len(flat), flat.nbytes
        self.directory = directory  # which lives as long
        self.path = path
        weakref.finalize(self, run_in_process, os.getpid(), partial(path.unlink, missing_ok=True))

    @property
    def nbytes(self) -> int:
        """Nothing in memory."""
        return 0

    def decode(self) -> torch.Tensor:
        """Return the elements.

        Raises
        ------
        StorageError
            If the file cannot be read, or has lost or gained bytes.
        """
        flat = torch.empty(self.length, dtype=self.dtype, device="cpu")
        try:
            with self.path.open("rb", buffering=0) as file:
                found, read = os.fstat(file.fileno()).st_size, fill(file.readinto, bytes_of(flat).numpy().data)
        except OSError as error:
            raise StorageError(f"{self.size} bytes cannot be read back from {self.path}: {error}") from error
        if not found == read == self.size:
            raise StorageError(f"{self.path} has {found} bytes, of which {read} could be read, not {self.size}")
        return flat.to(self.device)


def fill(transfer: Callable[[memoryview], int], view: memoryview) -> int:
    """Return how many bytes were transferred by calls that may each transfer fewer than they are given."""
    done = 0
    while done < len(view) and (more := transfer(view[done:])):
        done += more
    return done


def write_file(path: Path, flat: torch.Tensor) -> None:
    """Write the bytes of a tensor to a file that does not exist yet; leave none behind on failure."""
    try:
        with path.open("xb", buffering=0) as file:
            for part in bytes_of(flat).split(flat.nbytes if flat.is_cpu else CHUNK):
                if (written := fill(file.write, part.cpu().numpy().data)) < len(part):
                    raise OSError(f"{written} of {len(part)} bytes were taken")
    except BaseException:
        path.unlink(missing_ok=True)
        raise


class DiskCodec:
    """Storages in files, below a private directory that is removed when the interpreter exits.

    Parameters
    ----------
    directory
        Where to make that directory, on a file system with room for all storages at once; by default where
        temporary files go. It should be a disk: what is written to a tmpfs stays in memory.
    """

    name = "disk"
    lossless = True
    varies = False
    waits = True

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self.parent = Path(tempfile.gettempdir() if directory is None else directory)
        self.directories: dict[int, Directory] = {}

    def current_directory(self) -> Directory:
        """Return the directory of this process; a forked child gets its own, without a lock it may have inherited."""
        if os.getpid() not in self.directories:
            return self.directories.setdefault(os.getpid(), Directory(self.parent))
        return self.directories[os.getpid()]

    def encode(self, flat: torch.Tensor, allow: Callable[[int], None]) -> DiskForm | None:
        """Return the file of a storage, None for a small one.

        Raises
        ------
        StorageError
            If the directory cannot be written, or has no room; no partial file is left.
        """
        if flat.nbytes < SMALLEST:
            return None
        allow(0)
        try:
            directory = self.current_directory()
            path = directory.path / f"{next(directory.numbers)}.raw"
            write_file(path, flat)
        except OSError as error:
            raise StorageError(
                f"{flat.nbytes} bytes cannot be written below {self.parent}: {error}; free some room there, "
                f"or name another directory"
            ) from error
        return DiskForm(flat, directory, path)
