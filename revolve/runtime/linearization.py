"""Finds the chain of stages in any module: module calls where one's output is the very input of the next.

Two calls are linked if an output of the first and an input of the second are the same tensor object at the same
version. A container is opened where it is exactly a chain of its children and saves nothing itself. What lies outside
of a chain is kept by ordinary autograd, and the largest stage is saved as a whole sooner or later: other containers
are opened, largest first, as long as that lowers the sum of the two. The best chain is the longest path by saved bytes
in the graph of links.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import networkx as nx
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from revolve.storage.boundary import tensors_of

from .exceptions import ModelError
from .interception import run_plainly
from .isolation import isolated
from .measurement import copy_of, find_stages, refuse_sharded, running
from .recording import ModuleCall, Recording, record
from .replay import recomputing
from .samples import arguments_of
from .stages import StageModule, check_model, flatten, is_plain_sequential

__all__ = ["Stages", "find_chain", "linearize"]


class Stages(list[StageModule]):
    """The stages of a model, in order.

    Attributes
    ----------
    coverage
        Share of the bytes that autograd saves in the model which it saves in these stages.
    """

    def __init__(self, stages: Iterable[StageModule], coverage: float) -> None:
        super().__init__(stages)
        self.coverage = coverage


def linearize(model: nn.Module, sample: Any) -> Stages:
    """Cut a model into a chain of stages, by running it once.

    Parameters
    ----------
    model
        Any module, in training mode.
    sample
        The input: a tensor, a tuple of positional or a mapping of keyword arguments; an nn.Sequential takes it as it
        is.

    Returns
    -------
    Stages
        A list of stages, each with its ``name``: the paths of its modules, joined by "+"; and their ``coverage``.
        Parameters, gradients, buffers and random numbers are as before.

    Raises
    ------
    ModelError
        If no chain is found; the message says why.
    MeasurementError
        If the model cannot be run with the sample.
    """
    whole = StageModule(type(check_model(model)).__name__, (model,))
    refuse_sharded([whole])
    keep = saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)  # what is saved here is nobody else's
    with isolated([whole], arguments_of(model, sample)), recomputing(), keep:
        run_plainly(model)
        return find_chain(model, sample)


def find_chain(model: nn.Module, sample: Any) -> Stages:
    """Cut a model into stages where it is isolated."""
    if is_plain_sequential(model):
        children = [(path, child) for path, child in model._modules.items() if child is not None]
        return Stages(find_stages(flatten(children), sample), 1.0)
    arguments = copy_of(arguments_of(model, sample))
    whole = StageModule(type(model).__name__, (model,))
    with running(whole, arguments):
        recording = record(model, arguments, through=[*whole.tensors(), *tensors_of(arguments)])
    chain = best_chain(recording)
    if not chain.groups:
        raise ModelError(f"no module call of the {whole.name} can be a stage: {obstacles(recording)}")
    return Stages(map(stage_of, chain.groups), chain.coverage)


class Candidate(NamedTuple):
    """One chain in a recording.

    Attributes
    ----------
    groups
        The calls of each stage.
    saved
        Bytes that each of them saves.
    outside
        Bytes saved by everything else.
    leaping
        Bytes that pass stages by.
    """

    groups: list[list[ModuleCall]]
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


def best_chain(recording: Recording) -> Candidate:
    """Return the chain that leaves the least bytes to be held, opening the largest stages as long as that helps."""
    opened = {0}
    best = present = candidate(recording, opened)
    while present.groups:
        largest = max(zip(present.saved, present.groups, strict=True), key=lambda pair: pair[0])[1]
        inside = {call.number for call in largest if recording.children(call)}
        opened |= inside
        present = candidate(recording, opened)
        if not inside or present.least > best.least:
            break
        if present.least < best.least:  # where it is the same, the container may be a mere wrapper
            best = present
    return best


def candidate(recording: Recording, opened: set[int]) -> Candidate:
    """Return the longest chain by saved bytes where some containers have been opened."""
    path = longest_path(recording, list(units(recording, recording.call(0), opened)))
    groups = glue(recording, path)
    saved = [sum(map(recording.saved_bytes, group)) for group in groups]
    return Candidate(groups, saved, recording.saved_bytes(recording.call(0)) - sum(saved), leaping(recording, path))


def leaping(recording: Recording, path: Sequence[ModuleCall]) -> int:
    """Return the bytes that calls of a path take from earlier ones than the one before: held all the time."""
    made: set[int] = set()
    held: dict[int, int] = {}
    for before, call in pairwise(path):
        passed = {serial for serial, _ in before.fresh}
        taken = {serial for serial, _ in call.inputs}
        held |= dict(recording.storages[serial] for serial in (taken & made) - passed)
        made |= passed
    return sum(held.values())


def units(recording: Recording, call: ModuleCall, opened: set[int]) -> Iterator[ModuleCall]:
    """Yield the calls that a call consists of, in order; itself, if it stays closed."""
    children = recording.children(call)
    if call.number in opened or is_chain(recording, call, children):
        for child in children:
            yield from units(recording, child, opened)
    else:
        yield call


def is_chain(recording: Recording, call: ModuleCall, children: Sequence[ModuleCall]) -> bool:
    """Whether a call does nothing but run its children, one on the output of the other."""
    if not children or call.saved or any(child.obstacle for child in children):
        return False
    begins = set(call.inputs) & set(children[0].inputs)
    ends = set(call.fresh) <= set(children[-1].fresh) | set(call.inputs)
    if not begins or not ends or not all(link(recording, a, b) for a, b in pairwise(children)):
        return False
    made = begins & recording.graded
    for before, child in pairwise(children):
        if (made - set(before.fresh)) & set(child.inputs):  # it leaps over a child
            return False
        made |= set(before.fresh)
    return True


def link(recording: Recording, before: ModuleCall, after: ModuleCall) -> frozenset[int]:
    """Return serial numbers of the tensors that one call gives and another takes, if both can be in one chain.

    The tensors have to carry a gradient, if any that the later call takes does.
    """
    passed, graded = set(before.fresh) & set(after.inputs), recording.graded
    linked = frozenset(serial for serial, _ in passed)
    alike = before.setting == after.setting and not before.obstacle and not after.obstacle
    carried = bool(passed & graded) or not graded & set(after.inputs)
    return linked if alike and carried and after.changed <= linked else frozenset()


def longest_path(recording: Recording, calls: Sequence[ModuleCall]) -> list[ModuleCall]:
    """Return the path through linked calls that saves the most bytes, and of those the one of the most calls."""
    graph = nx.DiGraph()
    usable = [call for call in calls if not call.obstacle]
    makers: dict[tuple[int, int], list[ModuleCall]] = {}
    for call in usable:
        weight = recording.saved_bytes(call) * len(usable) + 1
        if not call.changed:  # a chain never begins with a stage that works in place
            graph.add_edge(-1, call.number, weight=weight)
        for maker in dict.fromkeys(maker for mark in call.inputs for maker in makers.get(mark, ())):
            if maker.number in graph and link(recording, maker, call):
                graph.add_edge(maker.number, call.number, weight=weight)
        for mark in call.fresh:
            makers.setdefault(mark, []).append(call)
    return [recording.call(number) for number in nx.dag_longest_path(graph)[1:]]


def glue(recording: Recording, path: Sequence[ModuleCall]) -> list[list[ModuleCall]]:
    """Put calls into one stage that cannot be separated: those that work in place on, or return a view of, their input.

    A first call that returns a view of the model's input joins what follows.
    """
    groups: list[list[ModuleCall]] = []
    waiting = False
    for number, call in enumerate(path):
        linked = {serial for serial, _ in call.inputs} if not number else link(recording, path[number - 1], call)
        before = {recording.storages[serial][0] for serial in linked}
        shared = call.fresh == call.outputs and set(call.outputs) <= set(call.inputs)
        shared |= any(recording.storages[serial][0] in before for serial, _ in call.fresh)
        if groups and (waiting or shared or call.changed):
            groups[-1].append(call)
            waiting = waiting and shared
        else:
            groups.append([call])
            waiting = shared
    return groups


def stage_of(group: Sequence[ModuleCall]) -> StageModule:
    """Return the stage that some calls make."""
    return StageModule("+".join(call.path for call in group), tuple(call.module for call in group))


def obstacles(recording: Recording) -> str:
    """Write why the largest calls cannot be stages."""
    calls = [recording.call(number) for number in recording.graph if number]
    found = {call.path: call.obstacle for call in sorted(calls, key=recording.saved_bytes) if call.obstacle}
    return "; ".join(f"{path!r}: {reason}" for path, reason in list(found.items())[-3:]) or "it calls none"
