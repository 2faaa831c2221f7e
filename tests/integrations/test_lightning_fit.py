"""The callback of Lightning, on photographs: losses of plain training, peaks within the budget, resuming."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pictures import textures
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from tracing import Peaks
from vision_operators import define_vision_operators

import revolve
from revolve.runtime.exceptions import ModelError

define_vision_operators()
lightning = pytest.importorskip("lightning.pytorch", reason="needs the extra [lightning]")
from revolve.integrations.lightning import RevolveCallback  # noqa: E402 - behind the check that there is Lightning

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*deprecated.*")


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return x + functional.dropout(self.norm(self.convolution(x)).relu(), 0.1, self.training)


class Network(nn.Module):
    def __init__(self, width=8, depth=5):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Classifier(lightning.LightningModule):
    """A LightningModule whose training_step calls itself, or its network."""

    def __init__(self, itself=False):
        super().__init__()
        torch.manual_seed(0)
        self.network = Network()
        self.itself = itself
        self.losses = []

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, _):
        images, labels = batch
        loss = functional.cross_entropy(self(images) if self.itself else self.network(images), labels)
        self.losses.append(loss.item())
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, _):
        images, labels = batch
        self.log("validation", functional.cross_entropy(self.network(images), labels))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watch(lightning.Callback):
    """Measures steps up to the optimizer's."""

    def __init__(self):
        self.peaks = Peaks()

    def on_train_batch_start(self, *_):
        self.peaks.begin()

    def on_before_optimizer_step(self, *_):
        self.peaks.end()


def fit(folder, callbacks=(), module=None, resume=None, epochs=2, **settings):
    """Fit from the same start; return the module and the trainer."""
    images, labels = textures(side=16, each=8)
    torch.manual_seed(3)
    loader = DataLoader(TensorDataset(images, labels), batch_size=8, shuffle=True)
    module = module or Classifier()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, loader, DataLoader(TensorDataset(images, labels), batch_size=8), ckpt_path=resume)
    return module, trainer


def equal(first, second):
    values = second.state_dict()
    return all(torch.equal(value, values[name]) for name, value in first.state_dict().items())


@pytest.fixture(scope="module")
def least():
    return revolve.solve(revolve.measure(Network(), textures(side=16, each=8)[0][:8])).smallest


@pytest.mark.parametrize(
    ("itself", "settings"),
    [(False, {}), (True, {"accumulate_grad_batches": 2}), (False, {"precision": "bf16-mixed"})],
    ids=["network", "itself-accumulating", "bfloat16"],
)
def test_photographs_are_learned_as_plainly_within_the_budget(tmp_path, least, itself, settings):
    plain_watch, watch, shown = Watch(), Watch(), []
    settings = {"enable_checkpointing": False, **settings}
    plain, _ = fit(tmp_path, [plain_watch], Classifier(itself), **settings)
    callback = RevolveCallback(int(1.02 * least), show=shown.append)
    module, trainer = fit(tmp_path, [watch, callback], Classifier(itself), **settings)
    assert module.losses == plain.losses
    assert len(module.losses) == 6
    assert equal(module, plain)
    assert callback.planned == ("" if itself else "network")
    assert max(watch.peaks.values) <= callback.budget < min(plain_watch.peaks.values)
    assert callback.plan.counts()["forward"]
    assert trainer.callback_metrics["validation"] > 0
    assert shown[0].startswith(f"revolve: {'Classifier' if itself else 'Network'}: ")
    assert not any("forward" in vars(m) for m in module.modules())


def test_a_resumed_fit_goes_on_by_the_plan_of_the_checkpoint(tmp_path, least, monkeypatch):
    first = RevolveCallback(least, show=None)
    _, trainer = fit(tmp_path, [first], epochs=1)
    path = trainer.checkpoint_callback.best_model_path
    plain, _ = fit(tmp_path, resume=path)
    monkeypatch.setattr("revolve.integrations.lightning.plan_module", None)
    callback = RevolveCallback(least, show=None)
    module, _ = fit(tmp_path, [callback], resume=path)
    assert callback.plan == first.plan
    assert module.losses == plain.losses
    assert equal(module, plain)
    with pytest.raises(TypeError, match="NoneType"):  # another budget is planned for
        fit(tmp_path, [RevolveCallback(2 * least, show=None)], resume=path)
    with pytest.raises(TypeError, match="NoneType"):  # and so are other formats
        fit(tmp_path, [RevolveCallback(least, formats="disk", show=None)], resume=path)


def test_a_format_is_used_below_the_least_budget_without_it(tmp_path, least):
    plain, _ = fit(tmp_path, epochs=1)
    chain = revolve.measure(Network(), textures(side=16, each=8)[0][:8], formats=("disk",))
    smallest = revolve.solve(chain, ("disk",)).smallest
    callback = RevolveCallback((smallest + least) // 2, formats=("disk",), show=None)
    module, _ = fit(tmp_path, [callback], epochs=1)
    assert "disk" in callback.plan.formats()
    assert module.losses == plain.losses
    assert equal(module, plain)


def test_a_module_of_ones_own_choice_and_one_that_there_is_not(tmp_path):
    callback = RevolveCallback("1GB", module="network.blocks.1", show=None)
    fit(tmp_path, [callback], epochs=1, enable_checkpointing=False)
    assert callback.planned == "network.blocks.1"
    assert callback.plan.chain.name == "Block"
    with pytest.raises(ModelError, match=r"no such module; it has 'network'"):
        fit(tmp_path, [RevolveCallback("1GB", module="body")], enable_checkpointing=False)


def test_an_error_takes_the_plan_back(tmp_path, least):
    class Failing(Classifier):
        def on_train_batch_end(self, *_):
            raise ValueError("on purpose")

    module = Failing()
    with pytest.raises(ValueError, match="on purpose"):
        fit(tmp_path, [RevolveCallback(least, show=None)], module, enable_checkpointing=False)
    assert not any("forward" in vars(m) for m in module.modules())
    with pytest.raises(revolve.InfeasibleBudget):
        fit(tmp_path, [RevolveCallback(1000)], module, enable_checkpointing=False)
    assert not any("forward" in vars(m) for m in module.modules())


def test_own_checkpointing_is_refused(tmp_path):
    module = Classifier()
    module.network.grad_checkpointing = True
    with pytest.raises(ModelError, match="'network' has grad_checkpointing=True"):
        fit(tmp_path, [RevolveCallback("1GB")], module, enable_checkpointing=False)


def test_the_package_of_the_older_name(tmp_path):
    pytest.importorskip("pytorch_lightning", reason="needs pytorch_lightning")
    script = (
        "from vision_operators import define_vision_operators\ndefine_vision_operators()\n"
        "import sys, pytorch_lightning\nfrom revolve.integrations.lightning import RevolveCallback\n"
        "assert issubclass(RevolveCallback, pytorch_lightning.Callback) and 'lightning.pytorch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent)
