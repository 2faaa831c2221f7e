"""What a training run is told about the plan that it goes by."""

from __future__ import annotations

from collections.abc import Iterator

from revolve.report.treatments import describe_stages
from revolve.schedules.plans import Plan
from revolve.schedules.units import format_bytes, format_seconds

__all__ = ["describe_plan"]


def describe_plan(plan: Plan, coverage: float | None = None) -> str:
    """Write the cuts of a plan with their bytes, and what it predicts.

    Parameters
    ----------
    plan
        The plan.
    coverage
        Share of the bytes that autograd saves in the model which it saves in the plan's stages; None if unknown.
    """
    return "\n".join(f"revolve: {line}" for line in lines(plan, coverage))


def lines(plan: Plan, coverage: float | None) -> Iterator[str]:
    """Yield the lines."""
    chain, budget = plan.chain, "no budget" if plan.budget is None else f"budget {format_bytes(plan.budget)}"
    yield f"{chain.name}: {len(chain)} stages, {budget}" + ("; trains plainly within it" if plan.plain else "")
    if coverage is not None:
        rest = "" if coverage > 0.995 else "; all else is trained plainly, inside the budget"
        yield f"the stages {chain.stages[0].name} ... {chain.stages[-1].name} save {coverage:.0%} of the bytes{rest}"
    for index, (stage, treatment) in enumerate(zip(chain.stages, describe_stages(plan), strict=True)):
        if treatment.stored:
            yield f"cut before {stage.name}: {format_bytes(chain.activation_bytes(index))} {treatment.input_words}"
    again = [s.name for s, treatment in zip(chain.stages, describe_stages(plan), strict=True) if treatment.runs > 1]
    if again:
        yield f"run again: {', '.join(again)}"
    yield (
        f"predicted peak {format_bytes(plan.peak)}, plain {format_bytes(plan.plain_peak)}; "
        f"step {format_seconds(plan.makespan)}, plain {format_seconds(plan.plain_makespan)}"
    )
