"""What leaps over stages is carried where that pays: dropped with the activations it is part of, and made again."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from branching import make, normal
from steps import CPU
from torch import nn
from torch.autograd.graph import save_on_cpu
from twins import assert_equal, forgetful_plan, loss_of, run

import revolve
from revolve import Backward, Drop, Forward, Load, Loss, Plan, Rebuild, Save, Store
from revolve.runtime.allocations import trace_allocations
from revolve.runtime.exceptions import BudgetWarning

LEAPING = ("u-net", "dense lists", "branches", "encoder and decoder")


class Levels(nn.Module):
    """A U-Net of three levels, whose skips are a large part of what it saves."""

    def __init__(self, widths: tuple[int, ...] = (8, 12, 16, 16)) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.first = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairs)
        self.widen = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))
        self.up = nn.ModuleList(nn.Conv2d(2 * a, a, 3, padding=1) for a, _ in reversed(pairs))
        self.acts = nn.ModuleList(nn.GELU() for _ in range(2 * len(pairs) + 1))

    def forward(self, x):
        acts = iter(self.acts)
        skips = [next(acts)(self.first(x))]
        for down in self.down:
            skips.append(next(acts)(down(skips[-1])))
        x = skips.pop()
        for widen, up in zip(self.widen, self.up, strict=True):
            x = next(acts)(up(torch.cat([skips.pop(), widen(x)], 1)))
        return x


def levels():
    torch.manual_seed(0)
    return Levels(), normal(4, 3, 48, 48)


def carried_twins(build, plan_for):
    """Return a model under a plan that carries, a plain twin, and a sample."""
    model, sample = build()
    plain = copy.deepcopy(model)
    plan = plan_for(revolve.measure(model, sample).carried)
    assert plan.chain.carries
    return revolve.checkpointed(model, plan), plain, sample


@pytest.mark.parametrize("name", LEAPING)
def test_every_bit_and_the_peak(name):
    model, sample = make(name)
    chain = revolve.measure(model, sample)
    frontier = revolve.solve(chain.carried)
    peaks = frontier.peaks[[0, len(frontier) // 3, 2 * len(frontier) // 3]]
    for plan in (forgetful_plan(chain.carried), *(frontier.plan(int(peak)) for peak in peaks)):
        assert plan.chain.carries
        revolve.checkpointed(model, plan)
        report = revolve.verify(model, sample, repeats=1)
        assert report.exact, report.differences
        assert report.measured_peak <= plan.peak


def test_a_budget_that_only_carrying_reaches():
    model, sample = levels()
    chain = revolve.measure(model, sample)
    held, frontier = revolve.solve(replace(chain, carried=None)), revolve.solve(chain)
    assert frontier.smallest < 0.95 * held.smallest
    for budget in (frontier.smallest, (frontier.smallest + held.smallest) // 2):
        plan = frontier.plan(budget)
        assert plan.chain.carries
        assert plan.plain_peak == held.plain
        revolve.checkpointed(model, plan)
        report = revolve.verify(model, sample, repeats=1)
        assert report.exact, report.differences
        assert report.kept
        assert report.measured_peak >= 0.9 * plan.peak  # the pair of a stage's input and output shares what is carried
    for budget in range(held.smallest, held.plain, (held.plain - held.smallest) // 7):
        carried = frontier.carried.plan(budget)
        plan = frontier.plan(budget)
        assert plan.makespan == min(held.plan(budget).makespan, carried.makespan)
        assert plan.peak <= budget
    assert frontier.plan(held.plain).plain
    assert not frontier.plan(held.plain).chain.carries


class Beside(nn.Module):
    """Between two of its stages a module beside the chain takes much for a moment, while a skip leaps over all."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        self.gauge, self.wide = nn.AvgPool2d(1), wide

    def forward(self, x):
        x = skip = self.first(x)
        for number, layer in enumerate(self.layers):
            x = layer(x).tanh()
            if number == 1:
                with torch.no_grad():
                    scale = self.gauge(x.repeat(1, self.wide, 1, 1)).mean()
        return self.last(torch.cat([x, skip], 1)) * scale


@pytest.mark.parametrize(("wide", "least"), [(4, 0.96), (8, 0.94)])
def test_what_lies_around_the_chain_counts_what_is_carried_once(wide, least):
    torch.manual_seed(0)
    model, sample = Beside(wide), normal(4, 3, 48, 48)
    frontier = revolve.solve(revolve.measure(model, sample).carried)
    plan = frontier.plan(frontier.smallest)
    revolve.checkpointed(model, plan)
    report = revolve.verify(model, sample, repeats=1)
    assert report.exact
    assert least * plan.peak < report.measured_peak <= plan.peak


def test_nothing_is_held_between_forward_and_backward():
    """With a plan that keeps nothing only the output is alive there; held, the skips are, too."""
    model, sample = levels()
    chain = revolve.measure(model, sample)
    skips = sum(size * size * width for size, width in ((48, 8), (24, 12), (12, 16))) * 4 * 4
    alive = {}
    for found in (chain, chain.carried):
        revolve.checkpointed(model, forgetful_plan(found))
        with trace_allocations(CPU) as tracer:
            output = model(sample)
            tracer.mark()
        alive[found.carries] = tracer.phases[0].end - output.untyped_storage().nbytes()
        del output
    assert alive[False] >= skips
    assert alive[True] < 0.1 * skips


def test_other_passes_than_one_in_order():
    planned, plain, sample = carried_twins(levels, forgetful_plan)
    slopes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BudgetWarning)
        for model in (planned, plain):
            x = sample.clone().requires_grad_()
            (slope,) = torch.autograd.grad(loss_of(model(x)), [x], create_graph=True)
            slope.square().sum().backward()
            slopes.append([slope.detach(), *(p.grad for p in model.parameters())])
            output = model(sample)
            loss_of(output).backward(retain_graph=True)
            loss_of(output).backward()
            slopes[-1] += [p.grad for p in model.parameters()]
    assert_equal(*slopes)


