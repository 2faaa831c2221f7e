"""Calls of a planned model that are not as it was recorded: stages left out, other samples, changed side inputs."""

from __future__ import annotations

import copy
import random
import warnings
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from branching import Layers, make, normal, words
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from twins import assert_equal, forgetful_plan, frontier_of, loss_of, planned_twins, run

import revolve
from revolve.runtime.exceptions import BudgetWarning, ModelError, RecomputeError
from revolve.runtime.interception import chain_of


def test_a_skipped_stage_and_an_early_end():
    for options in ({"skip": 2}, {"skip": 3}, {"stop": 2}, {"stop": 0}):
        planned, plain, sample = planned_twins("transformer")
        expected = run(plain, sample, **options)
        if options == {"stop": 0}:  # the first stage is left out: there is no run
            assert_equal(run(planned, sample, **options), expected)
            continue
        with pytest.warns(
            BudgetWarning, match=r"the model did not run stage 'blocks.\d' on the output of the one before"
        ):
            assert_equal(run(planned, sample, **options), expected)
        planned.zero_grad()
        plain.zero_grad()
        assert_equal(run(planned, sample), run(plain, sample))


def test_modules_of_the_chain_by_themselves():
    planned, plain, _ = planned_twins("residual")
    x = normal(4, 12, 8, 8)
    for model in (planned, plain):
        model.layers[1](x).square().mean().backward()
    assert_equal([p.grad for p in planned.parameters()], [p.grad for p in plain.parameters()])


def test_forward_passes_that_are_interleaved():
    planned, plain, _ = planned_twins("transformer")
    samples = [words(4, 32), words(4, 32).flip(0)]
    for model in (planned, plain):
        torch.manual_seed(0)
        losses = [loss_of(model(sample)) for sample in samples]
        for loss in losses:
            loss.backward()
    assert_equal([p.grad for p in planned.parameters()], [p.grad for p in plain.parameters()])


def test_inside_torch_checkpoint():
    planned, plain, sample = planned_twins("transformer")
    for model in (planned, plain):
        torch.manual_seed(0)
        loss_of(checkpoint(model, **sample, use_reentrant=False)).backward()
    assert_equal([p.grad for p in planned.parameters()], [p.grad for p in plain.parameters()])


def test_autocast_and_second_derivatives():
    planned, plain, sample = planned_twins("transformer")
    for model in (planned, plain):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model(**sample))
        loss.backward()
    assert_equal([p.grad for p in planned.parameters()], [p.grad for p in plain.parameters()])
    for model in (planned, plain):
        model.zero_grad()
        torch.manual_seed(0)
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(loss_of(model(**sample)), parameters, create_graph=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BudgetWarning)
            loss_of(gradients).backward()
    assert_equal([p.grad for p in planned.parameters()], [p.grad for p in plain.parameters()])


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, mask):
        return self.linear(x).tanh() * (mask["values"] if isinstance(mask, dict) else 1.0)


def test_a_side_input_that_is_changed_in_place():
    sample = (normal(4, 8), {"values": normal(4, 8)})
    plan = forgetful_plan(revolve.measure(Layers(Masked, lambda index, side: (side,)), sample))
    model = Layers(Masked, lambda index, side: (side if not index else {"values": side["values"].add_(1)},))
    revolve.checkpointed(model, plan)
    with pytest.raises(RecomputeError, match=r"stage 'layers\.\d' cannot be run again: tensor 0 outside of modules"):
        loss_of(model(*sample)).backward()


class Skipping(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x).relu() + x


