"""The calls of one stage as the model made them, so that they can be made again on another value.

A stage is made of calls of modules and of the functions of torch between them. What a call takes comes from the same
stage, from the one before, or from elsewhere: that is held by reference for the whole step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from revolve.storage.boundary import map_tensors, tensors_of

from .exceptions import RecomputeError
from .generators import Source
from .samples import Arguments

__all__ = ["Segment", "Slot", "Step"]


class Slot(NamedTuple):
    """Where a tensor goes that the stage makes or takes.

    Attributes
    ----------
    number
        Of those that the stage has made before; -1, -2 ... are the values that it takes of the one before.
    """

    number: int


LEAVES = (Slot, torch.Tensor)


class Step:
    """One call.

    Attributes
    ----------
    forward, template
        What is called, and its arguments, with slots.
    made
        Number of the first tensor that it gives.
    done
        Numbers of the tensors that no later step takes.
    draws
        Generators that something else drew from since the step before, each with its state now.
    """

    __slots__ = ("done", "draws", "forward", "made", "template")

    def __init__(self, forward: Callable[..., Any], template: Arguments, made: int) -> None:
        self.forward = forward
        self.template = template
        self.made = made
        self.done: list[int] = []
        self.draws: tuple[tuple[Source, Any], ...] = ()

    def leaves(self) -> list[torch.Tensor | None]:
        """Return for each tensor among the arguments what is held for it, None where it has a slot."""
        found: list[torch.Tensor | None] = []
        map_tensors(lambda leaf: found.append(None if isinstance(leaf, Slot) else leaf), self.template, LEAVES)
        return found

    def slots(self) -> list[int]:
        """Return the numbers of its slots, each once."""
        found: dict[int, None] = {}
        map_tensors(lambda slot: found.setdefault(slot.number), self.template, Slot)
        return list(found)


class Segment:
    """A stage as a function of the value that the one before gave.

    Parameters
    ----------
    calls
        Paths of the modules that it calls.

    Attributes
    ----------
    steps
        What was called, in order.
    side
        The tensors that come from elsewhere (masks, rotary tables, what leaps over stages): the same storages, outside
        of any graph.
    picks
        Numbers of the tensors that the next stage takes, those of values that pass through included; None for the last
        one, which gives what its last call does.
    extras
        Numbers of others to give, to be measured: what leaves the chain for an auxiliary loss.
    shared
        Numbers of tensors whose gradients outlive its backward, as parts of others.
    held
        The tensors among its own that later stages hold, by number: it gives these. None while it is measured.
    """

    def __init__(self, calls: Sequence[str]) -> None:
        self.calls = calls
        self.called = 0
        self.steps: list[Step] = []
        self.side: list[torch.Tensor] = []
        self.made = 0
        self.picks: list[int] | None = None
        self.extras: list[int] = []
        self.shared: set[int] = set()
        self.held: dict[int, torch.Tensor | None] = {}
        self.freed: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return "\n".join(repr(step.forward) for step in self.steps)  # methods print with their module

    def __call__(self, value: Any) -> Any:
        """Make the calls; return what the next stage takes, and the extras."""
        if self.called < len(self.calls):
            raise RecomputeError(f"the forward pass ended before {self.calls[self.called]!r}, in the middle of a stage")
        values = value if isinstance(value, tuple) else (value,)
        made: list[Any] = []
        self.find_last_uses()

        def find(number: int) -> torch.Tensor:
            found: torch.Tensor = made[number] if number >= 0 else values[-1 - number]
            return found

        output = None
        for step in self.steps:
            for source, state in step.draws:
                source.write(state)
            args, kwargs = map_tensors(lambda slot: find(slot.number), step.template, Slot)
            output = step.forward(*args, **kwargs)
            del args, kwargs
            made += tensors_of(output)
            for number in step.done:
                made[number] = None
        if self.picks is None:
            return output
        held = [self.held.get(number) for number in self.picks]
        given = [find(number) if alias is None else alias for number, alias in zip(self.picks, held, strict=True)]
        given += [made[number] for number in self.extras]
        return given[0] if len(given) == 1 else tuple(given)

    def activation(self, output: Any) -> Any:
        """Return what of its output counts as the next stage's input: what is held anyway does not, nor extras."""
        if self.picks is None:
            return output
        given = output if isinstance(output, tuple) else (output,)
        return [tensor for number, tensor in zip(self.picks, given, strict=False) if number not in self.held]

    def shared_of(self, output: Any) -> list[torch.Tensor]:
        """Return those tensors of its output whose gradients outlive its backward."""
        if self.picks is None:
            first = self.steps[-1].made
            return [tensor for number, tensor in enumerate(tensors_of(output), first) if number in self.shared]
        given = output if isinstance(output, tuple) else (output,)
        return [t for number, t in zip((*self.picks, *self.extras), given, strict=True) if number in self.shared]

    def give_besides(self, numbers: Iterable[int]) -> None:
        """Let it give tensors of its own besides what the next stage takes, but for those that only its steps take."""
        self.held = dict.fromkeys(self.held)
        inside = {number for step in self.steps for number in step.slots()} - self.held.keys()
        if self.picks is not None:
            self.extras = [number for number in numbers if number not in self.picks and number not in inside]

    def find_last_uses(self) -> None:
        """Note after which step each tensor is not needed any more."""
        wanted = (len(self.steps), *(self.picks or ()), *self.extras)
        if wanted == self.freed:
            return
        self.freed = wanted
        kept = {*wanted[1:]}
        for step in reversed(self.steps):
            taken = step.slots()
            step.done = [number for number in taken if number >= 0 and number not in kept]
            kept |= {*taken}
        # What no step takes is dropped with the step that made it.
        ends = [*(step.made for step in self.steps[1:]), self.made]
        last = self.steps[-1]
        for step, end in zip(self.steps, ends, strict=True):
            if step is not last:
                step.done += [number for number in range(step.made, end) if number not in kept]
