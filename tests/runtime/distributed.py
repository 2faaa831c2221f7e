"""Training steps for two processes; started by test_distributed.py through torchrun's launcher."""

from __future__ import annotations

import os
import sys
import warnings
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from steps import PLANNERS, batch, perceptron, square
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleavedZeroBubble
from torch.nn.parallel import DistributedDataParallel

import revolve
from revolve import Backward, Loss, Save
from revolve.runtime.sharding import is_sharded


def network(depth=3):
    return perceptron(lambda: nn.Dropout(0.3), lambda: nn.LayerNorm(16), depth=depth)


def norms():
    return perceptron(lambda: nn.BatchNorm1d(16), depth=3)


def train(model, steps=5, *, forwards=1, optimizer=torch.optim.Adam):
    """Train; return the parameters, whole ones where they were sharded."""
    optimizer = optimizer(model.parameters(), lr=0.01)
    torch.manual_seed(10 + dist.get_rank())
    for step in range(steps):
        optimizer.zero_grad()
        losses = [square(model(batch(seed=100 * step + 10 * dist.get_rank() + k))) for k in range(forwards)]
        for loss in losses:
            loss.backward()
        optimizer.step()
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return [p.detach().clone() for p in whole] + [b.clone() for b in model.buffers()]


def compare(build, wrap, **options):
    """Planned training equals plain training, by every plan."""
    expected = train(wrap(build(), None), **options)
    for name, planner in PLANNERS.items():
        found = train(wrap(build(), planner), **options)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs), f"{name}: parameters differ by {(ours - theirs).abs().max()}"


def put(model, planner):
    return model if planner is None else revolve.checkpointed(model, planner(model))


def ddp(**options):
    def wrap(model, planner):
        return DistributedDataParallel(put(model, planner), **options)

    return wrap


def test_ddp():
    compare(network, ddp())
    compare(norms, ddp())
    compare(network, ddp(gradient_as_bucket_view=True, bucket_cap_mb=1e-3))


def test_ddp_static_graph():
    compare(network, ddp(static_graph=True))


def test_ddp_unused_parameters():
    compare(network, ddp(find_unused_parameters=True))


def test_ddp_accumulation():
    def wrap(model, planner):
        model = DistributedDataParallel(put(model, planner))
        return Accumulating(model)

    compare(network, wrap)


class Accumulating(nn.Module):
    """Two micro-batches, the first one without synchronisation."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        with self.model.no_sync():
            square(self.model(x * 0.5)).backward()
        return self.model(x)


def blocks():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.3), nn.Linear(16, 16)) for _ in range(5)))


def fsdp(**options):
    def wrap(model, planner):
        for block in model:
            fully_shard(block, **options)
        fully_shard(model, **options)
        return put(model, planner)

    return wrap


def averaging(model):
    """Let FSDP divide a sum of gradients itself: in older torch gloo's average is the sum."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
    return model


def test_fsdp():
    compare(blocks, fsdp())


def test_fsdp_without_resharding():
    compare(blocks, fsdp(reshard_after_forward=False))


def test_fsdp_mixed_precision():
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    compare(blocks, fsdp(mp_policy=policy))


def test_fsdp_two_forwards():
    compare(blocks, fsdp(), forwards=2)


def test_fsdp_gathers_few_blocks_at_a_time():
    """Blocks that are run again for the backward of a later one give their parameters back."""
    for planner in (None, *PLANNERS.values()):
        model = fsdp()(blocks(), planner)
        most = []

        def count(*_, model=model, most=most):
            most.append(sum(not is_sharded(block) for block in model))

        for block in model:
            block.register_forward_hook(count)
        train(model, steps=2)
        assert max(most) <= 2, most


class Whole(nn.Sequential):
    """One stage, as what is to be sharded has to be."""


def test_fsdp_formats():
    """Saved activations are kept in a coarse format, gathered weights are not."""

    def build():
        torch.manual_seed(0)
        return nn.Sequential(*(Whole(nn.Linear(16, 16), nn.Tanh()) for _ in range(4)))

    chain = revolve.measure(build(), batch(), formats=("dense", "int8"))
    actions = [*(Save(i, "int8") for i in range(4)), Loss(), *map(Backward, range(3, -1, -1))]
    plan = revolve.Plan.from_actions(chain, actions)
    whole, sharded = revolve.checkpointed(build(), plan), revolve.checkpointed(averaging(fsdp()(build(), None)), plan)
    for _ in range(2):
        for model in (whole, sharded):
            model.zero_grad()
            square(model(batch())).backward()
        for ours, theirs in zip(sharded.parameters(), whole.parameters(), strict=True):
            assert torch.equal(ours.grad.full_tensor(), theirs.grad)


def test_fsdp_is_measured_before():
    model = blocks()
    chain = revolve.measure(model, batch())
    assert len(chain) == 15
    fsdp()(model, None)
    with pytest.raises(revolve.RevolveError, match="measure before fully_shard"):
        revolve.measure(model, batch())
    with pytest.raises(revolve.RevolveError, match="the plan was made for another model"):
        revolve.checkpointed(model, revolve.solve(chain).plan("1GB"))  # it cuts through sharded modules


def test_fsdp_agrees_on_a_plan():
    expected = train(fsdp()(blocks(), None))
    found = train(fsdp()(blocks(), PLANNERS["forgetful" if dist.get_rank() else "loose"]))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


class Piece(nn.Module):
    """A part of a pipeline: a planned chain."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.chain = network()

    def forward(self, x):
        return self.chain(x)


def pipeline(schedule, planner, stages_per_rank):
    rank, world = dist.get_rank(), dist.get_world_size()
    stages, pieces = [], []
    for local in range(stages_per_rank):
        index = local * world + rank
        piece = Piece(index)
        put(piece.chain, planner)
        for module in piece.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # microbatches of several schedules draw in another order
        pieces.append(piece)
        stages.append(PipelineStage(piece, index, world * stages_per_rank, torch.device("cpu")))
    engine = schedule(stages[0] if stages_per_rank == 1 else stages, 4, loss_fn=nn.functional.mse_loss)
    x, target = batch(16), batch(16, seed=5)
    for _ in range(3):
        arguments = (x,) if rank == 0 else ()
        keywords = {"target": target, "losses": []} if stages[-1].is_last else {}
        engine.step(*arguments, **keywords)
        with torch.no_grad():
            for piece in pieces:
                for parameter in piece.parameters():
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
    return [p.detach().clone() for piece in pieces for p in piece.parameters()]


def compare_pipelines(schedule, stages_per_rank=1):
    expected = pipeline(schedule, None, stages_per_rank)
    for name, planner in PLANNERS.items():
        found = pipeline(schedule, planner, stages_per_rank)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs), name


def test_pipelines():
    compare_pipelines(ScheduleGPipe)
    compare_pipelines(Schedule1F1B)


def test_zero_bubble_pipeline():
    compare_pipelines(ScheduleInterleavedZeroBubble, 2)


def main(scenarios) -> None:
    """Run what the command line names."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for name in sys.argv[1:]:
        scenarios[name]()
        dist.barrier()
        print(f"passed {name}", flush=True)
    dist.destroy_process_group()
    # gloo's workers may still hold the last operations' tensors, and let go of them while the interpreter ends:
    # the process aborts, all done (pytorch/pytorch#190489). A scenario's exception does not come here.
    os._exit(0)


if __name__ == "__main__":
    main(globals())
