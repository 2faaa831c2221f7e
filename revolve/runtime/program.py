"""A schedule in the form that the executor follows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from revolve.schedules.actions import Action, Backward, Forward, Load, Loss, Rebuild, Save
from revolve.schedules.chain import Chain
from revolve.schedules.plans import Plan
from revolve.storage.codecs import codec_named

from .exceptions import PlanMismatch

__all__ = ["Program"]


@dataclass(frozen=True)
class Program:
    """A schedule split at its turn-around.

    Attributes
    ----------
    sweep
        Actions up to the loss: every stage once, in order.
    runs
        For each stage its run in the sweep.
    rest
        Actions after it.
    prepared
        The stages before whose backward something is done since the one before.
    stops
        For each stage whether a rebuild ends at its last saved tensor: where one is planned and takes less time than a
        forward.
    chain
        Says what was planned for the formats.
    slack
        Bytes that the budget leaves above the plan's peak; None without a budget.
    formats
        The storage formats that the schedule uses besides the dense one.
    plain
        Whether the schedule is plain training.
    """

    sweep: tuple[Action, ...]
    runs: tuple[Forward | Save, ...]
    rest: tuple[Action, ...]
    prepared: frozenset[int]
    stops: tuple[bool, ...]
    chain: Chain
    slack: int | None
    formats: tuple[str, ...]
    plain: bool

    @cached_property
    def whole(self) -> tuple[Action, ...]:
        """Return all actions but the loss."""
        return self.sweep + self.rest

    @classmethod
    def from_plan(cls, plan: Plan) -> Program:
        """Split the schedule of a plan.

        Raises
        ------
        PlanMismatch
            If it runs stages again before the loss.
        CodecError
            If it uses a storage format that does not exist.
        """
        turn = plan.actions.index(Loss())
        sweep = plan.actions[:turn]
        runs = tuple(action for action in sweep if isinstance(action, (Forward, Save)))
        if [action.index for action in runs] != list(range(len(plan.chain))) or any(
            isinstance(action, (Load, Rebuild)) for action in sweep
        ):
            raise PlanMismatch(
                "the plan runs stages again before the loss, which autograd cannot execute; "
                "use a schedule whose first sweep runs every stage once"
            )
        rebuilt = {action.index for action in plan.actions if isinstance(action, Rebuild)}
        rest = plan.actions[turn + 1 :]
        prepared = frozenset(
            action.index
            for before, action in pairwise(rest)
            if isinstance(action, Backward) and not isinstance(before, Backward)
        )
        stops = tuple(i in rebuilt and stage.rebuild < stage.forward for i, stage in enumerate(plan.chain.stages))
        slack = None if plan.budget is None else plan.budget - plan.peak
        formats = tuple(name for name in plan.formats() if name != "dense")
        for name in formats:
            codec_named(name)  # a format that does not exist is an error now, not in the step
        return cls(sweep, runs, rest, prepared, stops, plan.chain, slack, formats, plan.plain)
