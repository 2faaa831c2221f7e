"""Storage formats in models that run their stages themselves: every bit, and the predicted peak."""

from __future__ import annotations

import copy
import pickle
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from branching import NETWORKS, Layers, make, normal
from test_formats import SCHEDULES
from test_library_models import llama, timm_model
from torch import nn
from torch.nn import functional
from twins import assert_equal, frontier_of, run

import revolve
from revolve import Plan
from revolve.runtime import interception
from revolve.runtime.exceptions import BudgetWarning, RecomputeError
from revolve.runtime.interception import chain_of
from revolve.runtime.measurement import default_loss
from revolve.storage.accounts import DenserThanPlanned
from revolve.storage.shared_forms import Forms

FORMATS = ("bitmap", "int8", "disk")
LOSSY = ("bf16", "int8")
WITHOUT_ZEROS = ("u-net", "encoder and decoder", "shared", "branches")


class Block(nn.Module):
    """Two convolutions: what the first gives is no zero, the second one's ReLU is the model's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return self.second(functional.relu(self.first(x)))


class Skipping(nn.Module):
    """Residual sums and ReLUs between the blocks, and what the stem gives leaps over all of them."""

    def __init__(self, width: int = 8, depth: int = 4) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(2 * width, 3, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x):
        x = stem = self.stem(x)
        for block in self.blocks:
            x = functional.relu(block(x) + x)
        return self.head(torch.cat([x, stem], 1))


def skipping():
    torch.manual_seed(0)
    return Skipping(), normal(4, 3, 24, 24)


def made(name):
    return skipping() if name == "skipping" else make(name)


def forced(chain, schedule, format_):
    """Return a plan whose budget is its peak, with everything in a format."""
    plan = Plan.from_actions(chain, SCHEDULES[schedule](len(chain), format_))
    return replace(plan, budget=plan.peak)


def in_format(model, sample, schedule="saving", format_="bitmap"):
    """Put such a plan on a model."""
    chain = revolve.measure(model, sample, formats=(format_,))
    return revolve.checkpointed(model, forced(chain, schedule, format_))


@pytest.fixture
def encoded(monkeypatch):
    """Count the forms that are made."""
    count = SimpleNamespace(number=0)
    add = Forms.add

    def counted(self, tensor, codec, shared):
        count.number += 1
        add(self, tensor, codec, shared)

    monkeypatch.setattr(Forms, "add", counted)
    return count


def total_deviation(model, sample):
    """Return how far all gradients together are from the plain ones, relative to these."""
    found = []
    for twin in (revolve.restore(copy.deepcopy(model)), model):
        twin.zero_grad()
        torch.manual_seed(0)
        args, kwargs = ((), sample) if isinstance(sample, dict) else ((sample,), {})
        default_loss(twin(*args, **kwargs)).backward()
        found.append(torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None]))
    plain, planned = found
    return float((planned - plain).norm() / plain.norm())


def check(model, sample, plan, format_):
    """Compare a step by a plan that uses a format with a plain one; return measured over predicted peak."""
    assert format_ in plan.formats()
    revolve.checkpointed(model, plan)
    report = revolve.verify(model, sample, repeats=1)
    assert report.passed, report.differences
    assert report.plan is plan  # it was not made anew
    assert report.output_equal
    assert report.loss_equal
    assert report.exact or format_ in LOSSY
    assert report.lossy == ((format_,) if format_ in LOSSY else ())
    assert report.measured_peak <= report.predicted_peak
    return report.measured_peak / report.predicted_peak


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", ["skipping", *(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS)])
def test_steps_equal_plain_ones_within_the_predicted_peak(name, format_, encoded):
    model, sample = made(name)
    chain = revolve.measure(model, sample, formats=(format_,))
    for schedule in SCHEDULES:
        encoded.number = 0
        ratio = check(model, sample, forced(chain, schedule, format_), format_)
        least = 0 if name == "branches" else len(chain) // 2  # most of what its stages save is held anyway
        assert encoded.number > least or (format_ == "bitmap" and name in WITHOUT_ZEROS)
        assert ratio > 0.7


@pytest.mark.parametrize(
    "format_", ["int8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bitmap", "disk"))]
)
def test_the_solver_chooses_formats(format_):
    """Where formats take no time, plans of most budgets keep them, and smaller ones are feasible than dense."""
    model, sample = skipping()
    chain = revolve.measure(model, sample, formats=(format_,))
    frontier = revolve.solve(free_of_charge(chain, format_), (format_,))
    assert frontier.smallest <= revolve.solve(chain).smallest
    held = revolve.solve(replace(free_of_charge(chain, format_), carried=None), (format_,))
    assert held.smallest < revolve.solve(replace(chain, carried=None)).smallest or format_ == "bitmap"
    plans = [Plan.from_actions(chain, held.plan(int(peak)).actions) for peak in held.peaks]
    plans = [replace(plan, budget=plan.peak) for plan in plans if format_ in plan.formats()]
    assert len(plans) >= len(held.peaks) // 2
    for plan in plans[:: max(1, len(plans) // 4)]:
        assert check(model, sample, plan, format_) > 0.75  # two tensors pass between blocks, and one of them is saved


@pytest.mark.slow
@pytest.mark.usefixtures("torchvision_operators")
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", ["llama", "resnet"])
def test_models_of_libraries(name, format_):
    model, sample = llama() if name == "llama" else timm_model("resnet26")
    chain = revolve.measure(model, sample, formats=(format_,))
    for schedule in SCHEDULES:
        assert check(model, sample, forced(chain, schedule, format_), format_) > 0.85
    frontier = revolve.solve(free_of_charge(chain, format_), (format_,))
    plans = [Plan.from_actions(chain, frontier.plan(int(peak)).actions) for peak in frontier.peaks]
    plans = [replace(plan, budget=plan.peak) for plan in plans if format_ in plan.formats()]
    for plan in plans[:: max(1, len(plans) // 3)]:
        assert check(model, sample, plan, format_) > 0.85
    assert plans or format_ == "bitmap"
    if format_ in LOSSY:
        revolve.checkpointed(model, forced(chain, "saving", format_))
        assert 0 < total_deviation(model, sample) < 0.15  # every stage, and there are 26 layers


def free_of_charge(chain, format_):
    """Return a chain whose formats take no time."""
    document = chain.to_json()
    costs = document["formats"][format_]
    costs.update({name: [0.0] * len(values) for name, values in costs.items() if name.endswith("_time")})
    return revolve.Chain.from_json(document)


def test_gradients_deviate_mildly_in_a_lossy_format():
    model, sample = skipping()
    in_format(model, sample, format_="int8")
    assert 0 < total_deviation(model, sample) < 0.02
    in_format(model, sample, format_="int4")
    assert 0.005 < total_deviation(model, sample) < 0.3


class Pair(nn.Module):
    """Two layers beside one another, on one tensor or two."""

    def __init__(self, width):
        super().__init__()
        self.left, self.right = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x, y=None):
        return self.left(x), self.right(x if y is None else y)


class Leaping(nn.Module):
    """Of two tensors that pass from the first layers to the second ones, the last stage takes and saves one, too."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first, self.second, self.third = Pair(width), Pair(width), nn.Linear(width, width)
        self.last = nn.Linear(2 * width, width)

    def forward(self, x):
        x, leaping = self.first(x)
        x, y = self.second(x, leaping)
        x = self.third(x + y)
        return self.last(torch.cat([x * leaping, leaping], 1))


