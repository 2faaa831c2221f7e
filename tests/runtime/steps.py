"""One training step and everything it leaves, and plans that need no measuring."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import revolve
from revolve import Backward, Chain, Forward, Load, Loss, Plan, Rebuild
from revolve.runtime.allocations import trace_allocations
from revolve.runtime.stages import flatten

CPU = torch.device("cpu")


@dataclass
class Step:
    """What a step leaves: tensors by name, the random state, and the peak in bytes."""

    output: Tensor
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]
    random: bytes
    peak: int


def square(output: Tensor) -> Tensor:
    return output.square().mean()


def run_step(model: nn.Module, x: Any, loss: Callable[[Any], Tensor] = square, *, trace: bool = False) -> Step:
    """Run one step from cleared gradients; with ``trace`` once more before, for first-use allocations."""
    if trace:
        state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        run_step(model, x, loss)
        model.load_state_dict(state)
        torch.set_rng_state(random)
    model.zero_grad()
    if trace:
        with trace_allocations(CPU) as tracer:
            output = model(x)
            loss(output).backward()
            tracer.mark()
        peak = tracer.phases[0].peak
    else:
        output = model(x)
        loss(output).backward()
        peak = 0
    return Step(
        output.detach().clone(),
        {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        {name: buffer.clone() for name, buffer in model.named_buffers()},
        torch.get_rng_state().numpy().tobytes(),
        peak,
    )


def assert_same(planned: Step, plain: Step) -> None:
    """Everything but the peak is equal, bit for bit."""
    assert torch.equal(planned.output, plain.output)
    for kind in ("gradients", "buffers"):
        ours, theirs = getattr(planned, kind), getattr(plain, kind)
        assert list(ours) == list(theirs)
        for name in ours:
            a, b = ours[name], theirs[name]
            assert a is b or torch.equal(a, b), f"{kind}: {name}"
    assert planned.random == plain.random


def named_chain(model: nn.Sequential) -> Chain:
    """Return a made-up chain with the model's stage names, cheap to store and dear to save."""
    names = [stage.name for stage in flatten(list(model._modules.items()))]
    chain = Chain.uniform(len(names), saved_bytes=3)
    rebuilds = [stage.forward / (1 + index % 2) for index, stage in enumerate(chain.stages)]  # every other one stops
    stages = zip(chain.stages, names, rebuilds, strict=True)
    return replace(chain, stages=tuple(replace(s, name=name, rebuild=rebuild) for s, name, rebuild in stages))


def tight_plan(model: nn.Sequential, slack: int = 0) -> Plan:
    """Return the optimal plan of :func:`named_chain` at its least budget and ``slack`` units above."""
    frontier = revolve.solve(named_chain(model))
    return replace(frontier.plan(frontier.smallest + slack), budget=None)  # of made-up units, not to be kept


def forgetful_plan(model: nn.Sequential) -> Plan:
    """Return a plan that keeps nothing: every stage is run again from the input."""
    return forgetful(named_chain(model))


def forgetful(chain: Chain) -> Plan:
    """Return the plan of a chain that keeps nothing."""
    last = len(chain) - 1
    actions: list[Any] = [*map(Forward, range(last + 1)), Loss()]
    for index in range(last, -1, -1):
        actions += [Load(0), *map(Forward, range(index)), Rebuild(index), Backward(index)]
    return Plan.from_actions(chain, actions)


PLANNERS = {
    "tight": tight_plan,
    "loose": lambda model: tight_plan(model, 4),
    "forgetful": forgetful_plan,
}


def twins(model: nn.Sequential, planner: Callable[[nn.Sequential], Plan] = forgetful_plan) -> tuple[Any, Any]:
    """Return the model under a plan, and a plain copy of it."""
    plain = copy.deepcopy(model)
    return revolve.checkpointed(model, planner(model)), plain


def assert_equal_steps(model: nn.Sequential, x: Any, loss: Callable[[Any], Tensor] = square, steps: int = 2) -> None:
    """Steps with every planner equal plain ones: the second one starts from what the first one left."""
    for planner in PLANNERS.values():
        planned, plain = twins(copy.deepcopy(model), planner)
        for step in range(steps):
            torch.manual_seed(step)
            expected = run_step(plain, x, loss)
            torch.manual_seed(step)
            assert_same(run_step(planned, x, loss), expected)


def perceptron(*between: Callable[[], nn.Module], depth: int = 5, width: int = 16) -> nn.Sequential:
    """Return linear layers, each followed by fresh modules and a tanh."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), *(make() for make in between), nn.Tanh()]
    return nn.Sequential(*layers)


def batch(rows: int = 8, width: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


class Counted(nn.Module):
    """Counts its first runs and its other ones."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.first = self.again = 0

    def forward(self, x: Tensor) -> Tensor:
        if revolve.is_recomputing():
            self.again += 1
        else:
            self.first += 1
        return self.body(x)


def assert_budgets_hold(
    model: nn.Module, x: Any, frontier: Any, shares: tuple[float, ...], loss: Any = None, *, exact: bool = True
) -> None:
    """Plans of budgets between the least one (share 0) and plain training's peak (1) keep theirs, bit for bit."""
    for share in shares:
        plan = frontier.plan(int(frontier.smallest + share * (frontier.plain - frontier.smallest)))
        report = revolve.verify(revolve.checkpointed(copy.deepcopy(model), plan), x, loss, repeats=1)
        assert report.exact or not exact, report.differences
        assert report.measured_peak <= plan.peak
