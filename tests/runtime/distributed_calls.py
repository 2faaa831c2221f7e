"""Models that run their stages themselves, in two processes; started by test_distributed.py as distributed.py is."""

from __future__ import annotations

import gc
import warnings
import weakref
from functools import cache, partial

import pytest
import torch
import torch.distributed as dist
from distributed import Accumulating, averaging, main, train
from steps import batch, forgetful, square
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

import revolve
from revolve import Backward, Drop, Loss, Save, Store
from revolve.runtime.allocations import trace_allocations
from revolve.runtime.exceptions import BudgetWarning
from revolve.runtime.instrumentation import plan_of
from revolve.runtime.sharding import is_sharded


class Block(nn.Module):
    """A residual block that takes a table beside its input."""

    def __init__(self, width, hidden):
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(0.3)
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x, *, table):
        return x + self.second(self.dropout(self.first(self.norm(x) * table).tanh()))


class Group(nn.Module):
    """Blocks with a parameter of their own."""

    def __init__(self, width, hidden, depth):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(depth))
        self.table = nn.Parameter(torch.ones(width))

    def forward(self, x):
        for block in self.blocks:
            x = block(x, table=self.table)
        return x


class Tower(nn.Module):
    """A model that runs its blocks itself."""

    def __init__(self, width=16, hidden=48, depth=3):
        super().__init__()
        self.stem, self.head = nn.Linear(width, width), nn.Linear(width, width)
        self.groups = nn.ModuleList(Group(width, hidden, depth) for _ in range(2))

    def forward(self, x):
        x = self.stem(x).relu()
        for group in self.groups:
            x = group(x)
        return self.head(x)

    def blocks(self):
        return [block for group in self.groups for block in group.blocks]


def tower():
    torch.manual_seed(0)
    return Tower()


