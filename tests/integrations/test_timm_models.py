"""The adapter of timm: one call, on photographs, for classifiers and feature extractors."""

from __future__ import annotations

import pytest
import torch
from pictures import textures
from tracing import Peaks
from vision_operators import define_vision_operators

import revolve
from revolve.integrations.timm import checkpointed, restore
from revolve.runtime.exceptions import ModelError
from revolve.runtime.instrumentation import plan_of

define_vision_operators()
timm = pytest.importorskip("timm", reason="needs the extra [timm]")

SMALL = {"in_chans": 1, "num_classes": 3}
MODELS = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 2}),
    "convnext": ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 24), "drop_path_rate": 0.2}),
    "mobilenet": ("mobilenetv2_035", {"drop_rate": 0.2}),
}


def build(name):
    torch.manual_seed(0)
    kind, settings = MODELS[name]
    return timm.create_model(kind, **SMALL, **settings).train()


def photographs(count=12):
    images, labels = textures(side=32, each=8)
    return images[:count], labels[:count]


def train(model, images, labels, steps=4):
    """Train as a script does; return losses and peaks."""
    torch.manual_seed(7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses, peaks = [], Peaks()
    for _ in range(steps):
        optimizer.zero_grad()
        peaks.begin()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        peaks.end()
        losses.append(loss.item())
        optimizer.step()
    return losses, peaks.values


@pytest.mark.parametrize("name", MODELS)
def test_photographs_are_learned_as_plainly_within_the_budget(name):
    images, labels = photographs()
    plain = build(name)
    expected, plain_peaks = train(plain, images, labels)
    model = build(name)

    def loss(output):
        return torch.nn.functional.cross_entropy(output, labels)

    with pytest.raises(revolve.InfeasibleBudget) as caught:
        checkpointed(model, images, 0, loss=loss)
    least = caught.value.smallest
    assert checkpointed(model, images, least, loss=loss) is model
    losses, peaks = train(model, images, labels)
    assert losses == expected
    assert losses[-1] != losses[0]
    assert max(peaks) <= least < 0.9 * min(plain_peaks)
    restored = restore(model).state_dict()
    assert all(torch.equal(restored[key], value) for key, value in plain.state_dict().items())
    assert plan_of(model) is None
    assert not any("forward" in vars(module) for module in model.modules())


def test_formats_reach_below_the_least_budget_without_them():
    images, labels = photographs()
    plain = build("vit")
    expected, _ = train(plain, images, labels, steps=2)
    model = build("vit")
    least = revolve.solve(revolve.measure(model, images)).smallest
    checkpointed(model, images, int(0.98 * least), formats=("disk",))
    assert "disk" in plan_of(model).formats()
    assert train(model, images, labels, steps=2)[0] == expected


def test_features_only():
    images, _ = photographs(6)
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", in_chans=1, features_only=True, out_indices=(1, 2, 3)).train()

    with pytest.raises(revolve.InfeasibleBudget) as caught:
        checkpointed(model, images, 0)
    checkpointed(model, images, caught.value.smallest)
    report = revolve.verify(model, images, repeats=1)
    assert report.exact
    assert report.kept
    assert len(model(images)) == 3


def test_own_checkpointing_is_refused_with_what_to_switch_off():
    images, _ = photographs(2)
    model = build("vit")
    model.set_grad_checkpointing()
    with pytest.raises(ModelError, match=r"grad_checkpointing=True.*set_grad_checkpointing\(False\)"):
        checkpointed(model, images, "1GB")
    model.set_grad_checkpointing(False)
    checkpointed(model, images, "1GB")


def test_planning_again_replaces_the_plan():
    images, _ = photographs(4)
    model = build("vit")
    with pytest.raises(revolve.InfeasibleBudget) as caught:
        checkpointed(model, images, 0)
    checkpointed(model, images, caught.value.smallest)
    checkpointed(model, images, "1GB")
    assert plan_of(model).plain
    assert not any("forward" in vars(module) for module in model.modules())
