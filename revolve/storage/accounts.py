"""What encoded tensors may take: planned from a sample, watched while a step runs.

The size of a sparse form depends on the data. For each use of a format a plan has the bytes of the sample's form and
a reserve. What a step needs beyond them is drawn from what the budget leaves above the plan's peak; where that
is used up, the step is stopped before it takes more.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from revolve.schedules.exceptions import RevolveError

from .boundary import storages_of

__all__ = ["RESERVE", "Account", "Allowance", "DenserThanPlanned", "reserve_of"]

# Share of a tensor's elements that may be zero in the sample and not in a step, in the plan's size of a sparse form.
RESERVE = 0.05
# A step that needs more than this share of the reserve lets the next one be planned anew.
STRAIN = 0.75


def reserve_of(dense_bytes: int, form_bytes: int) -> int:
    """Return the bytes that are planned for a sparse form beyond those of the sample's form.

    Where zeros fall by chance, small tensors vary more: four standard deviations of as many tosses of a coin, with
    elements of 4 bytes, are planned for besides.
    """
    chance = int(4 * dense_bytes**0.5)
    return max(0, min(int(RESERVE * dense_bytes) + chance, dense_bytes - form_bytes))


class DenserThanPlanned(RevolveError, RuntimeError):  # noqa: N818 - reads as what it is
    """Tensors have fewer zeros than there is room for, or values that a format cannot keep; nothing was exceeded."""


class Allowance:
    """The bytes that one step may take beyond its plan.

    Parameters
    ----------
    slack
        Budget less the plan's peak; None where there is no budget.
    strain
        Called when some form comes close to what was planned for it, or goes beyond.
    """

    def __init__(self, slack: int | None, strain: Callable[[], None]) -> None:
        self.slack = slack
        self.strain = strain


class Account:
    """The bytes of one use of a format: a stored activation, or what one stage saves.

    Parameters
    ----------
    allowance
        What all uses together may take beyond the plan.
    name
        What is kept, for an error message.
    planned
        Bytes planned for it.
    """

    __slots__ = ("allowance", "dense", "name", "planned", "reserve", "spent")

    def __init__(self, allowance: Allowance, name: str, planned: int) -> None:
        self.allowance = allowance
        self.name = name
        self.planned = planned
        self.spent = 0
        self.reserve = 0
        self.dense: set[int] = set()

    def allow(self, nbytes: int) -> None:
        """Take note of bytes that are about to be allocated.

        Raises
        ------
        DenserThanPlanned
            If plan and budget have no room for them.
        """
        before = max(0, self.spent - self.planned)
        self.spent += nbytes
        beyond = max(0, self.spent - self.planned) - before
        if self.allowance.slack is not None and beyond:
            self.allowance.strain()
            if beyond > self.allowance.slack:
                raise DenserThanPlanned(
                    f"{self.name} would take {self.spent} bytes, and {self.planned} were planned for it: it has fewer "
                    "zeros, or values the format cannot keep, such as NaN in int8, which stay dense. The budget leaves "
                    f"{self.allowance.slack} bytes above the plan; the step was stopped before it exceeded them. "
                    "Repeat it: it will be planned for anew"
                )
            self.allowance.slack -= beyond

    def count_dense(self, tensor: torch.Tensor) -> None:
        """Take note of a storage that stays dense, once."""
        for storage in storages_of(tensor):
            if storage._cdata not in self.dense:
                self.dense.add(storage._cdata)
                self.allow(storage.nbytes())

    def expect(self, dense_bytes: int, form_bytes: int) -> None:
        """Take note of a form whose size depends on the data."""
        self.reserve += reserve_of(dense_bytes, form_bytes)

    def close(self) -> None:
        """Compare with the plan when everything is kept."""
        if self.reserve and self.spent > self.planned - (1 - STRAIN) * self.reserve:
            self.allowance.strain()