def storing(at):
    """Return what makes a plan that keeps only one activation, for the stages behind it."""

    def plan(chain):
        last = len(chain) - 1
        actions = [*map(Forward, range(at)), Store(at), *map(Forward, range(at, last + 1)), Loss()]
        for index in range(last, at - 1, -1):
            actions += [Load(at), *map(Forward, range(at, index)), Rebuild(index), Backward(index)]
        actions.append(Drop(at))
        for index in range(at - 1, -1, -1):
            actions += [Load(0), *map(Forward, range(index)), Rebuild(index), Backward(index)]
        return Plan.from_actions(chain, actions)

    return plan


@pytest.mark.parametrize("enclosed", [False, True])
@pytest.mark.parametrize("at", [2, 3, 8, 9])
def test_activations_that_are_stored_before_they_carry(at, enclosed):
    """Skips are known when they are taken: after the activations that carry them have been stored."""
    planned, plain, sample = carried_twins(levels, storing(at))
    for model in (planned, plain):
        with save_on_cpu() if enclosed else torch.enable_grad():
            loss_of(model(sample)).backward()
    assert_equal([p.grad for p in planned.parameters()], [p.grad for p in plain.parameters()])


def test_plain_training_carries_nothing_more():
    planned, plain, sample = carried_twins(
        levels,
        lambda chain: Plan.from_actions(
            chain, [*map(Save, range(len(chain))), Loss(), *map(Backward, range(len(chain) - 1, -1, -1))]
        ),
    )
    assert_equal(run(planned, sample), run(plain, sample))


class Product(nn.Module):
    def forward(self, a, b):
        return a.sigmoid() * b


class Taking(nn.Module):
    """A module that takes an earlier tensor itself, and a stage of two calls that takes one between them."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.product, self.act, self.norm = Product(), nn.ReLU(inplace=True), nn.BatchNorm2d(4)

    def forward(self, x):
        first = self.stages[0](x)
        second = self.stages[1](first).tanh()
        x = self.product(self.stages[2](second), first)
        return self.norm(self.act(self.stages[3](x) + second))


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_what_modules_take_and_what_is_taken_in_the_middle_of_a_stage(at):
    torch.manual_seed(0)
    model, sample = Taking(), normal(4, 4, 24, 24)
    chain = revolve.measure(model, sample)
    assert [stage.name for stage in chain.stages[3:]] == ["product", "stages.3+act", "norm"]
    for plan in (forgetful_plan(chain.carried), storing(at)(chain.carried)):
        revolve.checkpointed(model, plan)
        report = revolve.verify(model, sample, repeats=1)
        assert report.exact, report.differences
        assert report.measured_peak <= plan.peak


class Changing(nn.Module):
    """Changes in place what it takes again later: made again, it would be as it was before."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(5))

    def forward(self, x):
        first = self.stages[0](x) + 1
        x = self.stages[1](first * 1)
        first.mul_(2)
        x = self.stages[3](self.stages[2](x))
        return self.stages[4](x + first)


def test_what_is_changed_on_its_way():
    torch.manual_seed(0)
    model, sample = Changing(), normal(4, 4, 24, 24)
    chain = revolve.measure(model, sample)
    for found in filter(None, (chain, chain.carried)):
        revolve.checkpointed(model, forgetful_plan(found))
        report = revolve.verify(model, sample, repeats=1)
        assert report.exact, report.differences
        assert report.measured_peak <= report.predicted_peak


def test_files(tmp_path):
    model, sample = levels()
    chain = revolve.measure(model, sample)
    chain.save(tmp_path / "chain.json")
    assert revolve.Chain.load(tmp_path / "chain.json") == chain
    frontier = revolve.solve(chain)
    plan = frontier.plan(frontier.smallest)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    revolve.checkpointed(model, Plan.load(tmp_path / "plan.json"))
    assert revolve.verify(model, sample, repeats=1).exact


def test_larger_calls_are_planned_for_anew():
    model, sample = levels()
    plain = copy.deepcopy(model)
    chain = revolve.measure(model, sample)
    held, budget = revolve.solve(replace(chain, carried=None)), int(1.02 * revolve.solve(chain).smallest)
    assert budget < held.smallest
    plan = revolve.solve(revolve.measure(model, sample[:3])).plan(budget)
    assert not plan.plain
    revolve.checkpointed(model, plan)
    assert_equal(run(model, sample), run(plain, sample))  # measured and planned for
    model.zero_grad()
    with trace_allocations(CPU) as tracer, warnings.catch_warnings():
        warnings.simplefilter("error", BudgetWarning)
        loss_of(model(sample)).backward()
        tracer.mark()
    assert tracer.phases[0].peak <= budget


def test_fake_measurements_carry():
    model, sample = levels()
    chain = revolve.measure(model, sample, mode="fake")
    assert chain.carried.plain_peak == revolve.solve(chain).plain
    frontier = revolve.solve(chain)
    plan = frontier.plan(frontier.smallest)
    assert plan.chain.carries
    assert plan.chain.origin == chain.origin
    revolve.checkpointed(model, plan)
    report = revolve.verify(model, sample, repeats=1)
    assert report.exact
    assert report.kept


def test_chains_without_leaps_are_as_ever():
    chain = revolve.measure(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), torch.randn(3, 4))
    assert chain.carried is None
    assert not {"carried", "carries", "plain_peak"} & set(chain.to_json())
    assert all("passed_bytes" not in stage for stage in chain.to_json()["stages"])
