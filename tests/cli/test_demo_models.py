import pytest
import torch

from revolve.cli.demo_models import DEMO_MODELS, find_demo_model
from revolve.cli.exceptions import CommandError

PARAMETERS = {"resnet18": 11_689_512, "resnet50": 25_557_032, "vgg16": 138_365_992, "mobilenetv2": 3_504_872}


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_architectures_on_the_meta_device(name):
    demo = DEMO_MODELS[name]
    with torch.device("meta"):
        model = demo.build()
        output = model(torch.empty(demo.shape))
    assert isinstance(model, torch.nn.Sequential)
    assert output.shape[0] == demo.shape[0]
    if name in PARAMETERS:
        assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_images_of_other_sizes():
    with torch.device("meta"):
        for name in ("resnet18", "vgg16", "mobilenetv2"):
            assert DEMO_MODELS[name].build(classes=7)(torch.empty(2, 3, 64, 96)).shape == (2, 7)


def test_mobilenetv2_halves_the_picture_where_the_paper_says():
    """Table 2: channels and sizes behind its lines, 17 blocks, 10 of them with a shortcut."""
    with torch.device("meta"):
        model, x = DEMO_MODELS["mobilenetv2"].build(), torch.empty(1, 3, 224, 224)
        sizes = {name: (x.shape[1], x.shape[2]) for name, layer in model.named_children() if (x := layer(x)).dim() == 4}
    ends = [sizes[f"layer{level}_{depth - 1}"] for level, depth in enumerate((1, 2, 3, 4, 3, 3, 1), 1)]
    assert ends == [(16, 112), (24, 56), (32, 28), (64, 14), (96, 14), (160, 7), (320, 7)]
    assert sizes["relu1"] == (32, 112)
    assert sizes["relu2"] == (1280, 7)
    blocks = [layer for name, layer in model.named_children() if name.startswith("layer")]
    assert (len(blocks), sum(type(block).__name__ == "Shortcut" for block in blocks)) == (17, 10)
    assert sum(isinstance(module, torch.nn.ReLU6) for module in model.modules()) == 35


def test_transformer_attends_across_tokens():
    model = DEMO_MODELS["transformer"].build(features=16, depth=1, heads=2).eval()
    batch = torch.randn(1, 4, 16)
    changed = batch.clone()
    changed[0, 3] *= -1  # a constant added to a token would vanish in its layer norm
    assert not torch.equal(model(batch)[0, 0], model(changed)[0, 0])


def test_unknown_names_list_the_known_ones():
    with pytest.raises(CommandError, match=r"'resnet34' is unknown.*package\.module:callable.*resnet18.*transformer"):
        find_demo_model("resnet34")
