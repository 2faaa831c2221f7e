"""Where results are written: checked before long work begins, with errors that say what is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .exceptions import ReportError

__all__ = ["check_target", "write_target"]


def check_target(path: str | Path) -> None:
    """Check that a file can be written, without touching it.

    Parameters
    ----------
    path
        The file to be written later.

    Raises
    ------
    ReportError
        If its folder does not exist or may not be written, or if it is a folder itself.
    """
    target = Path(path)
    folder = target.parent
    if target.is_dir():
        raise ReportError(f"cannot write {str(path)!r}: it is a folder; name a file")
    if not folder.is_dir():
        raise ReportError(f"cannot write {str(path)!r}: {str(folder)!r} is not a folder; make it first")
    if not os.access(target if target.exists() else folder, os.W_OK):
        raise ReportError(f"cannot write {str(path)!r}: permission denied")


def write_target(path: str | Path, write: Callable[[str | Path], None]) -> None:
    """Call ``write(path)``; a failure of the file system becomes a ReportError.

    Parameters
    ----------
    path
        The file to be written.
    write
        Writes it.

    Raises
    ------
    ReportError
        If the file cannot be written.
    """
    check_target(path)
    try:
        write(path)
    except OSError as error:
        raise ReportError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
