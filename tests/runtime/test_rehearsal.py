"""What only a whole step shows is part of the chain: a step is rehearsed when a model is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from steps import assert_budgets_hold, batch, perceptron, square
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import revolve
from revolve import Chain, Loss, Plan, Save
from revolve.runtime import rehearsal
from revolve.runtime.allocations import Phase
from revolve.runtime.exceptions import BudgetWarning, MeasurementError
from revolve.runtime.fitting import fit
from revolve.runtime.rehearsal import EXTRAS, Journal, corrected
from revolve.schedules import StorageCosts
from revolve.schedules.plans import with_carried
from revolve.schedules.segments import sequential

SHARES = (0, 0.15, 0.4, 0.7, 1)
ROWS = torch.randn(256, 64, generator=torch.Generator().manual_seed(5))
LOSSES = {"sum": torch.sum, "square": square, "dense": lambda output: (output * torch.ones_like(output)).sum()}


class Skipping(nn.Module):
    def __init__(self, before=lambda x: x, after=lambda y: y, skip=True):
        super().__init__()
        self.linear, self.before, self.after, self.skip = nn.Linear(64, 64), before, after, skip

    def forward(self, x):
        y = self.after(self.linear(self.before(x)))
        return y + x if self.skip else y


class Stacked(nn.Module):
    """Calls layers, each of which may get a skip around it as well."""

    def __init__(self, *layers, skips):
        super().__init__()
        self.stem, self.layers, self.skips = nn.Linear(64, 64), nn.ModuleList(layers), skips

    def forward(self, x):
        first = x = self.stem(x)
        for layer, skip in zip(self.layers, self.skips, strict=True):
            x = {"none": lambda: 0, "own": lambda x=x: x, "first": lambda: first}[skip]() + layer(x)
        return x


def curved(x):
    return functional.gelu(x * 2)


def broadcast(x):
    return x.mean(0, keepdim=True).expand(x.shape)


def doubled(x):
    return sum(torch.cat([x, x * 2], -1).chunk(2, -1))


def thrice(x):
    return x * 2 + x * 3 + x * 4


MODELS = {
    "a skip around a skip": lambda: Stacked(Skipping(), skips=["own"]),
    "a skip around what saves something else": lambda: Stacked(Skipping(curved, skip=False), skips=["own"]),
    "a skip from the beginning": lambda: Stacked(Skipping(after=thrice), Skipping(curved), skips=["first", "own"]),
    "an expanded sum from the beginning": lambda: Stacked(
        Skipping(after=lambda y: thrice(broadcast(y))), Skipping(curved), skips=["first", "own"]
    ),
    "the last one again": lambda: nn.Sequential(nn.Linear(64, 64), Skipping(doubled), Skipping(doubled)),
    "expanded between stages": lambda: nn.Sequential(
        nn.Linear(64, 64), Skipping(), Skipping(torch.tanh, broadcast, skip=False), nn.Linear(64, 64)
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_budgets_hold(name, loss):
    torch.manual_seed(0)
    model = MODELS[name]()
    chain = revolve.measure(model, ROWS, LOSSES[loss])
    assert_budgets_hold(model, ROWS, revolve.solve(chain), SHARES, LOSSES[loss])


def journal_of(chain, actions):
    """Return the journal of a step in which a phase ends with every run of a stage, loss and backward."""
    journal = Journal(Plan.from_actions(chain, actions))
    journal.ends = [n for n, action in enumerate(journal.plan.actions, 1) if type(action) in (*EXTRAS, Loss)]
    return journal


def phases_of(journal, more):
    """Return phases that are below what is planned, but for some, by the position of the action that ends them."""
    timeline = journal.plan.simulation.timeline
    return [Phase(0, timeline[end - 1].peak - 1024 + more.get(end - 1, 0), 0) for end in journal.ends]


@pytest.mark.parametrize(
    ("position", "field"),
    [(0, "forward_extra"), (2, "save_extra"), (4, "backward_extra"), (7, "rebuild_extra"), (8, "backward_extra")],
)
def test_the_action_that_took_more_is_charged(position, field):
    none, zeros = (0, 0), (0.0, 0.0)
    costs = StorageCosts((1, 1, 1), (0.0,) * 3, (0.0,) * 3, none, zeros, zeros, (5, 6), (7, 8))
    chain = replace(Chain.uniform(2, saved_bytes=3000, output_bytes=4000), formats={"small": costs})
    journal = journal_of(chain, sequential(2, 2))
    assert corrected(chain, journal, phases_of(journal, {})) == chain
    assert corrected(chain, journal, phases_of(journal, {position: 500})) == chain  # the caller's scalars have room
    found = corrected(chain, journal, phases_of(journal, {position: 5000}))
    stage = journal.plan.actions[position].index
    changed = replace(chain.stages[stage], **{field: getattr(chain.stages[stage], field) + 5000})
    assert found.stages[stage] == changed
    assert found.stages[1 - stage] == chain.stages[1 - stage]
    for name in ("save_extra", "backward_extra"):
        before, after = getattr(costs, name), getattr(found.formats["small"], name)
        assert [b - a for a, b in zip(before, after, strict=True)] == [
            5000 * (field == name and i == stage) for i in (0, 1)
        ]


def test_the_loss_is_charged():
    chain = Chain.uniform(2)
    journal = journal_of(chain, sequential(2, 1))
    found = corrected(chain, journal, phases_of(journal, {2: 700}))
    assert found == replace(chain, loss_extra=chain.loss_extra + 700)


def test_a_second_output_belongs_to_the_run_that_makes_it():
    """A backward of the last stage that takes no more than the run before it is charged nothing."""
    chain = Chain.uniform(2, saved_bytes=3000, output_bytes=4000)
    chain = replace(chain, stages=(chain.stages[0], replace(chain.stages[1], rebuild_extra=9000)))
    actions = [["forward", 0], ["store", 1, "dense"], ["forward", 1], ["loss"], ["load", 1], ["rebuild", 1]]
    actions += [["backward", 1], ["drop", 1], ["load", 0], ["rebuild", 0], ["backward", 0]]
    journal = journal_of(chain, actions)
    assert corrected(chain, journal, phases_of(journal, {6: 4000})) == chain


class Counting(nn.Module):
    """Does something else each time."""

    calls = 0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x):
        Counting.calls += 1
        return self.linear(x).tanh().exp() if Counting.calls % 2 else self.linear(x).tanh().sin().cos()


def test_a_stage_that_cannot_be_run_again_is_measured():
    assert len(revolve.measure(nn.Sequential(nn.Linear(16, 16), Counting(), nn.Linear(16, 16)), batch())) == 3


def test_other_errors_of_the_rehearsal_are_errors(monkeypatch):
    def fail(*_):
        raise RuntimeError("the step fails")

    monkeypatch.setattr(rehearsal.Rehearsed, "finish", fail)
    with pytest.raises(MeasurementError, match="the step fails"):
        revolve.measure(perceptron(), batch())


def test_under_hooks_of_somebody_else_nothing_is_rehearsed(monkeypatch):
    found = []
    monkeypatch.setattr(rehearsal, "corrected", lambda chain, *_: (found.append(chain), chain)[1])
    model = perceptron()
    with torch.autograd.graph.save_on_cpu():
        revolve.measure(model, batch())
    assert not found
    revolve.measure(model, batch())
    assert len(found) == 2


def test_a_step_within_torchs_checkpoint_is_planned_for_in_it():
    model = perceptron()
    planned = revolve.checkpointed(perceptron(), sample=batch(4), budget="1MB")
    planned.load_state_dict(model.state_dict())
    for net in (model, planned):
        square(checkpoint(net, batch(8), use_reentrant=False)).backward()
    for ours, theirs in zip(planned.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


class Scaled(nn.Module):
    """Uses a tensor of the user's that is no parameter."""

    def __init__(self, scale):
        super().__init__()
        self.layers, self.scale = nn.ModuleList(nn.Linear(16, 16) for _ in range(4)), [scale]

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh() * self.scale[0]
        return x


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("build", [Scaled, lambda scale: nn.Sequential(*perceptron(), Scaled(scale))])
def test_tensors_of_the_users_and_of_the_loss_get_no_gradient(build, kept):
    fired = []
    scale, weight = (torch.ones(16, requires_grad=True) for _ in range(2))
    for tensor in (scale, weight):
        tensor.grad = torch.full((16,), 3.0) if kept else None
        tensor.register_hook(lambda gradient: fired.append(gradient))
        tensor.register_post_accumulate_grad_hook(fired.append)
    model = build(scale)

    def loss(output):
        return (output * weight).square().mean()

    planned = revolve.checkpointed(model, sample=batch(), budget="1MB", loss=loss)
    revolve.verify(planned, batch(), loss, repeats=1)
    assert not fired
    for tensor in (scale, weight):
        assert tensor.grad is None if not kept else torch.equal(tensor.grad, torch.full((16,), 3.0))
    (model(batch()) * weight).sum().backward()
    assert len(fired) == 4  # the hooks are as before


