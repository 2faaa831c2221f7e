"""The calls of one stage as the model made them, so that they can be made again on another value.

A stage is made of calls of modules and of the functions of torch between them. What a call takes comes from the same
stage, from the one before, or from elsewhere: that is held by reference for the whole step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from revolve.storage.boundary import cut_tensor, map_tensors, storage_keys, tensors_of, version_of, versions_of

from .exceptions import RecomputeError
from .generators import Source
from .samples import Arguments
from .sharding import original

__all__ = ["Segment", "Slot", "Step", "Track"]


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
        Numbers of the tensors that the next stage takes; None for the last one, which gives what its last call does.
    extras
        Numbers of others to give, to be measured: what leaves the chain for an auxiliary loss.
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

        def fill(slot: Slot) -> torch.Tensor:
            found: torch.Tensor = made[slot.number] if slot.number >= 0 else values[-1 - slot.number]
            return found

        output = None
        for step in self.steps:
            for source, state in step.draws:
                source.write(state)
            args, kwargs = map_tensors(fill, step.template, Slot)
            output = step.forward(*args, **kwargs)
            del args, kwargs
            made += tensors_of(output)
            for number in step.done:
                made[number] = None
        if self.picks is None:
            return output
        held = [self.held.get(number) for number in self.picks]
        given = [made[number] if alias is None else alias for number, alias in zip(self.picks, held, strict=True)]
        given += [made[number] for number in self.extras]
        return given[0] if len(given) == 1 else tuple(given)

    def activation(self, output: Any) -> Any:
        """Return what of its output counts as the next stage's input: what is held anyway does not, nor extras."""
        if self.picks is None:
            return output
        given = output if isinstance(output, tuple) else (output,)
        return [tensor for number, tensor in zip(self.picks, given, strict=False) if number not in self.held]

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


class Place(NamedTuple):
    """Which call a tensor came from.

    Attributes
    ----------
    reference, version
        The tensor, and its version then.
    stage, number
        Of the stage, and of the tensor among those that it has made.
    module
        Whether a module has given it, not a function.
    """

    reference: weakref.ref[torch.Tensor]
    version: int
    stage: int
    number: int
    module: bool = True