def leaping():
    torch.manual_seed(0)
    return Leaping(), normal(2048, 64)


@pytest.mark.parametrize("way", ["measured", "from a file", "copied"])
def test_what_leaps_over_stages_is_known_before_it_is_made(way, monkeypatch):
    """It is held dense, and a form of it would be one too many; a plan from a file finds it out in its first call."""
    model, sample = leaping()
    plan = forced(revolve.measure(model, sample, formats=("int8",)), "saving", "int8")
    if way == "from a file":
        plan, model = Plan.from_json(plan.to_json()), leaping()[0]
    revolve.checkpointed(model, plan)
    if way == "copied":
        model = pickle.loads(pickle.dumps(model))
    scouted = []
    scout = interception.scout
    monkeypatch.setattr(interception, "scout", lambda *arguments: scouted.append(1) or scout(*arguments))
    with warnings.catch_warnings():
        warnings.simplefilter("error", BudgetWarning)
        report = revolve.verify(model, sample, repeats=1)
    assert report.passed
    assert report.measured_peak <= report.predicted_peak
    assert scouted == [1] * (way == "from a file")
    passed = chain_of(model).passed
    assert [sorted(stage.held) for stage in passed] == [[1], [], [], []]
    plain = revolve.restore(copy.deepcopy(model))
    model.eval()
    assert torch.equal(model(sample), plain(sample))


class Squashing(Pair):
    """Saves one of the two tensors that it gives."""

    def forward(self, x):
        x, y = super().forward(x)
        return x.tanh(), y


class Shortcut(nn.Module):
    """What the first stage saves leaps to the last one; something else passes to the next one."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first, self.last = Squashing(width), nn.Linear(width, width)
        self.middle = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x):
        leaping, x = self.first(x)
        for layer in self.middle:
            x = layer(x)
        return self.last(x + leaping)


def test_holders_refer_to_what_is_held_anyway():
    """A coarse form of what the first stage saves would be one too many, and its gradients would deviate."""
    torch.manual_seed(0)
    model, sample = Shortcut(), normal(512, 64)
    chain = revolve.measure(model, sample, formats=("bf16",))
    actions = [["save", i, *(["bf16"] * (i == 0))] for i in range(len(chain))]
    plan = Plan.from_actions(chain, [*actions, ["loss"], *(["backward", i] for i in reversed(range(len(chain))))])
    assert chain.stages[0].name == "first"
    assert chain.encoded("bf16", 1)
    report = revolve.verify(revolve.checkpointed(model, plan), sample, repeats=1)
    assert report.exact
    assert report.lossy == ("bf16",)
    for schedule in SCHEDULES:  # the stage is run again, and what it saves is not what is held
        assert check(model, sample, forced(chain, schedule, "bf16"), "bf16") > 0.7


@pytest.mark.parametrize("name", ["transformer", "residual"])
def test_scouting_leaves_no_trace(name):
    model, sample = make(name)
    plain = copy.deepcopy(model)
    plan = forced(revolve.measure(model, sample, formats=("bitmap",)), "storing", "bitmap")
    model = revolve.checkpointed(copy.deepcopy(plain), plan)  # of which nothing is known
    before = list(model.parameters())
    assert_equal(run(model, sample), run(plain, sample))
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), before, strict=True))
    assert_equal(run(model, sample), run(plain, sample))


class Rated(nn.Module):
    """Adds up how large its layers' outputs are, in place, in a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))

    def forward(self, x):
        total = torch.zeros_like(x)
        for layer in self.layers:
            x = functional.relu(layer(x))
            total.addcmul_(x + 1, x)
            x = x * 1.5
            x *= x.sigmoid()
        return x + total


