"""ReLUs that prune: the share of zeros, what they save, derivatives, and equal bits under a plan."""

import copy

import pytest
import torch
from torch import nn

import revolve
from revolve.storage.pruning import SAMPLE, PrunedReLU, prune_relus


def randn(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def zeros(x):
    return float((x == 0).double().mean())


@pytest.mark.parametrize("share", [0.5, 0.7, 0.8, 0.95])
@pytest.mark.parametrize("shape", [(60, 40), (4, 64, 24, 24), (8, 48, 32, 32)])
def test_the_share_is_reached_by_dropping_the_smallest(share, shape):
    x = randn(*shape) + 0.2
    y = PrunedReLU(share)(x)
    assert zeros(y) == pytest.approx(share, abs=0.025)
    kept = y != 0
    assert torch.equal(y[kept], x[kept])
    assert x[kept].min() > x[~kept].max()


def test_columns_of_pictures_are_sampled_alike():
    """Where the sample were every 64th element, of pictures 64 wide, it would be one column."""
    x = randn(4, 16, 64, 64).abs()
    x[..., 0] *= 100
    assert x.numel() // SAMPLE == 64
    assert zeros(PrunedReLU(0.7)(x)) == pytest.approx(0.7, abs=0.025)


def test_more_zeros_than_asked_for_stay_as_they_are():
    x = randn(8, 1000) - 1
    assert torch.equal(PrunedReLU(0.5)(x), x.relu())


def test_equal_elements_are_kept_rather_than_all_lost():
    assert torch.equal(PrunedReLU(0.9)(torch.ones(10_000)), torch.ones(10_000))


def test_results_do_not_depend_on_the_layout_in_memory():
    x = randn(4, 16, 32, 32)
    for moved in (x.to(memory_format=torch.channels_last), x.transpose(0, 1).contiguous().transpose(0, 1)):
        assert torch.equal(PrunedReLU(0.7)(moved), PrunedReLU(0.7)(x))


def test_special_values_and_shapes():
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1.0])
    y = PrunedReLU(0.4)(x)
    assert y[0].isnan()
    assert y[1:].tolist() == [float("inf"), 0.0, 0.0, 1.0]
    assert not y[2:4].signbit().any()
    for empty in (torch.empty(0, 3), torch.tensor(2.0)):
        assert torch.equal(PrunedReLU(0.5)(empty), empty)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    x = randn(50, 50).to(dtype).requires_grad_()
    y = PrunedReLU(0.7, ceiling=2.0)(x)
    assert (y.dtype, zeros(y)) == (dtype, pytest.approx(0.7, abs=0.025))
    y.backward(torch.ones_like(y))
    assert torch.equal(x.grad, ((y > 0) & (y < 2)).to(dtype))


@pytest.mark.parametrize(
    ("plain", "pruned"), [(nn.ReLU(), PrunedReLU(0.0)), (nn.ReLU6(), PrunedReLU(0.0, ceiling=6.0))]
)
def test_without_a_share_and_in_eval_mode_it_is_torchs(plain, pruned):
    for module in (pruned, PrunedReLU(0.9, pruned.ceiling).eval()):
        x = 5 * randn(100, 100)
        assert x.max() > 6
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        outputs = module(ours), plain(theirs)
        assert torch.equal(*outputs)
        for output in outputs:
            output.square().sum().backward()
        assert torch.equal(ours.grad, theirs.grad)


def test_derivatives_first_and_second():
    torch.manual_seed(0)
    x = torch.randn(6, 7, dtype=torch.float64).mul_(3).requires_grad_()
    for module in (PrunedReLU(0.6), PrunedReLU(0.6, ceiling=2.0)):
        assert torch.autograd.gradcheck(module, (x,))
        assert torch.autograd.gradgradcheck(module, (x,))


@pytest.mark.parametrize("share", [0.0, 0.7])
def test_only_the_output_is_saved(share):
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        y = PrunedReLU(share, ceiling=6.0)(randn(64, 64).requires_grad_())
    assert [t.untyped_storage().data_ptr() for t in packed] == [y.untyped_storage().data_ptr()]


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_shares_that_are_impossible(share):
    with pytest.raises(ValueError, match=r"share=.* pass a number in \[0, 1\)"):
        PrunedReLU(share)


@pytest.mark.parametrize("ceiling", [0, -6.0, float("nan")])
def test_ceilings_that_are_impossible(ceiling):
    with pytest.raises(ValueError, match=r"ceiling=.* pass a positive number"):
        PrunedReLU(0.5, ceiling)


def convolutions():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), block, nn.Flatten(), nn.Linear(2048, 5))


def test_relus_are_replaced_at_any_depth():
    model = convolutions()
    model[2].eval()
    assert prune_relus(model, 0.7) is model
    assert repr(model[1]) == "PrunedReLU(share=0.7)"
    assert repr(model[2][2]) == "PrunedReLU(share=0.7, ceiling=6.0)"
    assert (model[1].training, model[2][2].training) == (True, False)


def test_a_relu_that_is_used_twice_is_replaced_twice():
    relu = nn.ReLU()
    model = prune_relus(nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu), 0.5)
    assert [type(layer) for layer in model] == [nn.Linear, PrunedReLU] * 2


def test_a_model_without_relus_is_refused():
    with pytest.raises(ValueError, match=r"Sequential holds no nn\.ReLU"):
        prune_relus(nn.Sequential(nn.Linear(3, 3), nn.GELU()), 0.5)


def forget(length):
    """Nothing but the input and one activation in the bitmap format is kept; all is run again from there."""
    sweep = [["forward", 0], ["forward", 1], ["store", 2, "bitmap"], *(["forward", i] for i in range(2, length))]
    rest = [["load", 2], *(["save", i, "bitmap"] for i in range(2, length))]
    rest += [*(["backward", i] for i in reversed(range(2, length))), ["drop", 2], ["load", 0]]
    return [*sweep, ["loss"], *rest, ["save", 0], ["save", 1, "bitmap"], ["backward", 1], ["backward", 0]]


def test_steps_under_a_plan_equal_plain_ones():
    pictures = randn(4, 3, 16, 16)
    plain = prune_relus(convolutions(), 0.8)
    planned = copy.deepcopy(plain)
    chain = revolve.measure(planned, pictures, formats=("bitmap",))
    revolve.checkpointed(planned, revolve.Plan.from_actions(chain, forget(len(chain))))
    for model in (plain, planned):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for seed in range(3):
            optimizer.zero_grad()
            model(pictures + seed).square().mean().backward()
            optimizer.step()
    for ours, theirs in zip(planned.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    report = revolve.verify(planned, pictures)
    assert report.exact
    assert report.measured_peak <= report.predicted_peak
