"""A plan: a schedule together with the chain it was made for and what the judge says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from .actions import Action, Backward, Drop, Load, Loss, Save, Store, read_actions
from .chain import Chain
from .documents import check_format, read_document, write_document
from .exceptions import ChainError, RevolveError
from .simulator import Simulation, simulate

__all__ = ["Plan", "plain_schedule", "with_carried"]

FORMAT = "revolve.plan/1"
FIELDS = (
    "format",
    "strategy",
    "budget",
    "peak",
    "makespan",
    "plain_makespan",
    "plain_peak",
    "tolerance",
    "chain",
    "actions",
)
SETTINGS = (
    ("strategy", str, "a string"),
    ("budget", (int, type(None)), "a whole number of bytes, zero or more, or null"),
    ("tolerance", (int, float), "a number, zero or more"),
)


def plain_schedule(length: int) -> list[Action]:
    """Return the schedule of plain training: save every stage, the loss, every backward.

    Parameters
    ----------
    length
        Number of stages.
    """
    return [*map(Save, range(length)), Loss(), *map(Backward, reversed(range(length)))]


def with_carried(chain: Chain, carried: Chain) -> Chain:
    """Return a chain together with the same stages where they carry what leaps over them.

    The time of the loss is the chain's, and plain training is judged by it.
    """
    peak = simulate(chain, plain_schedule(len(chain))).peak
    return replace(chain, carried=replace(carried, loss_time=chain.loss_time, carries=True, plain_peak=peak))


@dataclass(frozen=True, eq=True)
class Plan:
    """A schedule for one chain; peak and makespan are the simulator's.

    Attributes
    ----------
    chain
        What it was made for.
    actions
        The schedule.
    strategy
        Which generator made it.
    budget
        Bytes it was asked to fit in; None where no budget was given.
    peak, makespan
        Bytes and seconds of the schedule.
    plain_peak, plain_makespan
        Bytes and seconds of plain training of the same chain.
    tolerance
        The makespan is at most (1 + tolerance) times the optimum of the strategy.
    """

    chain: Chain
    actions: tuple[Action, ...]
    strategy: str
    budget: int | None
    peak: int
    makespan: float
    plain_peak: int
    plain_makespan: float
    tolerance: float = 0.0

    @classmethod
    def from_actions(
        cls,
        chain: Chain,
        actions: Iterable[Any],
        strategy: str = "custom",
        budget: int | None = None,
        tolerance: float = 0.0,
    ) -> Self:
        """Judge a schedule and wrap it as a plan.

        Raises
        ------
        ScheduleError
            If the schedule is not valid for the chain.
        """
        steps = tuple(read_actions(actions))
        judged = simulate(chain, steps)
        plain = simulate(chain, plain_schedule(len(chain)))
        peak = plain.peak if chain.plain_peak is None else chain.plain_peak
        return cls(chain, steps, strategy, budget, judged.peak, judged.makespan, peak, plain.makespan, tolerance)

    @property
    def ratio(self) -> float:
        """Recompute ratio: makespan over the makespan of plain training."""
        return self.makespan / self.plain_makespan if self.plain_makespan else 1.0

    @cached_property
    def simulation(self) -> Simulation:
        """Timeline of the schedule."""
        return simulate(self.chain, self.actions)

    @property
    def plain(self) -> bool:
        """Whether the schedule is plain training: nothing stored, nothing run again."""
        return self.actions == tuple(plain_schedule(len(self.chain)))

    def counts(self) -> Counter[str]:
        """Count the actions by kind."""
        return Counter(action.kind for action in self.actions)

    def stage_counts(self) -> list[Counter[str]]:
        """Count, for each stage, its runs by kind and how often its input is stored."""
        counts: list[Counter[str]] = [Counter() for _ in range(len(self.chain))]
        for action in self.actions:
            index = getattr(action, "index", None)
            if index is not None and not isinstance(action, (Load, Drop)):
                counts[index][action.kind] += 1
        return counts

    def formats(self) -> tuple[str, ...]:
        """Return the storage formats the schedule uses, in order of first use.

        Those of stored activations and those that stages are saved in, the latter unless dense.
        """
        used = [a for a in self.actions if isinstance(a, Store) or (isinstance(a, Save) and a.format != "dense")]
        return tuple(dict.fromkeys(action.format for action in used))

    def to_json(self) -> dict[str, Any]:
        """Return the ``revolve.plan/1`` document."""
        values = {name: getattr(self, name) for name in FIELDS[1:-2]}
        actions = [action.to_json() for action in self.actions]
        return {"format": FORMAT, **values, "chain": self.chain.to_json(), "actions": actions}

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Read a ``revolve.plan/1`` document and judge it anew.

        Raises
        ------
        ChainError
            If a field is missing or does not agree with the simulation of the actions.
        ScheduleError
            If the schedule is not valid for the chain.
        """
        check_format(document, FORMAT, frozenset(FIELDS))
        missing = [name for name in FIELDS if name not in document]
        if missing:
            raise ChainError(f"plan: field {missing[0]!r} is missing; required are {', '.join(FIELDS)}")
        if not isinstance(document["actions"], list):
            raise ChainError(f"plan: actions is {document['actions']!r}; it must be a list of actions")
        for name, kinds, wanted in SETTINGS:
            value = document[name]
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ChainError(f"plan: {name} is {value!r}; it must be {wanted}")
            if isinstance(value, (int, float)) and not 0 <= value < float("inf"):
                raise ChainError(f"plan: {name} is {value!r}; it must be {wanted}")
        plan = cls.from_actions(
            Chain.from_json(document["chain"]),
            document["actions"],
            document["strategy"],
            document["budget"],
            document["tolerance"],
        )
        if plan.budget is not None and plan.budget < plan.peak:
            raise ChainError(f"plan: budget is {plan.budget}, but its actions need {plan.peak} bytes; plan again")
        for name in ("peak", "makespan", "plain_makespan", "plain_peak"):
            if document[name] != getattr(plan, name):
                raise ChainError(
                    f"plan: {name} is {document[name]!r}, but its actions give {getattr(plan, name)!r}; "
                    "the file was changed by hand or made by an incompatible version: plan again"
                )
        return plan

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan file; errors name the file."""
        document = read_document(path)
        try:
            return cls.from_json(document)
        except RevolveError as error:
            raise ChainError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write a plan file."""
        write_document(path, self.to_json())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_actions, (
            self.chain,
            [action.to_json() for action in self.actions],
            self.strategy,
            self.budget,
            self.tolerance,
        )
