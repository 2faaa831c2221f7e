"""The cost model: a chain of stages with their times and sizes, measured or made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from .costs import SaveMode, StorageCosts, nanoseconds
from .documents import check_format, read_document, read_number, write_document
from .exceptions import ChainError

__all__ = ["Chain", "Stage", "StorageCosts", "nanoseconds"]

TIMES = frozenset({"forward", "rebuild", "backward", "loss_time"})
TEXTS = frozenset({"name", "origin"})
FLAGS = frozenset({"saves_input", "saves_output", "input_grad", "carries"})
REQUIRED = ("forward", "backward", "output_bytes", "saved_bytes")


@dataclass(frozen=True, slots=True)
class Stage:
    """One unit of the chain; times in seconds, sizes in bytes.

    Attributes
    ----------
    name
        For people.
    forward, rebuild, backward
        Time to run the stage, to run it again only up to its last saved tensor (at most
        ``forward``), and of its backward.
    output_bytes
        Size of ``x_{i+1}``.
    saved_bytes
        What autograd keeps for this stage in storages other than ``x_i``, ``x_{i+1}``, parameters
        and buffers.
    saves_input, saves_output
        Whether the saved tensors include the storage of ``x_i`` / of ``x_{i+1}``.
    forward_extra, save_extra, rebuild_extra, backward_extra
        Transient bytes of each way to run the stage, beyond what is held before and what it leaves.
    grad_bytes
        Parameter gradients that its backward leaves allocated.
    passed_bytes
        Bytes of ``x_i`` that are ``x_{i+1}``'s as well, since the stage passes tensors on: while it runs forward, they
        count once.
    """

    name: str
    forward: float
    rebuild: float
    backward: float
    output_bytes: int
    saved_bytes: int
    saves_input: bool = True
    saves_output: bool = False
    forward_extra: int = 0
    save_extra: int = 0
    rebuild_extra: int = 0
    backward_extra: int = 0
    grad_bytes: int = 0
    passed_bytes: int = 0

    @classmethod
    def from_json(cls, entry: Any, index: int, input_bytes: int) -> Self:
        """Read one stage; missing optional fields take the defaults of the chain format.

        Raises
        ------
        ChainError
            If a required field is missing, a field is unknown, or a value is not a finite,
            non-negative number.
        """
        if not isinstance(entry, Mapping):
            raise ChainError(f"stage {index} is {entry!r}; it must be an object with the fields {', '.join(REQUIRED)}")
        where = f"stage {index}" + (f" ({entry['name']})" if "name" in entry else "")
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(entry) - known)
        if unknown:
            raise ChainError(f"{where}: unknown field {unknown[0]!r}; known fields: {', '.join(sorted(known))}")
        missing = [name for name in REQUIRED if name not in entry]
        if missing:
            raise ChainError(f"{where}: field {missing[0]!r} is missing; required are {', '.join(REQUIRED)}")
        values = dict(entry)
        values.setdefault("name", str(index))
        values.setdefault("rebuild", values["forward"])
        values.setdefault("backward_extra", input_bytes + read_field("grad_bytes", values.get("grad_bytes", 0), where))
        stage = cls(**{name: read_field(name, value, where) for name, value in values.items()})
        if stage.rebuild > stage.forward:
            raise ChainError(
                f"{where}: rebuild {stage.rebuild} is more than forward {stage.forward}; it is a part of it"
            )
        if stage.passed_bytes > min(input_bytes if index else 0, stage.output_bytes):
            raise ChainError(
                f"{where}: passed_bytes is {stage.passed_bytes}; it must be a part of both the input's {input_bytes} "
                f"bytes and the output's {stage.output_bytes}, and 0 for the first stage: x_0 is the caller's"
            )
        return stage

    def to_json(self) -> dict[str, Any]:
        """Return the fields; what the stage passes on only where there is something."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values if self.passed_bytes else {n: v for n, v in values.items() if n != "passed_bytes"}