@pytest.mark.parametrize(
    "format_", ["bitmap", *(pytest.param(name, marks=pytest.mark.slow) for name in ("int8", "disk"))]
)
def test_functions_that_change_what_their_stage_has_not_made_are_left_outside(format_):
    """What they save stays dense, and is none of the stage's."""
    torch.manual_seed(0)
    model, sample = Rated(), normal(4, 8, 24, 24)
    chain = revolve.measure(model, sample, formats=(format_,))
    for schedule in SCHEDULES:
        check(model, sample, forced(chain, schedule, format_), format_)


def test_a_function_that_saves_a_tensor_before_it_is_written():
    model = Layers(lambda: nn.Conv2d(8, 8, 3, padding=1), lambda index, side: (), depth=3)
    model.forward = lambda x: model.layers[2](functional.rrelu(model.layers[1](model.layers[0](x)), training=True))
    in_format(model, normal(4, 8, 24, 24))
    with pytest.raises(RecomputeError, match=r"stage 'layers\.2' saves a tensor before it is written"):
        model(normal(4, 8, 24, 24))


@pytest.mark.filterwarnings("ignore::revolve.runtime.exceptions.BudgetWarning")
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_other_orders_of_backward(schedule):
    model, sample = skipping()
    plain = copy.deepcopy(model)
    in_format(model, sample, schedule)
    for again in (False, True):
        found = []
        for twin in (plain, model):
            output = twin(sample)
            loss = output.square().mean()
            first = torch.autograd.grad(loss, list(twin.parameters()), create_graph=again, retain_graph=True)
            scale = sum(gradient.square().sum() for gradient in first)
            found.append([*first, *torch.autograd.grad(scale if again else loss, list(twin.parameters()))])
        assert_equal(*found)


def test_under_autocast():
    model, sample = skipping()
    plain = copy.deepcopy(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_format(model, sample)
    results = []
    for twin in (plain, model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = twin(sample)
        output.float().square().mean().backward()
        results.append([output, *(parameter.grad for parameter in twin.parameters())])
    assert_equal(*results)


def denser(model, by):
    """Let fewer zeros come out of a ReLU."""
    with torch.no_grad():
        model.blocks[1].second.bias += by


def test_a_step_that_is_too_dense_fails_and_the_next_one_is_planned_anew():
    model, sample = skipping()
    in_format(model, sample)
    plain = revolve.restore(copy.deepcopy(model))
    assert_equal(run(model, sample), run(plain, sample))
    denser(model, 3.0)
    denser(plain, 3.0)
    with pytest.raises(DenserThanPlanned, match=r"what stage '.*' saves would take \d+ bytes"):
        model(sample)
    model.zero_grad()
    plain.zero_grad()
    assert_equal(run(model, sample), run(plain, sample))
    report = revolve.verify(model, sample, repeats=1)
    assert report.passed
    assert report.plan is not chain_of(model).plan
    assert report.plan.budget == chain_of(model).plan.budget


def test_other_shapes_are_planned_for_with_formats():
    model, sample = skipping()
    chain = revolve.measure(model, sample, formats=("disk",))
    frontier = revolve.solve(free_of_charge(chain, "disk"), ("disk",))
    revolve.checkpointed(model, frontier.plan(int(1.3 * frontier.smallest)))
    plain = revolve.restore(copy.deepcopy(model))
    larger = normal(5, 3, 24, 24)
    for call in (sample, larger, sample, larger):
        assert_equal(run(model, call), run(plain, call))
    (other,) = chain_of(model).others.values()
    assert "disk" in other.plan.formats()
    report = revolve.verify(model, larger, repeats=1)
    assert report.passed
    assert report.plan is other.plan


def test_a_format_that_cannot_keep_tensors_here_says_so():
    model, sample = skipping()
    with pytest.raises(revolve.RevolveError, match="host"):
        revolve.measure(model, sample, formats=("host",))
    with pytest.raises(revolve.RevolveError, match="no format is named 'zip'"):
        revolve.measure(model, sample, formats=("zip",))
    assert frontier_of(model, sample).chain.formats == {}
