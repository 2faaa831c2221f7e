"""A schedule in the form that the executor follows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from revolve.schedules.actions import Action, Forward, Load, Loss, Rebuild, Save
from revolve.schedules.plans import Plan

from .exceptions import PlanMismatch

__all__ = ["Program"]


@dataclass(frozen=True)
class Program:
    """A schedule split at its turn-around.

    Attributes
    ----------
    sweep
        Actions up to the loss: every stage once, in order.
    rest
        Actions after it.
    stops
        For each stage whether a rebuild ends at its last saved tensor: where that takes less time than a forward.
    """

    sweep: tuple[Action, ...]
    rest: tuple[Action, ...]
    stops: tuple[bool, ...]

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
            If it runs stages again before the loss, or uses a storage format other than dense.
        """
        turn = plan.actions.index(Loss())
        sweep = plan.actions[:turn]
        runs = [action.index for action in sweep if isinstance(action, (Forward, Save))]
        if runs != list(range(len(plan.chain))) or any(isinstance(action, (Load, Rebuild)) for action in sweep):
            raise PlanMismatch(
                "the plan runs stages again before the loss, which autograd cannot execute; "
                "use a schedule whose first sweep runs every stage once"
            )
        foreign = [name for name in plan.formats() if name != "dense"]
        if foreign:
            raise PlanMismatch(f"the plan stores activations in format {foreign[0]!r}; only 'dense' can be executed")
        stops = tuple(stage.rebuild < stage.forward for stage in plan.chain.stages)
        return cls(sweep, plan.actions[turn + 1 :], stops)