class Returning(nn.Module):
    """Returns what lies between its stages: the caller holds it, whatever the plan does."""

    def __init__(self, depth=4):
        super().__init__()
        self.layers, self.head = nn.ModuleList(Skipping(torch.tanh) for _ in range(depth)), nn.Linear(64, 64)

    def forward(self, x):
        given = []
        for layer in self.layers:
            x = layer(x)
            given.append(functional.gelu(x * 2) + x)
        return {"head": self.head(given[0]), "given": given}


def test_a_plan_that_took_more_is_solved_for_again():
    chain = replace(Chain.uniform(6, saved_bytes=3, backward_extra=1), loss_extra=0)
    more = replace(chain, stages=(*chain.stages[:-1], replace(chain.stages[-1], backward_extra=5)))
    asked = []

    def rehearse(plan):
        asked.append(plan)
        return more

    budget = revolve.solve(more).smallest
    plan = fit(chain, ("dense",), budget, rehearse)
    assert [found.chain for found in asked] == [chain, more]
    assert plan == asked[1]
    assert plan.peak <= budget < Plan.from_actions(more, asked[0].actions).peak
    with pytest.raises(revolve.InfeasibleBudget):
        fit(chain, ("dense",), budget - 1, rehearse)


def test_a_plan_that_keeps_its_budget_nevertheless_is_not_solved_for_again():
    """It is as fast as before, and tells what it was seen to take."""
    chain = Chain.uniform(3, saved_bytes=3)
    asked = []

    def rehearse(plan):
        asked.append(plan)
        return replace(plan.chain, loss_extra=plan.chain.loss_extra + 2)

    budget = 20
    plan = fit(chain, ("dense",), budget, rehearse)
    assert len(asked) == 1
    assert plan.actions == asked[0].actions
    assert (plan.budget, plan.strategy, plan.makespan) == (budget, asked[0].strategy, asked[0].makespan)
    assert asked[0].peak < plan.peak <= budget