def read_field(name: str, value: Any, where: str) -> Any:
    """Check one field of a chain or stage by its name."""
    if name in TEXTS:
        if not isinstance(value, str):
            raise ChainError(f"{where}: {name} is {value!r}; it must be a string")
        return value
    if name in FLAGS:
        if value is not True and value is not False:
            raise ChainError(f"{where}: {name} is {value!r}; it must be true or false")
        return value
    return read_number(value, name, where, whole=name not in TIMES)


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of stages and everything the solvers know about it.

    Attributes
    ----------
    stages
        Stage 0 .. L-1.
    input_bytes
        Size of ``x_0`` (its gradient has the same size; ``x_0`` itself belongs to the caller).
    input_grad
        Whether ``x_0`` needs a gradient.
    loss_time, loss_extra
        Seconds and transient bytes of the loss, gradient of ``x_L`` excluded.
    formats
        Costs of storage formats other than dense, for checkpoints and saved tensors, by name.
    name
        For people.
    origin
        For people: where sizes and times are from and how sure they are, unless they were measured.
    carries
        Whether what leaps over stages is carried: a part of every activation on its way, dropped and made again with
        it. Else it is held by every plan, and part of the extras.
    plain_peak
        Bytes of plain training's peak; None for what a simulation says. One that carries counts twice what is in two
        activations.
    carried
        The same stages carrying, where something leaps over some of them: ``solve`` takes the better one for every
        budget.

    Examples
    --------
    >>> Chain.uniform(3).plain_makespan
    6.0
    """

    stages: tuple[Stage, ...]
    input_bytes: int
    input_grad: bool = False
    loss_time: float = 0.0
    loss_extra: int = 0
    formats: Mapping[str, StorageCosts] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    name: str = ""
    origin: str = ""
    carries: bool = False
    plain_peak: int | None = None
    carried: Chain | None = None

    def __len__(self) -> int:
        return len(self.stages)

    def activation_bytes(self, index: int) -> int:
        """Return the size in bytes of ``x_index``."""
        return self.input_bytes if index == 0 else self.stages[index - 1].output_bytes

    def gradient_bytes(self, index: int) -> int:
        """Return the size in bytes of the gradient of ``x_index``; 0 for an ``x_0`` that needs none."""
        return 0 if index == 0 and not self.input_grad else self.activation_bytes(index)

    def encoded(self, format_: str, index: int) -> bool:
        """Return whether a stage that is saved in a format keeps ``x_index`` in it, rather than dense.

        It does where the form is smaller. ``x_0`` and ``x_L`` stay dense: they belong to the caller.
        """
        if format_ == "dense" or not 0 < index < len(self):
            return False
        return self.formats[format_].stored_bytes[index] < self.activation_bytes(index)

    def save_mode(self, format_: str, index: int) -> SaveMode:
        """Return what it costs to save stage ``index`` in a format that has save modes, or dense."""
        if format_ == "dense":
            stage = self.stages[index]
            save_extra = stage.save_extra - stage.passed_bytes
            return SaveMode(stage.saved_bytes, 0.0, 0.0, save_extra, stage.backward_extra)
        return self.formats[format_].save_mode(index)

    @property
    def plain_makespan(self) -> float:
        """Seconds of plain training: every stage forward and backward once, and the loss."""
        times = (nanoseconds(s.forward) + nanoseconds(s.backward) for s in self.stages)
        return (sum(times) + nanoseconds(self.loss_time)) / 1e9

    @classmethod
    def uniform(
        cls,
        length: int,
        *,
        forward: float = 1.0,
        backward: float = 1.0,
        output_bytes: int = 1,
        saved_bytes: int = 0,
        **fields_: Any,
    ) -> Self:
        """Return a chain of ``length`` equal stages, as in the classic papers.

        Parameters
        ----------
        length
            Number of stages, at least 1.
        forward, backward
            Seconds of each stage.
        output_bytes, saved_bytes
            Bytes of each activation and of the saved tensors of each stage.
        **fields_
            Any other field of a stage.

        Raises
        ------
        ChainError
            If the length is not a positive integer or a value is not a cost.
        """
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ChainError(f"a chain of {length!r} stages cannot be trained; length must be an int of 1 or more")
        stage = {"forward": forward, "backward": backward, "output_bytes": output_bytes, "saved_bytes": saved_bytes}
        stages = [{"name": str(index), **stage, **fields_} for index in range(length)]
        return cls.from_json(
            {"format": FORMAT, "name": f"uniform chain of {length}", "input_bytes": output_bytes, "stages": stages}
        )

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Read a ``revolve.chain/1`` document.

        Raises
        ------
        ChainError
            If a field is missing, unknown, NaN, negative or of the wrong kind; the message names it.
        """
        check_format(document, FORMAT, KNOWN)
        for required in ("input_bytes", "stages"):
            if required not in document:
                raise ChainError(f"chain: field {required!r} is missing; required are input_bytes and stages")
        names = ("name", "origin", "input_bytes", "input_grad", "loss_time", "loss_extra", "carries", "plain_peak")
        values = {name: read_field(name, document[name], "chain") for name in names if name in document}
        entries = document["stages"]
        if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
            raise ChainError(f"chain: stages is {entries!r}; it must be a list of at least one stage")
        stages: list[Stage] = []
        size = values["input_bytes"]
        for index, entry in enumerate(entries):
            stages.append(Stage.from_json(entry, index, size))
            size = stages[-1].output_bytes
        if stages[-1].passed_bytes:
            raise ChainError(
                f"stage {len(stages) - 1}: passed_bytes is {stages[-1].passed_bytes}; it must be 0 for the last stage: "
                "x_L is the caller's"
            )
        formats = document.get("formats", {})
        if not isinstance(formats, Mapping) or "dense" in formats:
            raise ChainError("chain: formats must be an object of formats other than 'dense' (its costs are the sizes)")
        costs = {name: StorageCosts.from_json(name, entry, len(stages)) for name, entry in formats.items()}
        carried = cls.from_json(document["carried"]) if "carried" in document else None
        if carried is not None and [s.name for s in carried.stages] != [s.name for s in stages]:
            raise ChainError("chain: carried has other stages than the chain; it must be the same chain")
        return cls(tuple(stages), formats=MappingProxyType(costs), carried=carried, **values)

    def to_json(self) -> dict[str, Any]:
        """Return the ``revolve.chain/1`` document."""
        return {
            "format": FORMAT,
            "name": self.name,
            **({"origin": self.origin} if self.origin else {}),
            "input_bytes": self.input_bytes,
            "input_grad": self.input_grad,
            "loss_time": self.loss_time,
            "loss_extra": self.loss_extra,
            "stages": [stage.to_json() for stage in self.stages],
            "formats": {name: costs.to_json() for name, costs in self.formats.items()},
            **({"carries": True} if self.carries else {}),
            **({} if self.plain_peak is None else {"plain_peak": self.plain_peak}),
            **({} if self.carried is None else {"carried": self.carried.to_json()}),
        }

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a chain file; errors name the file."""
        try:
            return cls.from_json(read_document(path))
        except ChainError as error:
            raise error if repr(str(path)) in str(error) else ChainError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write a chain file."""
        write_document(path, self.to_json())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_json, (self.to_json(),)


FORMAT = "revolve.chain/1"
KNOWN = frozenset(
    {"format", "name", "input_bytes", "input_grad", "loss_time", "loss_extra", "stages", "formats", "origin"}
) | {"carries", "plain_peak", "carried"}
