"""What the first run of a stage saw: random numbers, parameters, buffers, training flags.

Running a stage again must see the same, and leave no trace.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, Self

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from revolve.storage.boundary import storages_by_key, version_of

from .attributes import Attributes
from .exceptions import RecomputeError
from .generators import Source
from .likeness import forwarding
from .refusals import changed_since, changed_within
from .replay import QUESTIONS
from .stages import StageModule
from .tables import NOWHERE, Place, fill

__all__ = ["Habits", "StageState", "same"]

NO_KEYS: frozenset[int] = frozenset()
NOTHING: Mapping[Place, tuple[torch.Tensor, torch.Tensor]] = {}
STATISTICAL = (nn.BatchNorm1d.forward, nn.SyncBatchNorm.forward, nn.InstanceNorm1d.forward)


class Habits:
    """What the stages of a model were seen to do, shared by all its runs.

    Attributes
    ----------
    changing
        For each stage the places of the buffers it changes, and of the attributes it changes in place, None before they
        are known.
    drawing
        For each stage whether it was seen to draw random numbers, None before it is known.
    tailed
        For each stage whether its output is made by functions that save nothing, None before it is known.
    warned
        Whether it was said that a backward pass left the plan.
    strained
        Whether tensors were nearly as dense as the plan has room for, or denser.
    """

    def __init__(self, length: int) -> None:
        self.changing: list[frozenset[Place] | None] = [None] * length
        self.drawing: list[bool | None] = [None] * length
        self.tailed: list[bool | None] = [None] * length
        self.warned = False
        self.strained = False

    @classmethod
    def quiet(cls, length: int) -> Self:
        """Return habits of stages that nothing is said about."""
        habits = cls(length)
        habits.warned = True
        return habits

    def strain(self) -> None:
        """Take note that tensors came close to what was planned for their forms."""
        self.strained = True


class StageState:
    """What the first run of one stage saw, entered by every later run [7].

    Parameters
    ----------
    stage
        The stage.
    changing
        Places of the buffers and attributes that the stage is known to change. None before the first run of all: then
        :meth:`finish` compares every one.

    Attributes
    ----------
    random
        The generators that the stage draws from, each with its state before.
    late
        Whether what it saves last is saved before it is written, as by F.rrelu: it is then never ended there.
    before
        The buffers that the stage changes (may change, until :meth:`finish`), each with a copy of its old value.
    temporary
        Identities of the storages that stand in for buffers while the stage runs again.
    """

    __slots__ = (
        "asked",
        "attributes",
        "before",
        "bumped",
        "changing",
        "counters",
        "datas",
        "flags",
        "held",
        "late",
        "loose",
        "prepared",
        "random",
        "replaced",
        "sight",
        "stage",
        "steady",
        "temporary",
        "toggled",
        "versions",
    )

    def __init__(self, stage: StageModule, changing: frozenset[Place] | None) -> None:
        self.stage = stage
        self.random: tuple[tuple[Source, Any], ...] = ()
        self.late = False
        self.changing = changing
        self.sight = stage.sight()
        self.steady = self.sight.contents.steady(changing or NOWHERE)
        self.versions = [tensor._version for tensor in self.steady]
        self.loose: Sequence[int] = [version_of(tensor) for tensor in stage.loose] if stage.loose else ()
        self.asked = QUESTIONS[0]
        self.before = NOTHING
        self.attributes: Attributes | None = None
        self.held = self.sight.hold() if self.sight.opaque else ()
        self.temporary: Container[int] = NO_KEYS
        self.prepared = False
        self.datas: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()
        if changing is None or changing:
            self.copy()
        if changing is None or not self.sight.shared:
            self.attributes_before()

    def copy(self) -> None:
        """Copy the buffers that the stage changes."""
        places = filter(self.stage.is_buffer, self.sight.contents.places()) if self.changing is None else self.changing
        self.before = {
            place: (tensor, tensor.detach().clone())
            for place in places
            if (tensor := self.sight.contents.tensor_at(place)) is not None
        }

    def attributes_before(self) -> Attributes:
        """Return what the attributes were, looked at when the first thing changes that needs it."""
        if self.attributes is None:
            self.attributes = Attributes(self.sight.spots, self.sight.read(), self.changing)
        return self.attributes

    def still(self) -> bool:
        """Whether nothing has changed, flags apart, but the buffers that the stage is known to change."""
        return (
            self.attributes is None
            and [tensor._version for tensor in self.steady] == self.versions
            and (not self.loose or not self.loose_touched())
            and self.sight.intact()
        )

    def moved(self) -> tuple[frozenset[Place], frozenset[Place]]:
        """Return the parameters that have been changed in place, and the buffers that were changed or replaced."""
        touched = self.sight.contents.touched(self.steady, self.versions)
        buffers = frozenset(place for place in touched | self.sight.contents.replaced() if self.stage.is_buffer(place))
        return touched - buffers, buffers

    def loose_touched(self) -> list[int]:
        """Return the numbers of the tensors outside of modules that have been changed in place."""
        tensors = zip(self.stage.loose, self.loose, strict=True)
        return [number for number, (tensor, version) in enumerate(tensors) if version_of(tensor) != version]

    def name(self, places: frozenset[Place], loose: list[int]) -> str:
        """Name one of some places or loose tensors."""
        return self.stage.name_of(min(places)) if places else self.stage.name_of_loose(loose[0])

    def finish(self) -> frozenset[Place]:
        """Compare buffers and parameters after the first run; keep old values of buffers that changed.

        Returns
        -------
        frozenset
            Places of the buffers and attributes that the stage changes: natively compiled norms leave version counters
            alone, so that contents are compared.

        Raises
        ------
        RecomputeError
            If the stage changed one of its parameters, or a buffer or attribute that earlier runs did not change, so
            that its old value is lost.
        """
        left = QUESTIONS[0] != self.asked
        if not left and self.still():
            return self.changing or NOWHERE
        attributes = self.attributes_before().finish(left=left)
        touched = self.attributes_before().touched()
        parameters, buffers = self.moved()
        loose = self.loose_touched()
        if parameters or loose:
            raise changed_within(self.stage.name, self.name(parameters, loose), taken=not parameters)
        if self.changing is None:
            buffers |= {place for place, pair in self.before.items() if not same(*pair)}
            # A norm's mean may happen to stay as it was while it counts the batch: then it changes in a later step.
            tables = {table for table, _ in buffers}
            self.changing = buffers | {place for place in self.before if place[0] in tables} | attributes
            self.before = {place: pair for place, pair in self.before.items() if place in self.changing}
        if surprises := touched | (buffers - self.changing):
            raise RecomputeError(
                f"stage {self.stage.name!r} changed its buffer or attribute {self.name(surprises, [])}, which it had "
                "left alone in earlier steps; call revolve.checkpointed again on the model before this step"
            )
        return self.changing | attributes

    def kept(self) -> list[torch.Tensor]:
        """Return the old values of buffers and attributes that are kept."""
        return [*(old for _, old in self.before.values()), *self.attributes_before().kept()]

    def is_statistic(self, place: Place) -> bool:
        """Whether a buffer is a statistic that its module, in training mode, updates but never reads."""
        number, module = self.stage.module_of(place)
        hooked = module._forward_hooks or module._forward_pre_hooks
        own = vars(module).get("forward")
        patched = own is not None and forwarding(own) is not module
        return type(module).forward in STATISTICAL and self.sight.training[number] and not hooked and not patched

    def check(self) -> None:
        """Check that nothing the stage reads has been changed since.

        Raises
        ------
        RecomputeError
            If a parameter, or a buffer or attribute that the stage does not change, was changed in place.
        """
        loose = self.loose_touched()
        touched = self.sight.contents.touched(self.steady, self.versions) - (self.changing or NOWHERE)
        touched = frozenset(place for place in touched if not self.is_statistic(place))
        touched |= self.attributes_before().touched()
        if touched or loose:
            raise changed_since(self.stage.name, self.name(touched, loose), taken=not touched)

    def __enter__(self) -> StageState:
        """Let parameters, buffers, and what they and modules are told to do, be those of the first run."""
        if not self.still() or not self.sight.flagged():
            self.prepare()
        elif self.before:
            self.lend()
        return self

    def lend(self) -> None:
        """Let the buffers that the stage changes have copies of their old values."""
        copies = [value.clone() for _, value in self.before.values()]
        self.datas = [(buffer, buffer.data) for buffer, _ in self.before.values()]
        for (buffer, _), copy in zip(self.datas, copies, strict=True):
            buffer.data = copy
        self.temporary = storages_by_key(copies)
        self.bumped = tuple([buffer for buffer, _ in self.datas if not buffer.is_inference()])
        self.counters = tuple([buffer._version for buffer in self.bumped])

    def take_back(self) -> None:
        """Let the buffers be those of now again."""
        if self.datas:
            for buffer, data in reversed(self.datas):
                buffer.data = data
            torch._C._autograd._unsafe_set_version_counter(self.bumped, self.counters)  # other stages look at them
            self.datas, self.temporary = (), NO_KEYS
        if not self.sight.contents.intact():  # the stage itself has replaced them
            self.sight.contents.put_back()

    def prepare(self) -> None:
        """Make what is not as in the first run as it was."""
        attributes = self.attributes_before()
        self.check()
        if self.before:
            self.lend()
        self.replaced = None if self.sight.contents.intact() else self.sight.contents.put_back()
        self.flags = [(module, not was) for module, was in self.sight.modules if module.training is not was]
        self.toggled = [(tensor, not was) for tensor, was in self.sight.leaves if tensor.requires_grad is not was]
        self.put_back_flags()
        attributes.enter()
        self.prepared = True

    def __exit__(self, *_: object) -> None:
        if self.prepared:
            self.put_back()
        elif self.changing:
            self.take_back()

    def put_back(self) -> None:
        """Undo :meth:`prepare`."""
        self.prepared = False
        self.attributes_before().leave()
        if self.changing:
            self.take_back()
        if self.replaced is not None:
            fill(self.sight.contents.tables, self.replaced)
        for module, now in self.flags:
            module.training = now
        require_gradients(self.toggled)

    def put_back_flags(self) -> None:
        """Let modules be in training mode, and tensors require a gradient, that were and did."""
        for module, was in self.sight.modules:
            module.training = was
        require_gradients(self.sight.leaves)

    def clear_up(self) -> None:
        """Let modules be as in the first run again, after a run that was ended before it put back what it had set."""
        if self.attributes is None and self.sight.holds():
            return
        if not self.sight.flagged():
            self.put_back_flags()
        if not self.sight.contents.intact():
            self.sight.contents.put_back()
        self.attributes_before().put_back()


def require_gradients(flags: list[tuple[torch.Tensor, bool]]) -> None:
    """Let leaves require a gradient or not; tensors of a graph keep what they have."""
    for tensor, required in flags:
        if tensor.is_leaf and tensor.requires_grad is not required:
            tensor.requires_grad = required


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal bit for bit; fake ones have no values, and what writes them raises versions."""
    if isinstance(a, FakeTensor):
        return True
    if a.shape != b.shape or a.dtype != b.dtype or a.is_sparse != b.is_sparse:
        return False
    if a.is_sparse:
        return same(a._indices(), b._indices()) and same(a._values(), b._values())
    plain_a, plain_b = (t.detach().contiguous().cpu().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(plain_a, plain_b)
