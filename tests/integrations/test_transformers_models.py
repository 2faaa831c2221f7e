"""The adapter of transformers: one call, caches in training only, what is refused, PEFT, and its own checkpointing."""

from __future__ import annotations

import copy

import pytest
import torch
from hub_models import DEPTH, bert, equal, gpt2, gradients, instrumented, llama, plainly, t5, vit, words
from pictures import textures
from tracing import Peaks

import revolve
from revolve.integrations.first_call import FirstCall, plan_module, sample_of
from revolve.integrations.layer_export import layer_ranges, schedule
from revolve.integrations.transformers import checkpointed, every_n_layers, restore
from revolve.runtime.exceptions import MeasurementError, ModelError, PlanMismatch
from revolve.runtime.instrumentation import plan_of

TRAINED = {"llama": llama, "gpt2": gpt2, "bert": bert, "t5": t5}


def frontier_of(model, batch):
    return revolve.solve(revolve.measure(model, {**batch, "use_cache": False}))


@pytest.mark.parametrize("name", TRAINED)
def test_every_bit_of_a_step_within_the_least_budget(name):
    model, batch = TRAINED[name](), words()
    plain = plainly(model, batch)
    with pytest.raises(revolve.InfeasibleBudget) as caught:
        checkpointed(model, batch, 1000)
    assert instrumented(model) == []
    assert checkpointed(model, batch, caught.value.smallest) is model
    assert plan_of(model).peak <= caught.value.smallest < plan_of(model).plain_peak
    assert equal(gradients(model, batch), plain)
    assert restore(model) is model
    assert instrumented(model) == []
    assert plan_of(model) is None


def test_the_peak_is_within_the_budget_and_below_plain():
    model, batch = llama(), words()
    with pytest.raises(revolve.InfeasibleBudget) as caught:
        checkpointed(model, batch, 1000)
    checkpointed(model, batch, caught.value.smallest)
    peaks = Peaks()
    for _ in range(3):
        peaks.begin()
        gradients(model, batch)
        peaks.end()
    assert max(peaks.values) <= caught.value.smallest < 0.7 * plan_of(model).plain_peak


def test_formats_reach_below_the_least_budget_without_them():
    model, batch = llama(), words()
    plain, least = plainly(model, batch), frontier_of(model, batch).smallest
    with pytest.raises(revolve.InfeasibleBudget) as caught:
        checkpointed(model, batch, 0, formats=("disk",))
    assert caught.value.smallest < least
    checkpointed(model, batch, caught.value.smallest, formats=("disk",))
    assert "disk" in plan_of(model).formats()
    assert equal(gradients(model, batch), plain)


def test_caches_are_off_in_training_only_and_only_while_there_is_a_plan():
    model, batch = llama(), words()
    checkpointed(model, batch, "1GB")
    assert model.config.use_cache
    assert model(**batch).past_key_values is None
    with torch.no_grad():
        assert model(**batch).past_key_values is not None
    model.eval()
    assert model(**batch).past_key_values is not None
    longer = model.generate(batch["input_ids"][:, :4], max_new_tokens=3, do_sample=False)
    assert longer.shape[1] > 4
    restore(model.train())
    assert model(**batch).past_key_values is not None


def test_a_cache_that_is_asked_for_is_refused_with_what_to_do():
    model, batch = gpt2(), words()
    checkpointed(model, batch, frontier_of(model, batch).smallest)
    with pytest.raises(ModelError, match="use_cache=False"):
        model(**batch, use_cache=True)


def test_a_copy_keeps_plan_and_hooks_and_can_be_restored_alone():
    model, batch = llama(), words()
    plain = plainly(model, batch)
    checkpointed(model, batch, frontier_of(model, batch).smallest)
    twin = copy.deepcopy(model)
    assert equal(gradients(twin, batch), plain)
    assert instrumented(restore(twin)) == []
    assert instrumented(model) != []


def test_own_checkpointing_is_refused_with_what_to_switch_off():
    model, batch = llama(), words()
    model.activation_checkpointing_enable()
    with pytest.raises(ModelError, match=r"gradient_checkpointing=True.*activation_checkpointing_disable"):
        checkpointed(model, batch, "1GB")
    model.activation_checkpointing_disable()
    checkpointed(model, batch, "1GB")


def test_pictures_and_a_loss_of_ones_own():
    images, labels = textures(each=2)
    model = vit()
    batch = {"pixel_values": images}

    def loss(output):
        return torch.nn.functional.cross_entropy(output.logits, labels)

    with pytest.raises(revolve.InfeasibleBudget) as caught:
        checkpointed(model, batch, 0, loss=loss)
    checkpointed(model, batch, caught.value.smallest, loss=loss)
    report = revolve.verify(model, batch, loss, repeats=1)
    assert report.exact
    assert report.kept


