"""A chain as the solver's kernels read it: arrays of bytes and nanoseconds, and which stages are alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chain import Chain, StorageCosts, nanoseconds
from .exceptions import ChainError
from .kernels.frontier import INFINITE

__all__ = ["check_extent", "classify_stages", "describe_chain"]

Ints = NDArray[np.int64]
BYTES = (
    "output_bytes",
    "saved_bytes",
    "forward_extra",
    "save_extra",
    "rebuild_extra",
    "backward_extra",
    "grad_bytes",
)
FORMAT_BYTES = ("stored_bytes", "saved_bytes", "save_extra", "backward_extra")
FORMAT_TIMES = ("store_time", "load_time", "encode_time", "decode_time")


def check_extent(chain: Chain, formats: tuple[str, ...] = ()) -> None:
    """Check that no schedule's time and no sum of sizes leaves the range of the solvers' whole numbers.

    Raises
    ------
    ChainError
        If the chain has no stage, or its times or sizes are too large.
    """
    if not chain.stages:
        raise ChainError("the chain has no stages; it must have at least one")
    costs = [chain.formats[name] for name in formats]
    longest = max(stage.forward for stage in chain.stages)
    longest += sum(max(c.store_time) + max(c.load_time) for c in costs)
    once = sum(stage.forward + stage.rebuild + stage.backward for stage in chain.stages) + chain.loss_time
    once += sum(sum(c.encode_time) + sum(c.decode_time) for c in costs)
    if ((len(chain) + 1) ** 2 * longest + once) * 1e9 >= int(INFINITE) / 4:
        raise ChainError(
            f"times of up to {longest:.3g} s on {len(chain)} stages are too long to add up in nanoseconds; "
            "times are seconds: check the unit, or scale them all down"
        )
    sizes = sum(getattr(stage, name) for stage in chain.stages for name in BYTES)
    sizes += chain.input_bytes + chain.loss_extra
    sizes += sum(sum(getattr(c, name)) for c in costs for name in FORMAT_BYTES)
    if sizes >= int(INFINITE) / 4:
        raise ChainError(f"sizes of {sizes:.3g} bytes in all are too large to add up; check the unit")


def describe_chain(chain: Chain, formats: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the chain as the arrays that the kernels read (see ``kernels.frontier.candidate``).

    Of ``formats``, those in which stages can be saved come first.
    """
    check_extent(chain, formats)
    length = len(chain)
    stages = chain.stages
    sizes = np.zeros((9, length + 1), np.int64)
    sizes[0, 1:] = [stage.output_bytes for stage in stages]
    sizes[1] = [chain.gradient_bytes(j) for j in range(length + 1)]
    for row, name in enumerate(("saved_bytes", "forward_extra", "save_extra", "rebuild_extra", "backward_extra"), 2):
        sizes[row, :-1] = [getattr(stage, name) for stage in stages]
    sizes[3:5, :-1] -= [stage.passed_bytes for stage in stages]
    sizes[7, 1:] = np.cumsum([stage.grad_bytes for stage in stages])
    sizes[8, 0] = chain.loss_extra
    times = np.zeros((4, length + 1), np.int64)
    for row, name in enumerate(("forward", "rebuild", "backward"), 1):
        times[row, :-1] = [nanoseconds(getattr(stage, name)) for stage in stages]
    times[0, 1:] = np.cumsum(times[1, :-1])
    times[2, length] = nanoseconds(chain.loss_time)
    savers = [name for name in formats if chain.formats[name].saves]
    flags = np.zeros((2 + len(savers), length + 1), np.bool_)
    flags[0, :-1] = [stage.saves_input for stage in stages]
    flags[1, :-1] = [stage.saves_output for stage in stages]
    for row, name in enumerate(savers, 2):
        flags[row] = [chain.encoded(name, j) for j in range(length + 1)]
    inner = np.zeros((length + 1, length + 1), np.int64)
    steps = sizes[0, :-1] + sizes[0, 1:] + sizes[3, :-1]
    for s in range(length):
        inner[s, s + 2 :] = np.maximum.accumulate(steps[s + 1 :])
    return sizes, times, flags, inner, *describe_formats([chain.formats[name] for name in formats], length)


def describe_formats(costs: list[StorageCosts], length: int) -> tuple[Ints, Ints]:
    """Return what formats cost, int64 (F, 4, L + 1): bytes, and nanoseconds."""
    sizes, seconds = np.zeros((len(costs), 4, length + 1), np.int64), np.zeros((len(costs), 4, length + 1))
    for f, cost in enumerate(costs):
        for array, names in ((sizes, FORMAT_BYTES), (seconds, FORMAT_TIMES)):
            for row, name in enumerate(names):
                values = getattr(cost, name)
                array[f, row, : len(values)] = values
    return sizes, np.rint(seconds * 1e9).astype(np.int64)


def classify_stages(
    sizes: Ints, times: Ints, flags: Any, inner: Ints, formats_bytes: Ints, formats_times: Ints
) -> Ints:
    """Return int64 (L + 1,): stages of one class are alike in all that a cell's step function depends on.

    The first stage, the last one and the loss are in classes of their own: the caller holds x_0 and x_L.
    """
    saved_before = np.concatenate(([True], flags[1, :-1]))
    following = np.concatenate((sizes[0, 1:], [0]))
    grads = np.append(np.diff(sizes[7]), 0)
    rows = [sizes[0], following, *sizes[2:7], grads, *times[1:], *flags, saved_before]
    for costs in (formats_bytes, formats_times):
        rows += [*costs.reshape(-1, len(sizes[0])), *np.roll(costs[:, 0], -1, axis=1)]
    seen: dict[tuple[Any, ...], int] = {}
    classes = np.array([seen.setdefault(tuple(column), k) for k, column in enumerate(np.stack(rows, 1).tolist())])
    classes[[0, -2, -1]] = -1, -2, -3
    return classes
