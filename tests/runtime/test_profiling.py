"""Measuring models that are no nn.Sequential: what a step takes besides its stages, and what is refused."""

from __future__ import annotations

import pytest
import torch
from branching import Layers, ResidualNet, Shared, Transformer, make, normal, words
from torch import nn
from torch.nn import functional
from twins import frontier_of

import revolve
from revolve.runtime.exceptions import ModelError


def test_modules_that_are_run_twice():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

        def forward(self, x, y):
            return self.body(x * 2) - self.body(y * 2)

    model, sample = Siamese(), (normal(64, 8), normal(64, 8) + 1)
    frontier = frontier_of(model, sample)
    assert [stage.name for stage in frontier.chain.stages] == ["body.0", "body.1", "body.2"] * 2
    report = revolve.verify(revolve.checkpointed(model, frontier.plan(frontier.smallest)), sample, repeats=1)
    assert report.exact
    assert report.kept


def test_a_model_that_leaves_out_layers_at_random():
    class Dropping(Layers):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            return super().forward(x) if self.calls % 2 else self.layers[0](x)

    with pytest.raises(ModelError, match=r"the model did not call 'layers.1' as it did when it was recorded"):
        revolve.measure(Dropping(lambda: nn.Linear(8, 8), lambda index, side: ()), normal(4, 8))


def test_measuring_a_planned_model_again():
    model, sample = make("dense")
    frontier = frontier_of(model, sample)
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    again = frontier_of(model, sample)
    assert [s.saved_bytes for s in again.chain.stages] == [s.saved_bytes for s in frontier.chain.stages]
    assert [s.name for s in revolve.linearize(model, sample)] == [s.name for s in frontier.chain.stages]
    assert revolve.verify(model, sample, repeats=1).kept


def test_a_frozen_beginning():
    torch.manual_seed(0)
    model = Shared()
    model.first.requires_grad_(False)
    frontier = frontier_of(model, normal(64, 24))
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    report = revolve.verify(model, normal(64, 24), repeats=1)
    assert report.exact
    assert report.kept


def test_hooks_that_the_first_call_installs():
    """As transformers does to collect hidden states: it remembers in an attribute that it has."""

    class Collecting(Layers):
        def forward(self, x):
            if not hasattr(self, "collected"):
                self.collected = []
                for layer in self.layers:
                    layer.register_forward_hook(lambda module, inputs, output: self.collected.append(output))
            self.collected.clear()
            x = super().forward(x)
            assert len(self.collected) == 3
            return x

    model = Collecting(lambda: nn.Linear(8, 8), lambda index, side: ())
    for _ in range(2):
        assert len(revolve.measure(model, normal(4, 8)).stages) == 3
    assert not any(module._forward_hooks for module in model.modules())


class DenseLists(nn.Module):
    """A dense block that passes lists: every layer takes all values before it, and so does what is behind them."""

    class Layer(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, 8, 3, padding=1)

        def forward(self, values):
            return self.conv(self.norm(torch.cat(values, 1)).relu())

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(40, 20, 1)
        self.layers = nn.ModuleList(self.Layer(16 + 8 * index) for index in range(3))

    def forward(self, x):
        values = [self.stem(x)]
        for layer in self.layers:
            values.append(layer(values))
        return self.head(torch.cat(values, 1)).mean((2, 3))


def test_gradients_that_are_views_of_one_storage():
    """They live as long as any of them, and a stage's backward copies its own before it works on it."""
    torch.manual_seed(0)
    model, images = DenseLists(), normal(4, 3, 64, 64)
    frontier = frontier_of(model, images)
    assert {stage.name.split(".")[0] for stage in frontier.chain.stages} == {"stem", "layers", "head"}
    for peak in frontier.peaks[:-1]:
        revolve.checkpointed(model, frontier.plan(int(peak)))
        report = revolve.verify(model, images, repeats=1)
        assert report.exact, report.differences
        assert 0.9 * report.predicted_peak <= report.measured_peak <= report.predicted_peak


def test_losses_that_stages_leave_behind():
    """As a mixture of experts does: the model adds what its layers leave in an attribute to the loss."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.linear = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            weights = self.gate(x).softmax(-1)
            self.balance = weights.square().mean()
            return x + self.linear(x).tanh() * weights

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Layer() for _ in range(4))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x, sum(layer.balance for layer in self.layers)

    torch.manual_seed(0)
    model, sample = Model(), normal(256, 16)
    frontier = frontier_of(model, sample)
    for budget in (frontier.smallest, int(frontier.peaks[-2])):
        revolve.checkpointed(model, frontier.plan(budget))
        report = revolve.verify(model, sample, repeats=1)
        assert report.exact, report.differences
        assert report.kept


def test_a_loss_of_the_output():
    class WithLoss(Transformer):
        def forward(self, words):
            logits = super().forward(words)["logits"]

            class Output(dict):
                loss = functional.cross_entropy(logits.flatten(0, 1), words.flatten())

            return Output(logits=logits)

    torch.manual_seed(0)
    model, sample = WithLoss(), {"words": words(4, 32)}
    frontier = frontier_of(model, sample)
    revolve.checkpointed(model, frontier.plan(frontier.smallest))
    assert revolve.verify(model, sample, repeats=1).exact


def test_autocast_that_the_model_enters_itself():
    class Casting(ResidualNet):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x).float()

    torch.manual_seed(0)
    sample = normal(4, 3, 24, 24)
    frontier = frontier_of(Casting(), sample)
    with torch.autocast("cpu", torch.bfloat16):
        expected = revolve.measure(ResidualNet(), sample)
    plain = revolve.measure(ResidualNet(), sample)
    assert [s.saved_bytes for s in frontier.chain.stages] == [s.saved_bytes for s in expected.stages]
    assert sum(s.saved_bytes for s in frontier.chain.stages) < sum(s.saved_bytes for s in plain.stages)
    model = revolve.checkpointed(Casting(), frontier.plan(frontier.smallest))
    report = revolve.verify(model, sample, repeats=1)
    assert report.exact
    assert report.kept
    assert not torch.is_autocast_enabled("cpu")
