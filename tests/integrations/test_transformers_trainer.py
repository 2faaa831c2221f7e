"""The callback of the Trainer, on photographs: losses of plain training, peaks within the budget, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from hub_models import equal, instrumented, llama, t5, transformers, vit, words
from pictures import textures
from tracing import Peaks

import revolve
from revolve.integrations.transformers import RevolveCallback, checkpointed
from revolve.runtime.exceptions import ModelError

pytest.importorskip("accelerate", reason="the Trainer needs accelerate")

ROWS = 8


class Traced(transformers.Trainer):
    """A Trainer that measures its steps."""

    def training_step(self, *args, **kwargs):
        self.peaks.begin()
        loss = super().training_step(*args, **kwargs)
        self.peaks.end()
        return loss


def photographs():
    images, labels = textures(side=16, each=8)
    return [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]


def sentences():
    batch = words(rows=4 * ROWS)
    return [{name: values[row] for name, values in batch.items()} for row in range(4 * ROWS)]


def train(folder, callbacks=(), build=vit, data=photographs, resume=None, **settings):
    """Train and evaluate from the same start; return all losses, peaks, and the model."""
    model = build()
    fixed = {"num_train_epochs": 2, "save_strategy": "no", "per_device_train_batch_size": ROWS}
    settings = {**fixed, "eval_strategy": "epoch", "eval_on_start": True, **settings}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), report_to=[], logging_steps=1, use_cpu=True, disable_tqdm=True, seed=3, **settings
    )
    trainer = Traced(model, arguments, train_dataset=data(), eval_dataset=data()[:ROWS], callbacks=list(callbacks))
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.peaks = Peaks()
    trainer.train(resume_from_checkpoint=resume)
    losses = [entry[key] for entry in trainer.state.log_history for key in ("loss", "eval_loss") if key in entry]
    return losses, trainer.peaks.values, model


def least_budget(build=vit, data=photographs):
    batch = {name: torch.stack([row[name] for row in data()[:ROWS]]) for name in data()[0]}
    return revolve.solve(
        revolve.measure(build(), {**batch, **({"use_cache": False} if build is llama else {})})
    ).smallest


@pytest.fixture(scope="module")
def least():
    return least_budget()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return train(tmp_path_factory.mktemp("plain"))


def test_photographs_are_learned_as_plainly_within_the_budget(tmp_path, plain, least):
    shown = []
    callback = RevolveCallback(least, show=shown.append)
    losses, peaks, model = train(tmp_path, [callback])
    assert losses == plain[0]
    assert losses[-1] < losses[0]  # of evaluations
    assert equal(model.state_dict(), plain[2].state_dict())
    assert max(peaks) <= least < 0.7 * min(plain[1])
    assert callback.plan.peak <= least
    assert instrumented(model) == []
    (text,) = shown
    assert text.startswith("revolve: ViTForImageClassification: ")
    assert "cut before vit." in text
    assert "predicted peak" in text


def test_accumulated_gradients_in_bfloat16(tmp_path):
    settings = {"gradient_accumulation_steps": 2, "bf16": True, "build": llama, "data": sentences}
    plain, planned = tmp_path / "plain", tmp_path / "planned"
    callback = RevolveCallback(int(1.1 * least_budget(llama, sentences)), show=None)
    expected = train(plain, **settings)
    losses, peaks, _ = train(planned, [callback], **settings)
    assert losses == expected[0]
    assert len(losses) == 4 + 3
    assert callback.plan.counts()["forward"]
    assert max(peaks) <= callback.plan.peak
    assert max(expected[1]) <= callback.plan.plain_peak <= 1.2 * max(expected[1])  # as measured under autocast


def test_a_resumed_run_goes_on_as_plainly(tmp_path, plain, least):
    settings = {"save_strategy": "epoch"}
    losses, _, _ = train(tmp_path, [RevolveCallback(least, show=None)], **settings)
    assert losses == plain[0]
    resumed = {"resume": str(tmp_path / "checkpoint-3"), "save_strategy": "no"}
    expected, _, twin = train(tmp_path, **resumed)
    callback = RevolveCallback(least, show=None)
    losses, _, model = train(tmp_path, [callback], **resumed)
    assert losses == expected
    assert len(losses) == 6 + 4
    assert callback.plan is not None
    assert equal(model.state_dict(), twin.state_dict())


def test_what_checkpoints_by_itself_is_refused(tmp_path):
    with pytest.raises(ModelError, match="activation_checkpointing out"):
        train(tmp_path, [RevolveCallback("1GB")], activation_checkpointing=True)
    model = vit()
    model.activation_checkpointing_enable()
    with pytest.raises(ModelError, match="activation_checkpointing_disable"):
        train(tmp_path, [RevolveCallback("1GB")], build=lambda: model)


def test_two_callbacks_are_refused(tmp_path):
    with pytest.raises(ModelError, match="already waits to be planned for at its first batch"):
        train(tmp_path, [RevolveCallback("2GiB"), RevolveCallback("1GiB")])


def test_too_small_a_budget_is_an_error_at_the_first_batch(tmp_path):
    model = llama()
    with pytest.raises(revolve.InfeasibleBudget, match=r"least|smallest"):
        train(tmp_path, [RevolveCallback(1000)], build=lambda: model, data=sentences)
    assert instrumented(model) == []


def test_planning_for_a_batch_of_ones_own(tmp_path, plain):
    images, labels = textures(side=16, each=8)
    callback = RevolveCallback("1GB", batch={"pixel_values": images, "labels": labels}, show=None)
    losses, _, _ = train(tmp_path, [callback])
    assert losses == plain[0]
    assert callback.plan.chain.input_bytes > images[:ROWS].nbytes


def test_an_encoder_decoder_says_what_is_planned(tmp_path):
    shown = []
    callback = RevolveCallback("1GB", show=shown.append)
    train(tmp_path, [callback], build=t5, data=sentences, max_steps=1)
    assert callback.plan.plain
    assert "trains plainly within it" in shown[0]
    assert "the stages encoder.embed_tokens ... " in shown[0]
    assert "all else is trained plainly" in shown[0]


def test_a_model_is_copied_and_evaluated_as_if_there_were_no_plan(least):
    images, labels = textures(side=16, each=3)
    batch = {"pixel_values": images[:ROWS], "labels": labels[:ROWS]}
    model = vit()
    expected = model.eval()(**batch).logits
    checkpointed(model.train(), batch, least)
    assert torch.equal(copy.deepcopy(model).eval()(**batch).logits, expected)
