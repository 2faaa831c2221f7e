"""Reading the JSON documents of this package with errors that name file, place and remedy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .exceptions import ChainError

__all__ = ["check_format", "read_document", "read_number", "write_document"]


def read_document(path: str | Path) -> Any:
    """Load a JSON file.

    Raises
    ------
    ChainError
        If the file cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ChainError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ChainError(f"{str(path)!r} is not a JSON file: {error}") from error


def write_document(path: str | Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file, one document a file."""
    Path(path).write_text(json.dumps(document) + "\n", encoding="utf-8")


def check_format(document: Any, expected: str, known: frozenset[str]) -> None:
    """Check the ``format`` field of a document and that it has no unknown fields.

    Raises
    ------
    ChainError
        If the document is no object, of another format, or has a field that nobody would read.
    """
    if not isinstance(document, Mapping):
        raise ChainError(f"a {expected} document is a JSON object, not {type(document).__name__}")
    if "format" not in document:
        raise ChainError(f"field 'format' is missing; it must be {expected!r}")
    if document["format"] != expected:
        raise ChainError(f"field 'format' is {document['format']!r}; expected {expected!r}")
    unknown = sorted(set(document) - known)
    if unknown:
        raise ChainError(f"unknown field {unknown[0]!r} in a {expected} document; known: {', '.join(sorted(known))}")


def read_number(value: Any, field: str, where: str, *, whole: bool) -> Any:
    """Check a size (``whole``: int bytes) or a time (float seconds): finite and not negative.

    Raises
    ------
    ChainError
        If it is something else; the message repeats the value and its place.
    """
    kind, unit = ("a whole number", "bytes") if whole else ("a number", "seconds")
    plain = isinstance(value, (int, float)) or hasattr(value, "__index__") or hasattr(value, "__float__")
    if isinstance(value, (bool, str, bytes)) or not plain:
        raise ChainError(f"{where}: {field} is {value!r}; it must be {kind} of {unit}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < 0 or (whole and number != int(value)):
        raise ChainError(f"{where}: {field} is {value!r}; it must be {kind} of {unit}, finite and not negative")
    limit = 2**53 if whole else 1e9
    if number > limit:
        raise ChainError(f"{where}: {field} is {value!r}; more than {limit:.3g} {unit} cannot be planned")
    return int(value) if whole else number
