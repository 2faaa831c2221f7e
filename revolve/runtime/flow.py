"""Which calls of a recording can follow one another as the stages of a chain, and what passes them by.

Two calls are linked if the second takes a tensor that the first gives: as it is, or what functions of torch have made
of it in between. These belong to the stage of the call behind them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import networkx as nx

from .recording import Call, Mark, Recording

__all__ = ["Candidate", "Flow"]

NOWHERE: frozenset[int] = frozenset()


class Candidate(NamedTuple):
    """One chain in a recording.

    Attributes
    ----------
    groups
        The calls of each stage: of modules, and of the functions before them.
    saved
        Bytes that each of them saves.
    outside
        Bytes saved by everything else.
    leaping
        Bytes that pass stages by.
    """

    groups: list[list[Call]]
    saved: list[int]
    outside: int
    leaping: int

    @property
    def least(self) -> int:
        """Return the bytes that any schedule holds at some time: what passes the largest stage by, with it."""
        return self.outside + self.leaping + max(self.saved, default=0)

    @property
    def coverage(self) -> float:
        """Return the share of bytes that the stages save."""
        total = sum(self.saved) + self.outside
        return sum(self.saved) / total if total else 1.0


class Flow:
    """Where the tensors come from that some calls take.

    Parameters
    ----------
    recording
        The recording.
    calls
        Some of its calls, none inside of another, in order.
    """

    def __init__(self, recording: Recording, calls: Sequence[Call]) -> None:
        self.recording = recording
        self.calls = calls
        self.usable = [call for call in calls if call.module is not None and not call.obstacle]
        self.makers: dict[Mark, frozenset[int]] = {}
        self.taken: dict[int, dict[Mark, frozenset[int]]] = {}  # the makers of what each call takes, when it does
        for call in calls:
            self.taken[call.number] = {mark: self.makers.get(mark, NOWHERE) for mark in call.inputs}
            if call.module is None:
                self.note_function(call)
            elif not call.obstacle:
                self.makers |= dict.fromkeys(call.fresh, frozenset({call.number}))

    def note_function(self, call: Call) -> None:
        """Let what a function gives come from where its arguments do, if it can be called again."""
        taken = self.taken[call.number]
        sources = NOWHERE.union(*taken.values())
        foreign = any(serial in call.changed and not makers for (serial, _), makers in taken.items())
        alike = all(self.recording.call(number).setting == call.setting for number in sources)
        if sources and alike and not foreign and not call.obstacle:
            self.makers |= {mark: sources for mark in call.outputs if mark not in self.makers}

    def link(self, before: Call, after: Call) -> frozenset[int]:
        """Return serial numbers of what a call takes and comes from an earlier one, if both can be in one chain.

        The tensors have to carry a gradient, if any that the later call takes does.
        """
        passed = {mark for mark, makers in self.taken[after.number].items() if before.number in makers}
        graded = self.recording.graded
        alike = before.setting == after.setting and not before.obstacle and not after.obstacle
        carried = bool(passed & graded) or not graded & set(after.inputs)
        linked = frozenset(serial for serial, _ in passed)
        return linked if alike and carried and after.changed <= linked else NOWHERE

    def longest_path(self, calls: Sequence[Call]) -> list[Call]:
        """Return the path through linked calls that saves the most bytes, and of those the one of the most calls."""
        graph = nx.DiGraph()
        for call in calls:
            weight = self.recording.saved_bytes(call) * len(calls) + 1
            if not call.changed:  # a chain never begins with a stage that works in place
                graph.add_edge(-1, call.number, weight=weight)
            for number in sorted(NOWHERE.union(*self.taken[call.number].values())):
                if number in graph and self.link(self.recording.call(number), call):
                    graph.add_edge(number, call.number, weight=weight)
        return [self.recording.call(number) for number in nx.dag_longest_path(graph)[1:]] if graph else []

    def fits(self, call: Call, path: Sequence[Call]) -> bool:
        """Whether a call may be a stage beside those of a path: it need not take what the one before gives."""
        graded = not self.recording.graded.isdisjoint(call.fresh)
        return graded and not call.changed and call.setting == path[0].setting and call not in path

    def chain(self, path: Sequence[Call]) -> Candidate:
        """Return the chain of some calls, those in one stage that cannot be separated, with functions before them."""
        steps = [[*self.functions(before, call), call] for before, call in pairwise(path)]
        steps = [[call] for call in path[:1]] + steps
        joined = self.joined(steps)
        groups: list[list[Call]] = []
        for number, calls in enumerate(steps):
            if number in joined:
                groups[-1] += calls
            else:
                groups.append(calls)
        saved = [sum(map(self.recording.saved_bytes, group)) for group in groups]
        outside = self.recording.saved_bytes(self.recording.call(0)) - sum(saved)
        return Candidate(groups, saved, outside, sum(self.leaping(groups).values()))

    def functions(self, before: Call, after: Call) -> Iterator[Call]:
        """Yield the functions between two calls that are called again with the second."""
        for call in self.calls:
            between = before.number < call.number < after.number and call.module is None
            if between and any(mark in self.makers for mark in call.outputs):
                yield call

    def joined(self, steps: Sequence[Sequence[Call]]) -> set[int]:
        """Return the numbers of steps in one stage with the one before.

        They work in place on what earlier ones gave, or return a view of it. A first call that returns a view of the
        model's input joins what follows.
        """
        joined: set[int] = set()
        made: dict[int, int] = {}  # by which step, by serial number
        storages = self.recording.storages
        waiting = False
        for number, calls in enumerate(steps):
            changed = {storages[serial][0] for call in calls for serial in call.changed}
            for first in (step for serial, step in made.items() if storages[serial][0] in changed):
                joined.update(range(first + 1, number + 1))
            last = calls[-1]
            given = {serial for serial, _ in last.fresh}
            before = [serial for serial, step in made.items() if step == number - 1] if number else []
            before += [] if number else [serial for serial, _ in last.inputs]
            shared = last.fresh == last.outputs and set(last.outputs) <= set(last.inputs)
            shared |= not {storages[serial][0] for serial in before}.isdisjoint(storages[serial][0] for serial in given)
            if number and (waiting or shared or last.changed):
                joined.add(number)
            waiting = shared and (waiting or not number)
            for call in calls:
                made |= {serial: number for serial, _ in call.fresh}
        return joined

    def leaping(self, groups: Sequence[Sequence[Call]]) -> dict[int, int]:
        """Return the bytes of what stages take from elsewhere than the one before, by storage: held all the time."""
        made: dict[int, int] = {}
        held: dict[int, int] = {}
        for number, group in enumerate(groups):
            taken: set[int] = {serial for serial, _ in group[0].inputs} if not number else set()
            received = False
            for call in group:
                for serial, _ in call.inputs:
                    passed = made.get(serial) == number - 1 and not received and number
                    if passed:
                        taken.add(serial)
                    elif made.get(serial, -1) < number and serial not in taken and self.carries(serial, made):
                        held.update([self.recording.storages[serial]])
                received |= call.module is not None
                made |= {serial: number for serial, _ in call.fresh if serial not in made}
        return held

    def carries(self, serial: int, made: dict[int, int]) -> bool:
        """Whether a tensor is of a stage, or depends on parameters: masks and the like are held anyway."""
        return serial in made or any((serial, version) in self.recording.graded for version in range(2))
