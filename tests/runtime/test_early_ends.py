"""A rebuild that ends at its stage's last saved tensor leaves nothing behind of what the stage sets for a while."""

from __future__ import annotations

import pytest
import torch
from steps import PLANNERS, assert_same, batch, run_step, twins
from torch import nn

from revolve import is_recomputing


class Setting(nn.Module):
    """Sets something, saves its last tensor, and puts it back without ``try``."""

    def __init__(self):
        super().__init__()
        self.linear, self.drop, self.factor = nn.Linear(16, 16), nn.Dropout(0.5).eval(), 1.0

    def forward(self, x):
        before = self.set()
        y = self.drop(self.linear(x) * self.factor).sin()
        self.put_back(before)
        return y


class Factor(Setting):
    def set(self):
        self.factor = 2.0

    def put_back(self, before):
        self.factor = 1.0


class Frozen(Setting):
    def forward(self, x):
        return super().forward(self.linear(x).sin())

    def set(self):
        self.linear.requires_grad_(False)

    def put_back(self, before):
        self.linear.requires_grad_(True)


class Training(Setting):
    def set(self):
        self.drop.train()

    def put_back(self, before):
        self.drop.eval()


class Replaced(Setting):
    def set(self):
        weight = self.linear._parameters["weight"]
        self.linear._parameters["weight"] = nn.Parameter(weight.detach() * 2)
        return weight

    def put_back(self, before):
        self.linear._parameters["weight"] = before


class Hooked(Setting):
    def set(self):
        return self.linear.register_forward_hook(lambda module, args, output: output * 2)

    def put_back(self, before):
        before.remove()


class Matmul(Setting):
    def set(self):
        torch.set_float32_matmul_precision("medium")

    def put_back(self, before):
        torch.set_float32_matmul_precision("highest")


class Fresh(Setting):
    """Changes an attribute that the executor puts back in any case, besides."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def set(self):
        self.calls += 1
        self.factor = 2.0

    def put_back(self, before):
        self.factor = 1.0


SETTINGS = [Factor, Frozen, Training, Replaced, Hooked, Matmul, Fresh]


@pytest.mark.parametrize("planner", PLANNERS.values(), ids=PLANNERS)
@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_what_is_set_for_a_while_is_put_back(kind, planner):
    planned, plain = twins(nn.Sequential(nn.Linear(16, 16), *(kind() for _ in range(5)), nn.Linear(16, 16)), planner)
    precision = torch.get_float32_matmul_precision()
    for turn in range(3):
        ours = torch.manual_seed(turn) and run_step(planned, batch())
        assert torch.get_float32_matmul_precision() == precision
        assert_same(ours, torch.manual_seed(turn) and run_step(plain, batch()))
        for ours, theirs in zip(planned.modules(), plain.modules(), strict=True):
            assert ours.training is theirs.training
            assert getattr(ours, "factor", 1.0) == 1.0
            assert getattr(ours, "calls", turn + 1) == turn + 1
            assert not ours._forward_hooks
    assert all(parameter.requires_grad for parameter in planned.parameters())


def test_stages_of_this_kind_do_end_early():
    """So that the tests above can fail."""
    ends = []

    class Counting(Factor):
        def put_back(self, before):
            super().put_back(before)
            ends.append(is_recomputing())

    planned, _ = twins(nn.Sequential(nn.Linear(16, 16), Counting(), nn.Linear(16, 16)))
    run_step(planned, batch())
    assert ends == [False, True]  # for the stage behind, but not in its own rebuild


class Leaving(nn.Module):
    """Leaves its dropout in the other mode each time."""

    def __init__(self):
        super().__init__()
        self.linear, self.drop = nn.Linear(16, 16), nn.Dropout(0.5)

    def forward(self, x):
        self.drop.train(not self.drop.training)
        return self.drop(self.linear(x)).sin() + 1


@pytest.mark.parametrize("planner", PLANNERS.values(), ids=PLANNERS)
def test_flags_that_a_stage_changes_for_good(planner):
    planned, plain = twins(nn.Sequential(nn.Linear(16, 16), *(Leaving() for _ in range(4))), planner)
    for turn in range(3):
        ours, theirs = (torch.manual_seed(turn) and run_step(model, batch()) for model in (planned, plain))
        assert_same(ours, theirs)
        assert [m.training for m in planned.modules()] == [m.training for m in plain.modules()]


def test_looks_at_saved_tensors_outside_of_backward():
    """Each of them begins anew, under the modes of the first run."""
    planned, plain = twins(nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(3))))
    looks = []
    for model in (planned, plain):
        node, nodes = model(batch()).grad_fn, []
        while node is not None:
            nodes += [node] if node.name().startswith("Tanh") else []
            node = node.next_functions["Addmm" in node.name()][0]
        found = [nodes[2]._saved_result]
        with torch.autocast("cpu"):
            found += [nodes[1]._saved_result, nodes[0]._saved_result]
        looks.append(found)
    assert len(looks[0]) == 3
    assert all(map(torch.equal, *looks))
