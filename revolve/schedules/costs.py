"""What storage formats cost: for checkpoints, and as a mode to save a stage's tensors in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

from .documents import read_number
from .exceptions import ChainError

__all__ = ["SaveMode", "StorageCosts", "nanoseconds"]

STORING = ("stored_bytes", "store_time", "load_time")


def nanoseconds(seconds: float) -> int:
    """Round a time to the whole nanoseconds that solvers and simulator count in."""
    return round(seconds * 1e9)


class SaveMode(NamedTuple):
    """What it costs to save one stage in one format; times in seconds, sizes in bytes.

    Attributes
    ----------
    saved_bytes
        What its saved tensors other than its input and output take.
    encode_time, decode_time
        Seconds that the mode adds to the save and to the backward; making the forms of input and output is
        not in it, reading them back is.
    save_extra, backward_extra
        Transient bytes, as the stage's fields of that name.
    """

    saved_bytes: int
    encode_time: float
    decode_time: float
    save_extra: int
    backward_extra: int


@dataclass(frozen=True, slots=True)
class StorageCosts:
    """What it costs to keep tensors in a storage format other than dense.

    The first three fields have a value for each activation ``x_0 .. x_L``. The other five have one for each
    stage and say what a save in this format costs, see ``SaveMode``; all empty means that the format is for
    checkpoints only.

    Attributes
    ----------
    stored_bytes, store_time, load_time
        L + 1 values each: bytes in memory while stored, seconds to store, seconds to load.
    saved_bytes, encode_time, decode_time, save_extra, backward_extra
        L values each, or none.
    """

    stored_bytes: tuple[int, ...]
    store_time: tuple[float, ...]
    load_time: tuple[float, ...]
    saved_bytes: tuple[int, ...] = ()
    encode_time: tuple[float, ...] = ()
    decode_time: tuple[float, ...] = ()
    save_extra: tuple[int, ...] = ()
    backward_extra: tuple[int, ...] = ()

    @property
    def saves(self) -> bool:
        """Whether stages may be saved in this format."""
        return bool(self.saved_bytes)

    def save_mode(self, index: int) -> SaveMode:
        """Return the costs of saving stage ``index``, of a format that has save modes."""
        return SaveMode(*(getattr(self, name)[index] for name in SaveMode._fields))

    @classmethod
    def from_json(cls, name: str, entry: Any, length: int) -> Self:
        """Read the costs of the format ``name`` for a chain of ``length`` stages.

        Raises
        ------
        ChainError
            If a list is missing, has the wrong length, or holds something else than costs.
        """
        where = f"format {name!r}"
        given = set(entry) if isinstance(entry, Mapping) else set()
        if given not in (set(STORING), {*STORING, *SaveMode._fields}):
            fault = describe_fields(given) if isinstance(entry, Mapping) else repr(entry)
            raise ChainError(
                f"{where}: it must be an object with the fields {', '.join(STORING)}, one value an activation, and, "
                f"where stages may be saved in it, {', '.join(SaveMode._fields)}, one value a stage; {fault}"
            )
        return cls(**{key: read_costs(key, values, length, where) for key, values in entry.items()})

    def to_json(self) -> dict[str, Any]:
        """Return the three lists, or all eight where stages may be saved in the format."""
        return {f.name: list(getattr(self, f.name)) for f in fields(self) if self.saves or f.name in STORING}


def describe_fields(given: set[Any]) -> str:
    """Say what is wrong with the fields of a format."""
    wanted = [*STORING, *(SaveMode._fields if given & set(SaveMode._fields) else ())]
    missing = [name for name in wanted if name not in given]
    return f"{missing[0]!r} is missing" if missing else f"{min(given - set(wanted), key=str)!r} is unknown"


def read_costs(key: str, values: Any, length: int, where: str) -> tuple[Any, ...]:
    """Read one list of costs."""
    count, things = (length + 1, f"x_0 .. x_{length}") if key in STORING else (length, f"the stages 0 .. {length - 1}")
    if not isinstance(values, Sequence) or len(values) != count:
        raise ChainError(f"{where}: {key} must list {count} values, one for each of {things}")
    return tuple(read_number(value, key, where, whole=not key.endswith("_time")) for value in values)
