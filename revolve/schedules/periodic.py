"""Every n-th stage checkpointed on its own, the others saved: transformers' ``every_n_layers``.

Stages 0, n, 2n, ... keep only their input in the forward and are run again, one at a time, in the
backward; n = 1 checkpoints every stage. The last stage is no exception, since a layer does not know that
it is the last.

References
----------
huggingface/transformers, pull request 48200: gradient_checkpointing_enable(every_n_layers=n), which
checkpoints the first layer and then every n-th after it.
"""

from __future__ import annotations

from collections.abc import Iterator

from .actions import Action
from .chain import Chain
from .families import plan_fastest
from .generated import check_count
from .plans import Plan
from .segments import schedule_from_segments

__all__ = ["every_nth", "plan_every_nth"]


def every_nth(length: int, n: int) -> list[Action]:
    """Return the schedule that checkpoints every n-th stage.

    Parameters
    ----------
    length
        Number of stages.
    n
        Distance of checkpointed stages, 1 or more; the first stage is one of them.

    Raises
    ------
    BudgetError
        If a number is not an int of 1 or more.

    Examples
    --------
    >>> [action.to_json() for action in every_nth(2, 2)]
    [['forward', 0], ['save', 1], ['loss'], ['backward', 1], ['load', 0], ['rebuild', 0], ['backward', 0]]
    """
    check_count("length", length)
    check_count("n", n)
    return list(schedule_from_segments([(index, index + 1) for index in range(0, length, n)], length))


def plan_every_nth(chain: Chain, budget: int | str) -> Plan:
    """Return the fastest schedule, over all n, that checkpoints every n-th stage and fits a budget.

    Parameters
    ----------
    chain
        The chain.
    budget
        Bytes, or a string such as ``"300MB"`` or ``"80%"`` (of plain training's peak).

    Returns
    -------
    Plan
        Its strategy tells n, for example ``"every_nth(2)"``.

    Raises
    ------
    InfeasibleBudget
        If no n fits; the error names the least budget of all of them.
    BudgetError
        If the budget cannot be understood.

    Examples
    --------
    >>> plan_every_nth(Chain.uniform(6, saved_bytes=3), 22).strategy
    'every_nth(3)'
    """
    return plan_fastest(chain, budget, "every_nth", list_members)


def list_members(chain: Chain) -> Iterator[tuple[str, list[Action]]]:
    """Yield name and schedule for n = 1, 2, ..."""
    length = len(chain)
    return ((f"every_nth({n})", every_nth(length, n)) for n in range(1, length + 1))