def test_adapters_of_peft_on_a_frozen_model():
    peft = pytest.importorskip("peft", reason="needs peft")
    torch.manual_seed(0)
    model = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.1)).train()
    batch = words()
    plain = plainly(model, batch)
    assert len(plain) == 1 + 4 * DEPTH
    names = list(model.state_dict())
    with pytest.raises(revolve.InfeasibleBudget) as caught:
        checkpointed(model, batch, 0)
    checkpointed(model, batch, caught.value.smallest)
    assert not plan_of(model).plain
    assert list(model.state_dict()) == names
    assert equal(gradients(model, batch), plain)
    assert instrumented(restore(model)) == []


@pytest.mark.parametrize("build", [llama, bert])
def test_the_best_setting_of_every_n_layers_is_the_fastest_within_the_budget(build):
    model, batch = build(), words()
    frontier = frontier_of(model, batch)
    plain = int(frontier.peaks[-1])
    numbers = []
    for share in (1.0, 0.85, 0.6):
        setting = every_n_layers(model, frontier.plan(int(share * plain)))
        assert setting.plan.peak <= share * plain
        numbers.append(setting.every_n_layers)
    assert numbers[0] is None
    assert numbers[1] > numbers[2] >= 1
    least = every_n_layers(model, frontier.plan(int(frontier.smallest * 1.2)))
    with pytest.raises(revolve.InfeasibleBudget, match="every_n_layers") as caught:
        every_n_layers(model, revolve.Plan.from_actions(frontier.chain, least.plan.actions, budget=least.plan.peak - 1))
    assert caught.value.smallest <= least.plan.peak


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_predicted_peak_of_every_n_layers_is_that_of_transformers(n):
    model, batch = llama(), words()
    frontier = frontier_of(model, batch)
    layers = layer_ranges(model, frontier.plan(int(frontier.peaks[-1])))
    predicted = revolve.simulate(frontier.chain, schedule(layers[::n], len(frontier.chain))).peak
    model.activation_checkpointing_enable(every_n_layers=n)
    peaks = Peaks()
    for _ in range(2):
        model.zero_grad()
        peaks.begin()
        model(**batch, use_cache=False).loss.backward()
        peaks.end()
    assert 0.94 * predicted <= peaks.values[0] <= 1.03 * predicted


def test_every_n_layers_needs_layers_that_are_stages():
    model, batch = vit(), {"pixel_values": textures(each=1)[0]}
    plan = revolve.solve(revolve.measure(model, batch)).plan("1GB")
    with pytest.raises(PlanMismatch, match="no layers"):
        every_n_layers(torch.nn.Linear(2, 2), plan)
    with pytest.raises(PlanMismatch, match=r"'model\.layers\.0' is not made of stages"):
        every_n_layers(llama(), plan)


class Affine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()) for _ in range(4))

    def forward(self, x, scale, *, shift=0.0):
        x = x * scale
        for layer in self.layers:
            x = layer(x)
        return x + shift


def test_positional_and_keyword_arguments_become_one_sample():
    model, x = Affine(), torch.ones(4, 8)
    assert sample_of(model, ((x, 2.0), {"shift": 1.0})) == {"x": x, "scale": 2.0, "shift": 1.0}
    assert sample_of(model, ((x, 2.0), {})) == (x, 2.0)
    assert sample_of(torch.nn.Sequential(model), ((x,), {})) is x
    with pytest.raises(MeasurementError, match="pass all of them by name"):
        sample_of(torch.nn.Identity(1), ((x, x), {"more": x}))


@pytest.mark.parametrize("build", [Affine, lambda: torch.nn.Sequential(*(m for la in Affine().layers for m in la))])
def test_a_first_call_plans_before_it_runs_and_only_in_training(build):
    torch.manual_seed(0)
    model = build().train()
    arguments = ((torch.ones(64, 8), 2.0), {"shift": 1.0}) if isinstance(model, Affine) else ((torch.ones(64, 8),), {})
    asked = []

    def plan_now(module, sample):
        asked.append(sample)
        plan_module(module, sample, "1GB")

    FirstCall(model, plan_now)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model(*arguments[0], **arguments[1])
    model.eval()(*arguments[0], **arguments[1])
    assert asked == []
    for _ in range(2):
        model.train()(*arguments[0], **arguments[1])
        twin.train()(*arguments[0], **arguments[1])
    assert len(asked) == 1
    assert plan_of(model) is not None
    assert plan_of(twin) is None
