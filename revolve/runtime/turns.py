"""Where the backward passes of a surveyed step turn round."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from revolve.storage.boundary import map_tensors, storages_by_key, storages_of, tensors_of

from .detours import Detour, is_dense
from .generators import outside_modes
from .gradients import GradientLayout

if TYPE_CHECKING:
    from .survey import Surveyor

__all__ = ["Remains", "Turn", "users_alone"]

Storage = weakref.ref[torch.UntypedStorage]


@dataclass
class Turn:
    """Where the backward of one call turns round without running it.

    Attributes
    ----------
    stage, made
        Its stage, and the number there of its first output.
    positions
        Of the tensors in the call's output that hang on the inputs.
    reached
        Those of them that got a gradient.
    """

    surveyor: Surveyor
    number: int
    layout: GradientLayout
    stage: int
    made: int
    positions: Sequence[int] = ()
    reached: Sequence[int] = ()

    def apply(self, output: Any, passed: Mapping[int, torch.Tensor], inputs: Sequence[torch.Tensor]) -> Any:
        """Return an output whose tensors hang on the inputs by a detour, where they require a gradient."""
        given = tensors_of(output)
        self.positions = [n for n, t in enumerate(given) if t.requires_grad and id(t) not in passed]
        outside = [given[position] for position in self.positions]
        made: Any = ()
        if outside:
            aliases = [t.detach() for t in outside]
            made = Detour.apply(self, aliases, self.surveyor.token, *inputs)  # type: ignore[no-untyped-call]
        replaced = dict(zip(map(id, outside), made, strict=True))
        return map_tensors(lambda t: t if id(t) in passed else replaced.get(id(t), t.detach()), output)

    def reverse(self, gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Return zeros for the inputs."""
        surveyor = self.surveyor
        self.reached = [position for position, g in zip(self.positions, gradients, strict=True) if g is not None]
        if self.number in surveyor.ends:
            stage = surveyor.ends[self.number]
            begin = self.number + 1 - len(surveyor.stages[stage].functions)
            leaks = sum(surveyor.leaks[begin : self.number + 1])
            summed = len(self.reached) > 1  # what they share inside of the stage gets one added to the other
            given = [g for g in gradients if g is not None]
            copied = [g for g in given if summed or not is_dense(g)]
            surveyor.copies[stage] = leaks + sum(g.nbytes for g in copied)
            surveyor.gradients[stage] = sum(g.nbytes for g in given)
            if given and not copied and held_elsewhere(given[0]):
                surveyor.remains.shared.add((self.stage, self.made + self.reached[0]))
            surveyor.mark("back", stage)
            if stage == len(surveyor.stages) - 1:
                surveyor.remains.output_stays = surveyor.remains.output_bytes() > 0
        else:
            surveyor.mark("between", self.stage)
        zeros = self.layout.make()
        if self.number in surveyor.begins:
            surveyor.mark("backed", surveyor.begins[self.number])
        else:
            surveyor.mark("turned", self.stage)
        return zeros


@dataclass
class Remains:
    """What outlives the backward passes of a surveyed step.

    Attributes
    ----------
    output
        The storages of the last stage's output, with their bytes.
    output_stays
        Whether any of it is alive when the last stage's backward begins.
    shared
        Stage and number of the tensors whose gradients the backward of their stage does not free: they are those of
        others as well (of what is added to its output), or parts of others.
    """

    output: list[tuple[Storage, int]] = field(default_factory=list)
    output_stays: bool = True
    shared: set[tuple[int, int]] = field(default_factory=set)

    def take(self, output: Any) -> None:
        """Note the last stage's output."""
        self.output = [(weakref.ref(s), s.nbytes()) for s in storages_by_key(tensors_of(output)).values()]

    def output_bytes(self) -> int:
        """Return the bytes of the last stage's output that are alive."""
        return sum(size for storage, size in self.output if storage() is not None)


class Counting(torch.autograd.Function):
    """Counts who uses the gradient that it is given."""

    @staticmethod
    def forward(ctx: Any, counts: list[int], x: torch.Tensor) -> torch.Tensor:
        """Return a copy."""
        ctx.counts = counts
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradient, counted."""
        ctx.counts.append(gradients[0]._use_count())
        return None, gradients[0]


@cache
def users_alone() -> int:
    """Return how often torch counts a gradient as used that only the backward has which was given it."""
    counts: list[int] = []
    with torch.enable_grad(), outside_modes():
        made = Counting.apply(counts, torch.zeros(2, requires_grad=True))  # type: ignore[no-untyped-call]
        (made * 2).sum().backward()
    return counts[0]


def held_elsewhere(gradient: torch.Tensor) -> bool:
    """Whether the memory of a gradient that a backward was given stays when that lets it go."""
    base = gradient._base
    own = [gradient] if base is None else [gradient, base]
    users = torch._C._storage_Use_Count(storages_of(gradient)[-1]._cdata)  # one more for Python's
    shared = gradient._use_count() > users_alone()  # type: ignore[attr-defined]
    return shared or users > len(own) + 1 or (base is not None and base._use_count() > 1)  # type: ignore[attr-defined]
