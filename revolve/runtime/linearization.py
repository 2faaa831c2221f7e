"""Finds the chain of stages in any module: module calls, each with the functions between it and the one before.

A container is opened where it is exactly a chain of its children and saves nothing itself. What lies outside of a chain
is kept by ordinary autograd, what leaps over stages is held, and the largest stage is saved as a whole sooner or later:
other containers are opened, largest first, as long as that lowers the sum of the three. The best chain is the longest
path by saved bytes in the graph of links, with such calls beside it as lower that sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from revolve.storage.boundary import tensors_of

from .exceptions import MeasurementError, ModelError
from .flow import Candidate, Flow
from .interception import run_plainly
from .isolation import isolated
from .measurement import copy_of, find_stages, refuse_sharded, running
from .recording import Call, Recording, record
from .replay import recomputing
from .samples import arguments_of
from .saving import Shielded
from .stages import StageModule, check_model, flatten, is_plain_sequential

__all__ = ["Stages", "find_chain", "linearize"]

TRIED = 32  # paths beside the longest one are tried as stages of their own


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
    check_meta(model, sample)
    with isolated([whole], arguments_of(model, sample)) as belongings, recomputing(), Shielded():
        run_plainly(model)
        with belongings.written.watching():
            return find_chain(model, sample)


def check_meta(model: nn.Module, sample: Any) -> None:
    """Refuse a model on the meta device with a sample that has values, or the other way round.

    Raises
    ------
    MeasurementError
        If only one of them has values.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    given = [tensor.is_meta for tensor in tensors_of(sample)]
    other = next((name for name, tensor in named if given and tensor.is_meta is not given[0]), None)
    if other is not None:
        where = "has values" if given[0] else "is on the meta device, without values"
        raise MeasurementError(
            f"{other} of the {type(model).__name__} {where}, unlike the sample: pass a sample on the model's device "
            "(sample.to(...)), or model.to_empty(device=...) makes room for values"
        )


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


def best_chain(recording: Recording) -> Candidate:
    """Return the chain that leaves the least bytes to be held, opening the largest stages as long as that helps."""
    opened = {0}
    best = present = candidate(recording, opened)
    while present.groups:
        largest = max(zip(present.saved, present.groups, strict=True), key=lambda pair: pair[0])[1]
        inside = {call.number for call in largest if recording.parts(call)}
        opened |= inside
        present = candidate(recording, opened)
        if not inside or present.least > best.least:
            break
        if present.least < best.least:  # where it is the same, the container may be a mere wrapper
            best = present
    return best


def candidate(recording: Recording, opened: set[int]) -> Candidate:
    """Return the longest chain by saved bytes where some containers have been opened.

    Calls that are not linked to it are stages of it where that leaves less to be held: a stage need not take anything
    of the one before.
    """
    flow = Flow(recording, list(units(recording, recording.call(0), opened)))
    path = flow.longest_path(flow.usable)
    best = flow.chain(path)
    beside = [call for call in flow.usable if path and flow.fits(call, path)]
    for _ in range(TRIED):
        added = flow.longest_path(beside)
        beside = [call for call in beside if call not in added]
        longer = sorted([*path, *added], key=lambda call: call.number)
        present = flow.chain(longer)
        if added and present.least < best.least:
            path, best = longer, present
    return best


def units(recording: Recording, call: Call, opened: set[int]) -> Iterator[Call]:
    """Yield the calls that a call consists of, in order; itself, if it stays closed."""
    if call.number in opened or is_chain(recording, call):
        for child in recording.children(call):
            yield from units(recording, child, opened)
    else:
        yield call


def is_chain(recording: Recording, call: Call) -> bool:
    """Whether a call does nothing but run its children, one on the output of the other."""
    children = recording.parts(call)
    inside = sum(map(recording.saved_bytes, children))
    if not children or recording.saved_bytes(call) > inside or any(child.obstacle for child in children):
        return False
    begins = set(call.inputs) & set(children[0].inputs)
    ends = set(call.fresh) <= set(children[-1].fresh) | set(call.inputs)
    flow = Flow(recording, children)
    if not begins or not ends or not all(flow.link(a, b) for a, b in pairwise(children)):
        return False
    made = begins & recording.graded
    for before, child in pairwise(children):
        if (made - set(before.fresh)) & set(child.inputs):  # it leaps over a child
            return False
        made |= set(before.fresh)
    return True


def stage_of(group: Sequence[Call]) -> StageModule:
    """Return the stage that some calls make; of functions it is not known yet what they will be called with."""
    called = [(call.path, call.module) for call in group if call.module is not None]
    return StageModule("+".join(path for path, _ in called), tuple(module for _, module in called))


def obstacles(recording: Recording) -> str:
    """Write why the largest calls of modules cannot be stages."""
    calls = [call for number in recording.graph if number and (call := recording.call(number)).module is not None]
    found = {call.path: call.obstacle for call in sorted(calls, key=recording.saved_bytes) if call.obstacle}
    return "; ".join(f"{path!r}: {reason}" for path, reason in list(found.items())[-3:]) or "it calls none"