class Track:
    """Follows the tensors of one forward pass along a chain.

    Parameters
    ----------
    stages
        For each stage the paths of the modules that it calls.

    Attributes
    ----------
    segments
        The stages.
    stage
        Number of the present one.
    values
        What it has taken of the one before; complete when its first module has been called.
    """

    def __init__(self, stages: Sequence[Sequence[str]]) -> None:
        self.segments = [Segment(calls) for calls in stages]
        self.stage = 0
        self.values: list[torch.Tensor] = []
        self.versions: list[int] = []  # of these, when they were taken
        self.aliases: dict[int, tuple[weakref.ref[torch.Tensor], int, torch.Tensor]] = {}
        self.taken: dict[int, int] = {}  # versions of the arguments of the call that is bound
        self.before: tuple[int, list[int] | None, int] = (0, None, 0)  # what the stage took before it
        self.places: dict[int, Place] = {}

    @property
    def segment(self) -> Segment:
        """Return the present stage."""
        return self.segments[self.stage]

    @property
    def value(self) -> Any:
        """Return what the present stage takes of the one before."""
        return self.values[0] if len(self.values) == 1 else tuple(self.values)

    def place(self, tensor: torch.Tensor) -> Place | None:
        """Return where a tensor comes from, None if no call of the chain has given it as it is."""
        found = self.places.get(id(tensor))
        if found is None or found.reference() is not tensor:  # FSDP calls its units with aliases
            tensor = original(tensor, (place.reference() for place in self.places.values()))
            found = self.places.get(id(tensor))
        same = found is not None and found.reference() is tensor and found.version == version_of(tensor)
        return found if same else None

    def begin(self, arguments: Arguments) -> None:
        """Let the first stage take what requires a gradient of its first arguments, or the first of them."""
        tensors = tensors_of(arguments)
        for tensor in dict.fromkeys([t for t in tensors if t.requires_grad] or tensors[:1]):
            self.values.append(tensor)
            self.versions.append(version_of(tensor))
            self.places[id(tensor)] = Place(weakref.ref(tensor), version_of(tensor), -1, len(self.values) - 1)

    def bind(self, forward: Callable[..., Any], arguments: Arguments) -> Step:
        """Note a call of the present stage, before it is made."""
        picks = self.segments[self.stage - 1].picks if self.stage else None
        self.before = len(self.segment.side), picks, len(picks or ())
        self.taken = {id(tensor): version_of(tensor) for tensor in tensors_of(arguments)}
        return Step(forward, map_tensors(self.slot, arguments), self.segment.made)

    def slot(self, tensor: torch.Tensor) -> Slot | torch.Tensor:
        """Return where an argument is found when the call is made again: a slot, or the tensor itself, held."""
        place = self.place(tensor)
        if place is not None:
            if place.stage == self.stage:
                return Slot(place.number)
            if place.stage == self.stage - 1:
                position = self.position(place.number, tensor)
                if position is not None:
                    return Slot(-1 - position)
        alias = self.alias(tensor)
        if place is not None and place.stage >= 0:
            self.segments[place.stage].held[place.number] = alias
        return alias

    def alias(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor that the present stage holds for one from elsewhere, the same for the same."""
        known = self.aliases.get(id(tensor))
        if known is None or known[0]() is not tensor or known[1] != version_of(tensor):
            known = self.aliases[id(tensor)] = weakref.ref(tensor), version_of(tensor), cut_tensor(tensor)
            self.segment.side.append(known[2])
        return known[2]

    def position(self, number: int, tensor: torch.Tensor) -> int | None:
        """Return the position of what the stage before made in the value; it is put there as long as that is open."""
        if not self.stage:
            return number
        picks = self.segments[self.stage - 1].picks
        assert picks is not None
        if number not in picks:
            if self.segment.called:
                return None
            picks.append(number)
            self.values.append(tensor)
            self.versions.append(version_of(tensor))
        return picks.index(number)

    def foreign(self, arguments: Arguments) -> bool:
        """Whether the call that was bound has changed memory that the present stage has not made."""
        changed = [tensor for tensor in tensors_of(arguments) if version_of(tensor) != self.taken[id(tensor)]]
        return bool(changed) and not storage_keys(changed).isdisjoint(storage_keys([*self.values, *self.segment.side]))

    def check(self) -> None:
        """Check that what the stage takes is as it was when it was taken first.

        Raises
        ------
        RecomputeError
            If something has changed it in place since.
        """
        if versions_of(self.values) != tuple(self.versions):
            raise RecomputeError(
                f"what {self.segment.calls[0]!r} takes of the stage before it is changed in place before it is called, "
                "so that it cannot be run again; change a copy (x + 1 instead of x += 1), or measure and plan again"
            )

    def forget(self) -> None:
        """Take back the call that was bound."""
        side, picks, count = self.before
        del self.segment.side[side:]
        self.aliases = {}
        if picks is not None:
            del picks[count:], self.values[count:], self.versions[count:]

    def note(self, step: Step, arguments: Arguments, output: Any, *, module: bool) -> None:
        """Note a call that has been made, and what it has given and changed."""
        for tensor in tensors_of(arguments):
            found = self.places.get(id(tensor))
            if found is not None and version_of(tensor) != self.taken[id(tensor)]:
                self.places[id(tensor)] = found._replace(version=version_of(tensor))
        segment = self.segment
        segment.steps.append(step)
        segment.called += module
        given = list(enumerate(tensors_of(output), segment.made))
        fresh = [(number, tensor) for number, tensor in given if id(tensor) not in self.taken]
        for number, tensor in fresh or (given if module else ()):
            self.places[id(tensor)] = Place(weakref.ref(tensor), version_of(tensor), self.stage, number, module)
        segment.made += len(given)

    def given_by_functions(self) -> list[Place]:
        """Return the places of living tensors with a gradient that functions of the present stage have made."""
        found = [place for place in self.places.values() if place.stage == self.stage and not place.module]
        return [place for place in found if (tensor := place.reference()) is not None and tensor.requires_grad]

    def advance(self) -> None:
        """Go on to the next stage."""
        self.values, self.versions, self.aliases = [], [], {}
        if self.stage + 1 < len(self.segments):
            self.segment.picks = []
            self.stage += 1