class Halved(nn.Module):
    """Writes half of a tensor through a view, between its layers, and works in place on what it makes of it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Skipping() for _ in range(5))
        self.same, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x):
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number == 1:
                y = x.clone()
                y[::2].relu_()
                left, right = y.chunk(2, 1)
                x = self.act(self.same(torch.cat([right, left * 2], 1)))
        return x


def test_a_tensor_that_is_written_through_a_view():
    torch.manual_seed(0)
    planned, sample = Halved(), normal(64, 8)
    plain = copy.deepcopy(planned)
    chain = revolve.measure(planned, sample)
    revolve.checkpointed(planned, forgetful_plan(chain))
    for model in (planned, plain):
        loss_of(model(sample)).backward()
    assert_equal([p.grad for p in planned.parameters()], [p.grad for p in plain.parameters()])


class Averaging(Layers):
    """Reads a moving mean between its layers, and changes it at once or at the end."""

    def __init__(self, when):
        super().__init__(lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)), None, 4)
        self.when = when
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        for layer in self.layers:
            x = x - self.mean
            if self.when == "at once":
                self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
            x = layer(x)
        if self.when == "at the end":
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return x


@pytest.mark.parametrize(
    ("when", "reason"), [("at once", "which is changed in place before"), ("at the end", "has been changed in place")]
)
def test_a_buffer_that_the_models_own_forward_reads_and_changes(when, reason):
    """The buffer is named, and what to do."""
    model = Averaging(when)
    revolve.checkpointed(model, forgetful_plan(revolve.measure(model, normal(4, 8))))
    with pytest.raises(RecomputeError, match=rf"stage 'layers\.\d.* mean of the Averaging.*{reason}.*buffer\.clone"):
        loss_of(model(normal(4, 8))).backward()


def test_an_object_that_a_stage_may_change():
    model = Layers(Masked, lambda index, side: (side,))
    revolve.checkpointed(model, forgetful_plan(revolve.measure(model, (normal(4, 8), 0))))
    with pytest.raises(ModelError, match=r"stage 'layers\.0' is called with a object, which it may change"):
        model(normal(4, 8), object())


class Halves(nn.Module):
    """Norm and in-place ReLU make one stage."""

    def __init__(self, between):
        super().__init__()
        self.first, self.norm, self.relu, self.last = (
            nn.Linear(8, 8),
            nn.LayerNorm(8),
            nn.ReLU(inplace=True),
            nn.Linear(8, 8),
        )
        self.between = between

    def forward(self, x):
        x = self.norm(self.first(x))
        x = self.between(self, x)
        return self.last(x)


def test_in_the_middle_of_a_stage():
    model = Halves(lambda model, x: model.relu(x))
    chain = revolve.measure(model, normal(4, 8))
    assert [stage.name for stage in chain.stages] == ["first", "norm+relu", "last"]
    to_the_end = replace(chain, stages=tuple(replace(stage, rebuild=stage.forward) for stage in chain.stages))
    revolve.checkpointed(model, forgetful_plan(to_the_end))
    loss_of(model(normal(4, 8))).backward()
    model.between = lambda model, x: x.relu()
    with (
        pytest.raises(RecomputeError, match="the forward pass ended before 'relu', in the middle of a stage"),
        pytest.warns(BudgetWarning, match=r"did not run stage 'last'|did not run stage 'norm\+relu'"),
    ):
        loss_of(model(normal(4, 8))).backward()


def test_random_numbers_that_are_drawn_beside_a_stage_in_its_middle():
    draws = (
        lambda model, x: (torch.rand(()), model.relu(x + torch.rand_like(x)))[1],
        lambda model, x: model.relu(functional.dropout(x) + torch.rand(()) + torch.rand_like(x)),
        lambda model, x: model.relu(functional.dropout(x) * random.random() + functional.dropout(x)),
    )
    plain = Halves(draws[0])
    model = copy.deepcopy(plain)
    chain = revolve.measure(model, normal(4, 8))
    assert [stage.name for stage in chain.stages] == ["first", "norm+relu", "last"]
    revolve.checkpointed(model, forgetful_plan(chain))
    for draw in draws:
        model.between = plain.between = draw
        model.zero_grad()
        plain.zero_grad()
        random.seed(1)
        ours = run(model, normal(4, 8))
        random.seed(1)
        assert_equal(ours, run(plain, normal(4, 8)))


def test_calls_that_the_plan_was_not_made_for():
    model, _ = make("residual")
    plain = copy.deepcopy(model)
    frontier = frontier_of(model, normal(4, 3, 24, 24))
    revolve.checkpointed(model, frontier.plan(int(1.1 * frontier.smallest)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", BudgetWarning)
        for rows in (4, 2):  # slices of a larger batch, whose memory is not the call's
            run(model, normal(8, 3, 24, 24)[:rows])
            run(plain, normal(8, 3, 24, 24)[:rows])
        for size in (24, 20):  # larger in one dimension, smaller in another: planned anew
            assert_equal(run(model, normal(5, 3, 20, size)), run(plain, normal(5, 3, 20, size)))
    with pytest.raises(revolve.InfeasibleBudget) as raised:
        run(model, normal(64, 3, 24, 24))
    assert "called with float32[64, 3, 24, 24]" in raised.value.__notes__[0]


def test_a_first_call_that_is_larger_than_planned():
    model, _ = make("residual")
    plain = copy.deepcopy(model)
    frontier = frontier_of(copy.deepcopy(model), normal(4, 3, 24, 24))  # as a plan from a file, which knows no sample
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    large = normal(6, 3, 24, 24)
    with pytest.warns(BudgetWarning, match=r"stage 'conv' is called with float32\[6, 3, 24, 24\], more than the plan"):
        assert_equal(run(model, large), run(plain, large))
    with pytest.raises(revolve.InfeasibleBudget):  # now it is known to be larger
        model(large)


@pytest.mark.parametrize("first", [(1, 8), (1, 96)])
def test_longer_sequences_in_smaller_batches(first):
    model, _ = make("transformer")
    frontier = frontier_of(model, {"words": words(8, 24)})
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    for shape in (first, (1, 96)):  # fewer bytes, but attention takes the square
        if shape == (1, 96):
            with pytest.raises(revolve.InfeasibleBudget, match="is below the least feasible"):
                model(words(*shape))
        else:
            model(words(*shape))


def test_a_first_call_that_is_smaller_than_planned(monkeypatch):
    model, _ = make("residual")
    frontier = frontier_of(model, normal(4, 3, 24, 24))
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    chain = chain_of(model)
    monkeypatch.setattr(chain, "plan_again", lambda *_: pytest.fail("it is not measured again"))
    for rows, size in ((2, 24), (3, 20), (4, 24), (3, 24), (4, 20)):
        run(model, normal(rows, 3, size, size))
    assert len(chain.fitting) == 1
    assert chain.bound


def test_larger_calls_are_planned_for_within_the_budget():
    model, _ = make("transformer")
    frontier = frontier_of(model, {"words": words(4, 24)})
    revolve.checkpointed(model, frontier.plan(int(frontier.peaks[-2])))
    for length in (24, 32, 16, 40, 32):
        report = revolve.verify(model, {"words": words(4, length)}, repeats=1)
        assert report.exact, report.differences
        assert report.measured_peak <= frontier.plan(int(frontier.peaks[-2])).budget
    revolve.restore(model)
    assert not any("forward" in vars(module) for module in model.modules())


class Trying(Layers):
    """Tries something that fails before every layer."""

    def forward(self, x):
        for layer in self.layers:
            with suppress(RuntimeError):
                x = self.before(layer, x)
            x = layer(x * 1.5)
        return x


@pytest.mark.parametrize(
    "trial", [lambda layer, x: layer(x.T.contiguous()), lambda layer, x: torch.mm(x.sigmoid() * 2, x)]
)
def test_failures_that_the_model_catches(trial):
    torch.manual_seed(0)
    plain = Trying(lambda: nn.Linear(8, 8), trial)
    model = copy.deepcopy(plain)
    chain = revolve.measure(Layers(lambda: nn.Linear(8, 8), lambda index, side: ()), normal(6, 8))
    revolve.checkpointed(model, forgetful_plan(chain))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BudgetWarning)
        for _ in range(2):
            assert_equal(run(model, normal(6, 8)), run(plain, normal(6, 8)))


def test_running_statistics_that_the_models_own_forward_changes():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x):
            norm = self.norm
            for layer in self.layers:
                x = layer(x).sigmoid()
                x = functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True)
            return x

    torch.manual_seed(0)
    plain = Model()
    model = copy.deepcopy(plain)
    frontier = frontier_of(model, normal(64, 8))
    report = revolve.verify(revolve.checkpointed(model, frontier.plan(frontier.smallest)), normal(64, 8), repeats=1)
    assert report.exact
    assert report.kept
    assert_equal(run(model, normal(64, 8)), run(plain, normal(64, 8)))
