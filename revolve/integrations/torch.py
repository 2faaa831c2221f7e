"""Drop-in for :func:`torch.utils.checkpoint.checkpoint_sequential`.

The same call, with two differences: never more peak memory than torch's split into that many segments
but the least time within it, and gradients, BatchNorm statistics and random numbers of plain training.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial, reduce
from itertools import islice
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from revolve.runtime.executor import Run
from revolve.runtime.isolation import isolated
from revolve.runtime.measurement import find_stages, measure_stages
from revolve.runtime.memory import free_bytes
from revolve.runtime.program import Program
from revolve.runtime.reaching import referents
from revolve.runtime.refusals import check_surroundings
from revolve.runtime.replay import recomputing
from revolve.runtime.situations import Situation
from revolve.runtime.stages import StageModule, flatten
from revolve.runtime.state import Habits
from revolve.schedules.exceptions import BudgetError
from revolve.schedules.frontier import solve
from revolve.schedules.plans import Plan
from revolve.schedules.segments import schedule_from_cuts, segment_starts
from revolve.schedules.simulator import simulate
from revolve.schedules.units import parse_bytes
from revolve.storage.boundary import tensors_of

__all__ = ["checkpoint_sequential"]

CACHE_SIZE = 64


class Planned:
    """A plan and what was learned while planning.

    Attributes
    ----------
    plan
        The plan.
    sizes
        How many functions each of its stages has.
    habits
        What its stages were seen to do.
    """

    def __init__(self, plan: Plan, sizes: Sequence[int]) -> None:
        self.plan = plan
        self.sizes = sizes
        self.program = Program.from_plan(plan)
        self.habits = Habits(len(plan.chain))

    def run(self, parts: Sequence[StageModule], input: Any) -> Any:
        """Run the functions by the plan."""
        waiting = iter(parts)
        stages = [reduce(StageModule.join, islice(waiting, size)) for size in self.sizes]
        return Run(stages, self.program, self.habits).forward(input)


PLANS: OrderedDict[Hashable, Planned] = OrderedDict()


@torch.compiler.disable
def checkpoint_sequential(
    functions: nn.Sequential | Sequence[Callable[[Any], Any]],
    segments: int | None,
    input: Any,
    use_reentrant: bool | None = None,
    *,
    budget: int | str | None = None,
    **kwargs: Any,
) -> Any:
    """Run a sequence of functions and checkpoint it, as ``torch.utils.checkpoint.checkpoint_sequential``.

    Parameters
    ----------
    functions
        An nn.Sequential, or modules and functions of one argument, run one after the other. Nested
        nn.Sequential containers are flattened.
    segments
        Never use more peak memory than torch's split into this many segments, and the least time
        within that memory; 1 to the number of functions. None where ``budget`` is given.
    input
        The input: a tensor, or tuples, lists and dicts of tensors.
    use_reentrant
        Accepted for compatibility; nothing here is reentrant.
    budget
        Bytes, or a string such as ``"300MB"`` or ``"80%"`` (of what the device has free), instead of
        segments: what the activations, saved tensors, gradients and temporaries of the step may take.
    **kwargs
        ``preserve_rng_state`` is accepted; random numbers are always those of plain training.

    Returns
    -------
    Any
        The output of the last function.

    Raises
    ------
    BudgetError
        If segments or budget cannot be understood.
    InfeasibleBudget
        If no schedule fits the budget.
    MeasurementError
        If a function fails while it is measured; the message names it.

    Notes
    -----
    The first call measures the functions and plans; later calls with the same functions, shapes and
    modes reuse the plan. Without grad mode the functions run untouched.
    """
    kwargs.pop("preserve_rng_state", None)
    if kwargs:
        raise ValueError(f"unexpected keyword arguments: {', '.join(kwargs)}; preserve_rng_state is the only one")
    children: list[Callable[[Any], Any]] = list(functions)
    if not children:
        raise BudgetError("functions is empty; pass an nn.Sequential with children, or a list of functions")
    if budget is None:
        if segments is None:
            raise BudgetError("segments=None needs a budget=; pass a number of segments, or budget='300MB'")
        segment_starts(len(children), segments)
    elif segments is not None:
        raise BudgetError(
            f"segments={segments!r} and budget={budget!r} are two answers to one question; pass one as None"
        )
    parts = flatten([(str(index), child) for index, child in enumerate(children)])
    tensors = [*tensors_of(input), *(t for part in parts for t in part.tensors())]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        check_surroundings(module for part in parts for module in part.modules)
        planned = plan_for(parts, len(children), segments, budget, input)
        if not planned.program.plain:
            return planned.run(parts, input)
    for child in children:
        input = child(input)
    return input


def plan_for(
    parts: Sequence[StageModule], functions: int, segments: int | None, budget: int | str | None, input: Any
) -> Planned:
    """Return the plan for a call, from earlier calls if there is one."""
    key = (tuple(identity(f) for part in parts for f in part.functions), situation(parts, input), segments, budget)
    if key in PLANS:
        PLANS.move_to_end(key)
        return PLANS[key]
    with isolated(parts, input) as belongings, recomputing():
        with belongings.written.watching():
            stages = find_stages(parts, input)
        chain = measure_stages(stages, input, None, None, "checkpoint_sequential")
    if budget is None:
        starts = segment_starts(functions, segments)  # type: ignore[arg-type]
        names = [stage.name.split("+") for stage in chain.stages]
        limit = min(simulate(chain, schedule_from_cuts(cuts, len(chain))).peak for cuts in map_cuts(starts, names))
    else:
        limit = parse_bytes(budget, free_bytes(nn.ModuleList(m for part in parts for m in part.modules)))
    planned = PLANS[key] = Planned(
        solve(chain, tolerance="auto").plan(limit), [len(stage.functions) for stage in stages]
    )
    while len(PLANS) > CACHE_SIZE:
        PLANS.popitem(last=False)
    return planned


def identity(value: Any, around: frozenset[int] = frozenset()) -> Hashable:
    """Return what makes a function, or something that it refers to, the same in the next call.

    Functions made anew for each call are the same if their code is and what they refer to.
    """
    if id(value) in around or isinstance(value, torch.Tensor):
        return None
    if isinstance(value, (bool, int, float, str)):
        return id(type(value))  # not the value: a counter in a closure would ask for a new plan at each call
    inside = around | {id(value)}
    if isinstance(value, MethodType):
        return (identity(value.__func__, inside), identity(value.__self__, inside))
    own = callable(value) and hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module))
    if own or isinstance(value, (partial, list, tuple)):
        kind = value.__code__ if isinstance(value, FunctionType) else type(value)
        return (kind, tuple(identity(referent, inside) for referent in referents(value)))
    try:
        return Identity(value)
    except TypeError:  # no weak references to it
        return id(type(value))


class Identity:
    """A weak key that compares by identity, whatever the object's own equality and hash are."""

    def __init__(self, value: Any) -> None:
        self.reference = weakref.ref(value)
        self.hash = id(value)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Identity):
            return NotImplemented
        value = self.reference()
        return self is other or (value is not None and value is other.reference())


def situation(parts: Sequence[StageModule], input: Any) -> Hashable:
    """Return everything besides the functions that a plan depends on."""
    own = [t for part in parts for t in part.tensors()]
    return Situation.current(parts, input), tuple((t.device, t.is_leaf and t.grad is None) for t in own)


def map_cuts(starts: Sequence[int], names: Sequence[Sequence[str]]) -> list[list[int]]:
    """Translate torch's cuts between functions into cuts between stages.

    A cut inside a stage (before an in-place function, where torch's own checkpoint fails) moves to the
    front of the stage in the first answer, behind it in the second.
    """
    firsts = [int(group[0].split(".")[0]) for group in names]
    answers = []
    for behind in (False, True):
        cuts = {0}
        for start in starts:
            stage = max(index for index, first in enumerate(firsts) if first <= start)
            inside = firsts[stage] < start
            cuts.add(min(stage + (inside and behind), len(names) - 1))
        answers.append(sorted(cuts))
    return answers
