"""The best setting of transformers' own checkpointing, "every n-th layer", predicted on a measured chain.

For whoever cannot take the plan along: a setting is one number in a file of arguments. It checkpoints layers 0, n,
2n ... (each keeps its input and runs again in backward) and saves the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from revolve.runtime.exceptions import PlanMismatch
from revolve.schedules.actions import Action, Backward, Drop, Forward, Load, Loss, Rebuild, Save, Store
from revolve.schedules.exceptions import InfeasibleBudget
from revolve.schedules.plans import Plan

__all__ = ["LayerSetting", "every_n_layers"]


class LayerSetting(NamedTuple):
    """A setting of ``model.activation_checkpointing_enable``.

    Attributes
    ----------
    every_n_layers
        Its argument; None for leaving checkpointing off.
    plan
        What it does to the measured chain: ``.peak`` in bytes, ``.makespan`` in seconds, ``.actions``.
    """

    every_n_layers: int | None
    plan: Plan


def every_n_layers(model: nn.Module, plan: Plan) -> LayerSetting:
    """Return the fastest setting of transformers' own checkpointing that keeps the budget of a plan.

    Parameters
    ----------
    model
        The model that the plan was made for.
    plan
        A plan with a budget; without one, its peak is the budget.

    Returns
    -------
    LayerSetting
        The number to pass to ``model.activation_checkpointing_enable(every_n_layers=...)``, and the plan that this
        amounts to, with predicted peak and time.

    Raises
    ------
    InfeasibleBudget
        If no setting keeps the budget; it names the least peak of any.
    PlanMismatch
        If not every layer is made of stages of the plan's chain, as in the second stack of an encoder-decoder.
    """
    layers = layer_ranges(model, plan)
    budget = plan.peak if plan.budget is None else plan.budget
    settings = [LayerSetting(None, Plan.from_actions(plan.chain, schedule([], len(plan.chain)), "plain"))]
    for n in range(len(layers), 0, -1):
        actions = schedule(layers[::n], len(plan.chain))
        settings.append(LayerSetting(n, Plan.from_actions(plan.chain, actions, f"every_n_layers={n}")))
    fitting = [setting for setting in settings if setting.plan.peak <= budget]
    if not fitting:
        least = min(setting.plan.peak for setting in settings)
        raise InfeasibleBudget(
            f"no setting of every_n_layers keeps {budget} bytes; the least peak of any is {least} bytes, and the plan "
            f"itself needs {plan.peak}",
            least,
            budget,
        )
    return min(fitting, key=lambda setting: setting.plan.makespan)


def layer_ranges(model: nn.Module, plan: Plan) -> list[range]:
    """Return the stages that each layer of a model consists of, as transformers counts layers.

    Raises
    ------
    PlanMismatch
        If a layer is not made of stages, or there are none.
    """
    paths = [path for path, module in model.named_modules() if isinstance(module, GradientCheckpointingLayer)]
    if not paths:
        raise PlanMismatch(f"the {type(model).__name__} has no layers that transformers can checkpoint")
    names = [stage.name.split("+") for stage in plan.chain.stages]
    ranges: list[range] = []
    for path in paths:
        inside = [i for i, pieces in enumerate(names) if any(is_in(piece, path) for piece in pieces)]
        whole = all(is_in(piece, path) for i in inside for piece in names[i])
        if not inside or not whole or any(inside[0] in other for other in ranges):
            raise PlanMismatch(
                f"layer {path!r} is not made of stages of the plan ({plan.chain.stages[0].name} ... "
                f"{plan.chain.stages[-1].name}), so that every_n_layers cannot be predicted; use the plan itself"
            )
        ranges.append(range(inside[0], inside[-1] + 1))
    return ranges


def is_in(path: str, layer: str) -> bool:
    """Whether a module is a layer or inside of it."""
    return path == layer or path.startswith(f"{layer}.")


def schedule(checkpointed: Sequence[range], length: int) -> Iterator[Action]:
    """Yield the schedule that keeps the inputs of some layers, and saves all other stages.

    Parameters
    ----------
    checkpointed
        The stages of each layer that is checkpointed, ascending.
    length
        Number of stages.
    """
    again = {index for layer in checkpointed for index in layer}
    starts = {layer[0]: layer for layer in checkpointed}
    for index in range(length):
        if index in starts and index:
            yield Store(index)
        yield Forward(index) if index in again else Save(index)
    yield Loss()
    ends = {layer[-1]: layer for layer in checkpointed}
    for index in reversed(range(length)):
        if index in ends:
            start = ends[index][0]
            yield Load(start)
            yield from map(Save, range(start, index))
            yield Rebuild(index)
            if start:
                yield Drop(start)
        yield Backward(index)