@cache
def plans(build, rows=1024):
    """Return plans of a model that runs its stages itself, for inputs of many rows, and so for fewer too."""
    chain = revolve.measure(build(), batch(rows, build().stem.in_features))
    frontier = revolve.solve(chain)
    most = frontier.plan("1GB").peak
    budgets = {"least": frontier.smallest, "middle": (frontier.smallest + most) // 2}
    found = {name: frontier.plan(budget) for name, budget in budgets.items()} | {"forgetful": forgetful(chain)}
    assert not any(plan.plain for plan in found.values())
    return found


def train_strictly(model, **options):
    """As train, where the plan has to be followed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", BudgetWarning)
        return train(model, **options)


def compare_called(shard, *, late=False, build=tower, **options):
    """As compare, for models that run their stages themselves; the plan is put on before sharding, or after."""
    expected = train(shard(build()), **options)
    for name, plan in plans(build).items():
        model = revolve.checkpointed(shard(build()), plan) if late else shard(revolve.checkpointed(build(), plan))
        for ours, theirs in zip(train_strictly(model, **options), expected, strict=True):
            assert torch.equal(ours, theirs), f"{name}: parameters differ by {(ours - theirs).abs().max()}"


def sharding(choose, **options):
    """Shard what is chosen of a model, in order, then the rest."""

    def shard(model):
        for unit in choose(model):
            fully_shard(unit, **options)
        return fully_shard(model, **options)

    return shard


def of_blocks(model):
    return model.blocks()


def test_ddp_called():
    compare_called(DistributedDataParallel)
    compare_called(DistributedDataParallel, build=uneven)
    compare_called(partial(DistributedDataParallel, static_graph=True))
    compare_called(partial(DistributedDataParallel, find_unused_parameters=True))
    compare_called(lambda model: Accumulating(DistributedDataParallel(model)))


def test_fsdp_called():
    compare_called(sharding(of_blocks))
    compare_called(sharding(of_blocks), late=True)
    compare_called(sharding(of_blocks), forwards=2)
    compare_called(sharding(of_blocks, reshard_after_forward=False))
    compare_called(sharding(of_blocks, reshard_after_forward=True))
    compare_called(lambda model: Delaying(sharding(of_blocks)(model)))


class Delaying(nn.Module):
    """Two micro-batches, the first one without a reduction, after which parameters stay gathered."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        for last in (False, True):
            self.model.set_requires_gradient_sync(last)
            self.model.set_reshard_after_backward(last)
            if not last:
                square(self.model(x * 0.5)).backward()
        return self.model(x)


def test_fsdp_called_with_units_around_and_inside():
    compare_called(sharding(lambda model: ()))
    compare_called(sharding(lambda model: model.groups, reshard_after_forward=True))
    compare_called(sharding(lambda model: (*of_blocks(model), *model.groups), reshard_after_forward=True))
    compare_called(sharding(lambda model: [part for block in of_blocks(model) for part in (block.first, block.second)]))
    compare_called(sharding(lambda model: [[*group.blocks] for group in model.groups]))


class Counting(Block):
    """A block whose attribute decides what it computes."""

    calls = 0

    def forward(self, x, *, table):
        self.calls += 1
        return super().forward(x, table=table * (1 + self.calls % 3))


def uneven():
    """Return a tower of blocks with an attribute and buffers that they change."""
    model = tower()
    for block in model.blocks():
        block.__class__, block.norm = Counting, nn.BatchNorm1d(16)
    return model


def test_fsdp_called_state():
    compare_called(sharding(of_blocks), build=uneven)


def test_fsdp_called_mixed_precision():
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    compare_called(sharding(of_blocks, mp_policy=policy))
    compare_called(sharding(lambda model: (*of_blocks(model), *model.groups), mp_policy=policy))


def test_fsdp_called_agrees_on_a_plan():
    """Processes that planned for themselves follow one plan: they have to gather in the same order."""
    expected = train(sharding(of_blocks)(tower()))
    mine = plans(tower)["least" if dist.get_rank() else "middle"]
    model = sharding(of_blocks)(revolve.checkpointed(tower(), mine))
    for ours, theirs in zip(train_strictly(model), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert plan_of(model).peak < plans(tower)["middle"].peak


def test_fsdp_called_sharded_late():
    """A model may be sharded after some steps; it goes as other models do, and FSDP's first version is refused."""
    expected, model = tower(), revolve.checkpointed(tower(), plans(tower)["least"])
    for other in (expected, model):
        train(other, steps=1)
        sharding(of_blocks)(other)
    for ours, theirs in zip(train_strictly(model), train(expected), strict=True):
        assert torch.equal(ours, theirs)
    gone = weakref.ref(model)
    del model, other
    gc.collect()
    assert gone() is None
    flat = revolve.checkpointed(tower(), plans(tower)["least"])
    options = {"device_id": torch.device("cpu"), "use_orig_params": True}
    flat = FullyShardedDataParallel(flat, auto_wrap_policy=ModuleWrapPolicy({Block}), **options)
    with pytest.raises(revolve.RevolveError, match="use fully_shard"):
        flat(batch())


def test_fsdp_called_casts_between_stages():
    """FSDP's casts of what one stage gives for the next one belong to the next one, and the plan is followed."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)

    def shard(model):
        for block in of_blocks(model):
            fully_shard(block, mp_policy=policy)
        return fully_shard(model)

    expected = train(shard(tower()))
    model = shard(revolve.checkpointed(tower(), plans(tower)["least"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", BudgetWarning)
        found = train(model)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def wide():
    torch.manual_seed(0)
    return Tower(32, 128)


def peak_of(model, rows):
    """Return the peak of a step, and how many blocks are gathered at a time."""
    most = []
    for block in model.blocks():
        block.norm.register_forward_hook(lambda *_: most.append(sum(not is_sharded(b) for b in model.blocks())))
    for _ in range(2):
        square(model(batch(rows, 32))).backward()
        model.zero_grad()
    with trace_allocations(torch.device("cpu")) as tracer:
        square(model(batch(rows, 32))).backward()
        tracer.mark()
    return tracer.phases[0].peak, max(most)


def test_fsdp_called_peak():
    """A step takes what was planned, and a little for the parameters and gradients of few blocks at a time."""
    rows = 4096
    plain, _ = peak_of(sharding(of_blocks)(wide()), rows)
    for plan in plans(wide, rows).values():
        peak, most = peak_of(sharding(of_blocks)(revolve.checkpointed(wide(), plan)), rows)
        assert plan.peak < 0.8 * plain
        assert peak < 1.04 * plan.peak
        assert most <= 2


def everything_in(format_, build, sample):
    """Return a plan that keeps every other checkpoint and what all stages save in a format."""
    chain = revolve.measure(build(), sample, formats=(format_,))
    stages = range(len(chain))
    sweep = [action for i in stages for action in (*(Store(i, format_),) * (i % 2), Save(i, format_))]
    back = [action for i in reversed(stages) for action in (Backward(i), *(Drop(i),) * (i % 2))]
    return revolve.Plan.from_actions(chain, [*sweep, Loss(), *back])


def test_fsdp_called_formats():
    """Saved tensors are kept on disk; in a coarse format, gathered weights are not."""
    expected, plan = train(sharding(of_blocks)(tower())), everything_in("disk", tower, batch())
    for late in (False, True):
        model = sharding(of_blocks)(tower() if late else revolve.checkpointed(tower(), plan))
        model = revolve.checkpointed(model, plan) if late else model
        for ours, theirs in zip(train_strictly(model), expected, strict=True):
            assert torch.equal(ours, theirs)
    plan = everything_in("int8", tower, batch())
    whole = revolve.checkpointed(tower(), plan)
    sharded = revolve.checkpointed(averaging(sharding(of_blocks)(tower())), plan)
    for model in (whole, sharded):
        torch.manual_seed(0)
        square(model(batch())).backward()
    for ours, theirs in zip(sharded.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours.grad.full_tensor(), theirs.grad)


def test_fsdp_called_formats_peak():
    rows = 4096
    plan = everything_in("disk", wide, batch(rows, 32))
    plain, _ = peak_of(sharding(of_blocks)(wide()), rows)
    peak, most = peak_of(sharding(of_blocks)(revolve.checkpointed(wide(), plan)), rows)
    assert plan.peak < 0.5 * plain
    assert peak < 1.1 * plan.peak
    assert most <= 2


if __name__ == "__main__":
    main(globals())
