"""What keeping a tensor in another form takes: its speed over that of copying it, its bytes over the dense ones.

Run ``python benchmarks/codecs.py``; it prints the tables that docs/storage.md quotes. Copying is ``copy_`` into a
tensor that exists; a decoded tensor is always a new one. Every round times each of the things once, so that all
see the same machine; numbers are medians. With one thread they are processor time, which other programs do not
lengthen; with two, where only torch's own operations are spread, time on the wall.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from revolve.storage import bitmap
from revolve.storage.codecs import CODECS, Form, codec_named

ROUNDS = 25
ELEMENTS = 1 << 22


def sparse_tensor(sparsity: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return normal numbers of which a share, at random places, is zero."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(ELEMENTS, generator=generator)
    zero = torch.rand(ELEMENTS, generator=generator) < sparsity
    return torch.where(zero, 0, values).to(dtype)  # a product would leave -0.0, which has a bit


def time_alternating(functions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return median seconds of each function."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(ROUNDS + 2):
        for name, function in functions.items():
            start = clock()
            function()
            if turn >= 2:  # the first turns compile, and fault memory in
                seconds[name].append(clock() - start)
    return {name: median(values) for name, values in seconds.items()}


def require(form: Form | None) -> Form:
    """Return a form that must be there."""
    if form is None:
        raise RuntimeError("the codec left the tensor dense")
    return form


def functions_of(x: torch.Tensor, names: list[str]) -> dict[str, Callable[[], object]]:
    """Return copying, and encoding and decoding by some codecs."""
    target = torch.empty_like(x)
    functions: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(x)}
    for name in names:
        codec = codec_named(name)
        form = require(codec.encode(x, lambda _: None))
        functions[f"{name} encode"] = lambda codec=codec: codec.encode(x, lambda _: None)
        functions[f"{name} decode"] = form.decode
    return functions


def index_by_bools(x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Return the same work by torch's indexing with bools, without a bitmap of bits."""
    mask, kept, target = x != 0, x[x != 0], torch.zeros_like(x)

    def decode() -> None:
        target.zero_()
        target[mask] = kept

    return {"x[x != 0]": lambda: x[x != 0], "y[mask] = values": decode}


def print_bitmap(console: Console) -> None:
    """Print the bitmap's speed, kernels and torch's operations."""
    table = Table("threads", "zeros", "bytes", "copy", "encode", "decode", "x\\[x != 0]", "y\\[mask] = values")
    table.title = f"bitmap: speed over that of a copy, {ELEMENTS} float32"
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for sparsity in (0.5, 0.7, 0.9):
            x = sparse_tensor(sparsity)
            seconds = time_alternating(functions_of(x, ["bitmap"]) | index_by_bools(x))
            copy, *others = seconds.values()
            ratios = [f"{copy / other:.2f}" for other in others]
            size = bitmap.encode(x).nbytes / x.nbytes
            table.add_row(str(threads), f"{sparsity:.0%}", f"{size:.1%}", f"{copy * 1e3:.2f} ms", *ratios)
    console.print(table)


def print_dtypes(console: Console) -> None:
    """Print the bitmap's speed for other sizes of elements, and by torch operations for the largest."""
    table = Table("dtype", "bytes", "copy", "encode", "decode", title="bitmap: other dtypes, 50 % zeros, one thread")
    for dtype in (torch.uint8, torch.bfloat16, torch.float64, torch.complex128):
        x = sparse_tensor(0.5).mul_(100).to(dtype)
        seconds = time_alternating(functions_of(x, ["bitmap"]))
        copy, encode, decode = seconds.values()
        name = str(dtype).removeprefix("torch.") + (" (torch operations)" if dtype.itemsize == 16 else "")
        size = f"{bitmap.encode(x).nbytes / x.nbytes:.1%}"
        table.add_row(name, size, f"{copy * 1e3:.2f} ms", f"{copy / encode:.2f}", f"{copy / decode:.2f}")
    console.print(table)


def print_codecs(console: Console) -> None:
    """Print all codecs that need no accelerator."""
    names = [name for name in CODECS if name != "host"]
    x = sparse_tensor(0.5)
    seconds = time_alternating(functions_of(x, names))
    table = Table("format", "bytes", "encode", "decode", title="every format: speed over that of a copy, one thread")
    for name in names:
        form = require(codec_named(name).encode(x, lambda _: None))
        speeds = [f"{seconds['copy'] / seconds[f'{name} {what}']:.2f}" for what in ("encode", "decode")]
        table.add_row(name, f"{form.nbytes / x.nbytes:.1%}", *speeds)
    console.print(table)


def main() -> None:
    """Print the tables."""
    console = Console(width=120)
    print_bitmap(console)
    torch.set_num_threads(1)
    print_dtypes(console)
    print_codecs(console)


if __name__ == "__main__":
    main()