def test_where_no_plan_was_seen_to_keep_its_budget_a_warning_says_so():
    """Every plan saves a stage that turns out to take much."""
    chain = Chain.uniform(12, saved_bytes=3)

    def rehearse(plan):
        stages = list(plan.chain.stages)
        heavy = next(action.index for action in plan.actions if isinstance(action, Save))
        stages[heavy] = replace(stages[heavy], save_extra=100)
        return replace(plan.chain, stages=tuple(stages))

    with pytest.warns(BudgetWarning, match=r"for 40 bytes took up to \d+ when it was rehearsed, and 4 before it"):
        fit(chain, ("dense",), 40, rehearse)


def test_what_is_carried_is_corrected_alone():
    chain = Chain.uniform(4, saved_bytes=3)
    carried = Chain.uniform(4, saved_bytes=2)
    both = with_carried(chain, carried)
    more = replace(both.carried, stages=(*carried.stages[:-1], replace(carried.stages[-1], backward_extra=3)))
    found = []

    def rehearse(plan):
        found.append(plan.chain)
        return more

    fit(both, ("dense",), 14, rehearse)
    assert [part.carries for part in found] == [True, True]
    assert found[1].stages == more.stages


@pytest.mark.parametrize("formats", [("dense",), ("dense", "int8")], ids="+".join)
@pytest.mark.parametrize(
    "model", [Returning, lambda: MODELS["a skip from the beginning"]()], ids=["returning", "skips"]
)
def test_the_very_plan_is_rehearsed(model, formats):
    torch.manual_seed(0)
    model = model()
    frontier = revolve.solve(revolve.measure(model, ROWS, formats=formats), formats)
    for share in SHARES:
        budget = int(frontier.smallest + share * (frontier.plain - frontier.smallest)) + 4096
        planned = revolve.checkpointed(model, sample=ROWS, budget=budget, formats=formats)
        report = revolve.verify(planned, ROWS, repeats=1)
        assert report.kept
        assert report.passed, report.differences
        revolve.restore(model)
