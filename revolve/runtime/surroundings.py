"""What a step takes outside of a chain of stages, added to the chain's peaks and times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

from revolve.schedules.chain import Chain, Stage
from revolve.schedules.costs import StorageCosts

from .allocations import Phase
from .replay import Setting
from .segments import Segment
from .stages import StageModule
from .tracks import Passed

__all__ = ["Surroundings"]


class Surroundings(NamedTuple):
    """What a step takes besides its stages.

    Attributes
    ----------
    stages
        The stages, to be called with their input alone.
    input
        The first one's input.
    settings
        The modes in which the model calls them: it may enter autocast itself.
    seconds
        Time of all that is no stage.
    phases
        Of the trace, each by the mark that ends it: ("start", i) and ("end", i) of a stage's run, ("back", i) and
        ("backed", i) of its backward, and ("done", 0). Where a stage makes several calls: ("ran", i) behind one of
        them, ("pause", i) before the next, and in backward ("turned", i) and ("between", i); of those that come
        several times, the one with the highest peak.
    alive
        Bytes of the last stage's output that are alive at the end of each phase: the model may have dropped it.
    copies
        Bytes of the gradients that each stage's backward begins with and may copy, since they are not dense, and of
        those that come for what leaves the stage beside its output.
    gradients
        Bytes of the elements of the gradients that each stage's backward begins with: fewer than the chain's where its
        output is a view of a larger storage.
    passed
        What passes between the stages.
    """

    stages: list[StageModule]
    input: Any
    settings: Sequence[Setting]
    seconds: float
    phases: dict[tuple[str, int], Phase]
    alive: dict[tuple[str, int], int]
    copies: dict[int, int]
    gradients: dict[int, int]
    passed: list[Passed]

    @property
    def leaps(self) -> bool:
        """Whether a stage makes anything that is held for later ones."""
        return any(segment.held for index in range(len(self.stages)) for segment in self.segments(index))

    def segments(self, index: int) -> list[Segment]:
        """Return the functions of a stage that call modules as the model does."""
        return [function for function in self.stages[index].functions if isinstance(function, Segment)]

    def around(self, chain: Chain) -> Chain:
        """Return a chain with the peaks and times of a whole step."""
        last = len(chain) - 1
        formats = {name: self.costs_around(chain, name) for name in chain.formats}
        chain = replace(chain, stages=(*chain.stages[:-1], give_away(chain.stages[-1])))
        tail = max(self.phases[mark].peak for mark in self.behind())
        extra = chain.loss_extra + max(0, tail - 2 * chain.activation_bytes(last + 1))
        stages = self.stages_around(chain)
        return replace(chain, stages=stages, formats=formats, loss_extra=extra, loss_time=self.seconds)

    def stages_around(self, chain: Chain) -> tuple[Stage, ...]:
        """Return the stages of a chain, whose output is given away, with the peaks of a whole step."""
        returning = [self.returning(chain, index) for index in range(len(chain))]
        still = list(accumulate(reversed(returning), max))[::-1]  # a stage is run again before its backward
        stages = [surround(self.return_from(chain, i), still[i], *self.going(chain, i)) for i in range(len(chain))]
        stages[-1] = self.with_output(stages[-1], chain, still[-1])
        stages[0] = self.end_in(stages[0], chain)
        return tuple(stages)

    def costs_around(self, chain: Chain, format_: str) -> StorageCosts:
        """Return the costs of a format with the peaks of a whole step: those of stages that save as much and as long.

        Where the output of a stage is kept in the format, what is not would be held besides.
        """
        costs = chain.formats[format_]
        if not costs.saves:
            return costs
        stages = []
        for index, stage in enumerate(chain.stages):
            mode, dense = costs.save_mode(index), not chain.encoded(format_, index + 1)
            sizes = {name: getattr(mode, name) for name in ("saved_bytes", "save_extra", "backward_extra")}
            stages.append(replace(stage, **sizes, saves_output=stage.saves_output and dense))
        around = self.stages_around(replace(chain, stages=(*stages[:-1], give_away(stages[-1]))))
        save_extra, backward_extra = zip(*((stage.save_extra, stage.backward_extra) for stage in around), strict=True)
        return replace(costs, save_extra=save_extra, backward_extra=backward_extra)

    def going(self, chain: Chain, index: int) -> tuple[int, int]:
        """Return bytes held besides a stage's input at its beginning, and the peak in and behind it besides its output.

        In it, since modules beside the chain may run between its calls.
        """
        held = chain.activation_bytes(index) if index else 0
        start = max(0, self.phases["start", index].end - held)
        peaks = [self.phases[mark].peak for mark in (("pause", index), ("start", index + 1)) if mark in self.phases]
        following = chain.activation_bytes(index + 1) - chain.stages[index].passed_bytes
        return start, max(0, max(peaks, default=0) + chain.loss_extra - held - following)

    def behind(self) -> list[tuple[str, int]]:
        """Return the marks of the phases from the last stage's end to the backward of the last that gets a gradient."""
        reached = [index for kind, index in self.phases if kind == "back"]
        return [("returned", 0), ("back", max(reached)) if reached else ("done", 0)]

    def output_in(self, chain: Chain, mark: tuple[str, int]) -> int:
        """Return the bytes in a phase of what the chain counts as its output, to the end of the step."""
        return min(chain.activation_bytes(len(chain)), self.alive[mark])

    def with_output(self, stage: Stage, chain: Chain, still: int) -> Stage:
        """Return the last stage with what its output takes, where it saves that and so keeps it for its backward.

        The caller may hold the one of the first run, beside a second one of a later run. If the model drops it, the
        stage still has it while the loss is computed.
        """
        alone = chain.stages[-1]
        if not alone.saves_output:
            return stage
        if self.stages[-1].output_stays:
            save, again = (
                alone.output_bytes + still + max(extra, alone.backward_extra)
                for extra in (alone.save_extra, alone.rebuild_extra)
            )
            again = max(stage.rebuild_extra, again)
        else:
            behind = max(self.phases[mark].peak - self.output_in(chain, mark) for mark in self.behind())
            save, again = chain.loss_extra + behind, stage.rebuild_extra
        return replace(stage, save_extra=max(stage.save_extra, save), rebuild_extra=again)

    def returning(self, chain: Chain, index: int, *, saved: bool = False) -> int:
        """Return bytes held when a backward pass comes to a stage, besides its gradient and the chain's output.

        Where the last stage has ``saved`` it, the output is there, also if the model has dropped it.
        """
        mark = ("back", index)
        if mark not in self.phases:
            return 0
        output = self.output_in(chain, mark) if saved else chain.activation_bytes(len(chain))
        gradient = self.gradients.get(index, 0)
        if not any(segment.shared for segment in self.segments(index)):
            gradient += chain.stages[index].passed_bytes  # that of what it carries is there as well, not the same one
        gradient = min(chain.activation_bytes(index + 1), gradient)
        return max(0, self.phases[mark].end - gradient - output)

    def return_from(self, chain: Chain, index: int) -> Stage:
        """Return a stage whose backward has what is held then, copies its gradient, and ends with what follows."""
        stage, output = chain.stages[index], chain.activation_bytes(len(chain))
        saved = index == len(chain) - 1
        extra = stage.backward_extra + self.returning(chain, index, saved=saved) + self.copies.get(index, 0)
        mark = ("between", index)
        if mark in self.phases:
            alive = self.output_in(chain, mark) if saved else output
            extra = max(extra, self.phases[mark].peak - alive - chain.activation_bytes(index + 1))
        follows = self.phases.get(("back", index - 1))
        if follows:
            extra = max(extra, follows.peak - output - chain.activation_bytes(index + 1) - stage.saved_bytes)
        return replace(stage, backward_extra=extra)

    def end_in(self, stage: Stage, chain: Chain) -> Stage:
        """Return the first stage with a peak of its backward that covers what comes behind it."""
        level = self.phases["done", 0].peak - chain.activation_bytes(len(chain)) if ("backed", 0) in self.phases else 0
        held = stage.saved_bytes + chain.activation_bytes(1) * (1 + (stage.saves_output and len(chain) > 1))
        return replace(stage, backward_extra=max(stage.backward_extra, level + stage.grad_bytes - held))


def give_away(stage: Stage) -> Stage:
    """Return the last stage with an output that counts as the model's, which may drop it when it has used it.

    Where the stage saves its output it stays the chain's, to the end of the step.
    """
    if stage.saves_output:
        return stage
    return replace(
        stage,
        output_bytes=0,
        forward_extra=stage.forward_extra + stage.output_bytes,
        save_extra=stage.save_extra + stage.output_bytes,
    )


def surround(stage: Stage, still: int, start: int, behind: int) -> Stage:
    """Return a stage with what its surroundings hold added to the peaks of its runs."""
    present = max(start, still)
    return replace(
        stage,
        forward_extra=max(stage.forward_extra + present, behind),
        save_extra=max(stage.save_extra + present, behind),
        rebuild_extra=stage.rebuild_extra + still,
    )
