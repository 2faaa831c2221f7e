"""Where the tensors of one forward pass come from: the same stage, the one before, or elsewhere."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

import torch

from revolve.storage.boundary import cut, map_tensors, storage_keys, tensors_of, version_of, versions_of

from .exceptions import RecomputeError
from .inputs import Inputs
from .samples import Arguments
from .segments import Segment, Slot, Step
from .sharding import original

__all__ = ["Passed", "Track"]


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


class Passed(NamedTuple):
    """What other stages take of the tensors that one has made, by number.

    Attributes
    ----------
    picks, held
        What the next stage takes, and what later ones hold.
    """

    picks: frozenset[int]
    held: frozenset[int]


class Track:
    """Follows the tensors of one forward pass along a chain.

    Parameters
    ----------
    stages
        For each stage the paths of the modules that it calls.
    passed
        What was seen to pass between stages; nothing where that is not known.
    carries
        Whether what leaps over stages passes through them, to be dropped and made again with the activations that it is
        part of; else it is held.

    Attributes
    ----------
    segments
        The stages.
    stage
        Number of the present one.
    values
        What it has taken of the one before; complete when its first module has been called, but for what it carries.
    inputs
        The storages of these, and of what comes from elsewhere.
    grown
        What activations that may be stored already have come to carry by the call that is bound: the number of each,
        and a tensor.
    """

    def __init__(
        self, stages: Sequence[Sequence[str]], passed: Sequence[Passed] = (), *, carries: bool = False
    ) -> None:
        self.segments = [Segment(calls) for calls in stages]
        for segment, known in zip(self.segments, passed, strict=False):
            segment.held = dict.fromkeys(known.held)
        self.carries = carries
        self.grown: list[tuple[int, torch.Tensor]] = []
        self.stage = 0
        self.inputs = Inputs()
        self.values: list[torch.Tensor] = []
        self.versions: list[int] = []  # of these, when they were taken
        self.aliases: dict[int, tuple[weakref.ref[torch.Tensor], int, torch.Tensor]] = {}
        self.bound: list[torch.Tensor] = []  # arguments of the call that is bound; it may replace them in its lists
        self.taken: dict[int, int] = {}  # their versions
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
        if found is None or found.reference() is not tensor:  # FSDP and backward hooks make aliases
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
        self.inputs.passing |= storage_keys(self.values)

    def bind(self, forward: Callable[..., Any], arguments: Arguments) -> Step:
        """Note a call of the present stage, before it is made."""
        picks = self.segments[self.stage - 1].picks if self.stage else None
        self.before = len(self.segment.side), picks, len(picks or ())
        self.bound = tensors_of(arguments)
        self.taken = {id(tensor): version_of(tensor) for tensor in self.bound}
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
            if self.carries and place.stage >= 0:
                return self.carry(place, tensor)
        alias = self.alias(tensor)
        if place is not None and place.stage >= 0:
            self.segments[place.stage].held[place.number] = alias
        return alias

    def alias(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor that the present stage holds for one from elsewhere, the same for the same."""
        known = self.aliases.get(id(tensor))
        if known is None or known[0]() is not tensor or known[1] != version_of(tensor):
            known = self.aliases[id(tensor)] = weakref.ref(tensor), version_of(tensor), cut(tensor)
            self.segment.side.append(known[2])
            self.inputs.held |= storage_keys(known[2])
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
            self.enter(tensor, number)
        return picks.index(number)

    def enter(self, tensor: torch.Tensor, number: int | None) -> None:
        """Note the storage of what the present stage takes of the one before, by its number there."""
        held = number is not None and number in self.segments[self.stage - 1].held
        (self.inputs.held if held else self.inputs.passing).update(storage_keys(tensor))

    def carry(self, place: Place, tensor: torch.Tensor) -> Slot:
        """Let a tensor pass through all stages from its own to the present one; return its slot there."""
        slot = Slot(place.number)
        for stage in range(place.stage, self.stage):
            picks = self.segments[stage].picks
            assert picks is not None
            if slot.number not in picks:
                picks.append(slot.number)
                if stage + 1 == self.stage:
                    self.values.append(tensor)
                    self.versions.append(version_of(tensor))
                    self.enter(tensor, slot.number)
                if stage + 1 < self.stage or self.segment.called:  # else the value is still to be stored
                    self.grown.append((stage + 1, tensor))
            slot = Slot(-1 - picks.index(slot.number))
        return slot

    def changed(self) -> list[torch.Tensor]:
        """Return the arguments that the call that was bound has changed in place."""
        return [tensor for tensor in self.bound if version_of(tensor) != self.taken[id(tensor)]]

    def foreign(self) -> bool:
        """Whether the call that was bound has changed memory that the present stage has not made."""
        changed = self.changed()
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
        self.aliases, self.bound = {}, []
        for index, _ in self.grown:
            earlier = self.segments[index - 1].picks
            if earlier is not None and index < self.stage:
                earlier.pop()
        self.grown.clear()
        if picks is not None:
            del picks[count:], self.values[count:], self.versions[count:]
        self.inputs.passing.clear()
        self.inputs.held.clear()
        self.inputs.held |= storage_keys(self.segment.side)
        for position, tensor in enumerate(self.values):
            self.enter(tensor, None if picks is None else picks[position])

    def note(self, step: Step, output: Any, *, module: bool) -> None:
        """Note a call that has been made, and what it has given and changed."""
        for tensor in self.changed():
            self.note_change(tensor)
        self.bound = []
        self.grown.clear()
        segment = self.segment
        segment.steps.append(step)
        segment.called += module
        given = list(enumerate(tensors_of(output), segment.made))
        fresh = [(number, tensor) for number, tensor in given if id(tensor) not in self.taken]
        for number, tensor in fresh or (given if module else ()):
            self.places[id(tensor)] = Place(weakref.ref(tensor), version_of(tensor), self.stage, number, module)
        segment.made += len(given)

    def passed(self) -> list[Passed]:
        """Return what has passed between the stages."""
        found = []
        for segment in self.segments:
            held = frozenset(number for number, alias in segment.held.items() if alias is not None)
            found.append(Passed(frozenset(segment.picks or ()), held))
        return found

    def living(self, numbers: Container[int]) -> list[torch.Tensor]:
        """Return those of some tensors of the present stage, by number, that are alive."""
        found = [place for place in self.places.values() if place.stage == self.stage and place.number in numbers]
        return [tensor for place in found if (tensor := place.reference()) is not None]

    def note_change(self, tensor: torch.Tensor) -> None:
        """Note that the call has changed a tensor in place, and with it all views of the same memory."""
        before, now, keys = self.taken[id(tensor)], version_of(tensor), storage_keys([tensor])
        for key, place in self.places.items():
            other = place.reference()
            same = other is not None and place.version == before and version_of(other) == now  # they have one counter
            if other is tensor or (same and place.stage == self.stage and keys == storage_keys([other])):
                self.places[key] = place._replace(version=now)

    def given_by_functions(self) -> list[Place]:
        """Return the places of living tensors with a gradient that functions of the present stage have made."""
        found = [place for place in self.places.values() if place.stage == self.stage and not place.module]
        return [place for place in found if (tensor := place.reference()) is not None and tensor.requires_grad]

    def advance(self) -> None:
        """Go on to the next stage."""
        self.values, self.versions, self.aliases, self.inputs = [], [], {}, Inputs()
        if self.stage + 1 < len(self.segments):
            self.segment.picks = []
            self.stage += 1
