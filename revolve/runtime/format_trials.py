"""Tries storage formats on the activations and the saved tensors of a chain, for their sizes and times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import torch

from revolve.schedules.costs import StorageCosts
from revolve.storage.accounts import Account, Allowance, reserve_of
from revolve.storage.boundary import bytes_of, cut, storage_keys, tensors_of
from revolve.storage.codecs import Codec, Form
from revolve.storage.shared_forms import EncodedTensor, Forms, FormSnapshot, SharedForm

from .allocations import Phase, Tracer, trace_allocations
from .bench import GENERATOR_BYTES, Bench, extra, one_sum, reverse, step_clock
from .encoding import Encoder
from .isolation import gradients_present
from .saving import Kept, Packer

__all__ = ["measure_format"]

REPEATS = 3
Fields = dict[str, Any]  # sizes of a stage, by the names of ``Stage``


class TimedForm:
    """A form that notes how long it takes to decode and to release it, and knows how long it took to make it.

    Attributes
    ----------
    encoding
        Seconds that it took to make it.
    elsewhere
        Whether making and releasing it is counted elsewhere.
    """

    def __init__(self, form: Form, codec: TimedCodec, encoding: float) -> None:
        self.form = form
        self.nbytes = form.nbytes
        self.codec = codec
        self.encoding = encoding
        self.elsewhere = False

    def __del__(self) -> None:
        start = self.codec.clock()
        del self.form  # removing a file takes as long as half of writing it
        if not self.elsewhere:
            self.codec.encoding += self.codec.clock() - start

    def decode(self) -> torch.Tensor:
        """Decode the form."""
        start = self.codec.clock()
        tensor = self.form.decode()
        self.codec.decoding += self.codec.clock() - start
        return tensor


class TimedCodec:
    """A codec that notes how long it takes.

    Parameters
    ----------
    codec
        The codec.
    device
        Where the tensors are.

    Attributes
    ----------
    encoding, decoding
        Seconds since they were set to 0; releasing a form counts as encoding, since both happen once.
    """

    def __init__(self, codec: Codec, device: torch.device) -> None:
        self.codec = codec
        self.device = device
        self.name, self.lossless, self.varies, self.waits = codec.name, codec.lossless, codec.varies, codec.waits
        self.encoding = self.decoding = 0.0

    def clock(self) -> float:
        """Return seconds; those of waiting for a disk count, too."""
        return time.perf_counter() if self.waits else step_clock(self.device)

    def encode(self, flat: torch.Tensor, allow: Callable[[int], None]) -> TimedForm | None:
        """Encode a storage."""
        start = self.clock()
        form = self.codec.encode(flat, allow)
        spent = self.clock() - start
        self.encoding += spent
        return None if form is None else TimedForm(form, self, spent)


class ActivationTrial:
    """One activation, stored in a format and loaded again in three phases of a trace.

    Parameters
    ----------
    value
        The activation.
    codec, own
        The format, and identities of the storages of the model's input.
    tracer
        Of the trace.
    """

    PHASES = 3

    def __init__(self, value: Any, codec: TimedCodec, own: set[int], tracer: Tracer) -> None:
        self.account = free_account()
        self.dense_bytes = bytes_of(value, own)
        tracer.mark()
        snapshot = FormSnapshot(value, codec, Forms(own), self.account)
        tracer.mark()
        snapshot.load()
        tracer.mark()

    def stored_bytes(self, phases: Sequence[Phase], made: int, used: int) -> int:
        """Return the bytes to plan for: the form, a reserve, and what making or reading it takes in passing.

        The last counts only where no other peak that is planned for anyhow covers it: that of the activation's stage
        when it was ``made``, before there is a form, or that of the next stage when it is ``used``, where the form is
        still there after storing, but may have been dropped after loading.
        """
        _, store, load = phases
        form = self.account.spent + self.account.reserve
        storing, loading = extra(store, store.end - store.start), extra(load, self.dense_bytes)
        return form + max(
            0 if form + storing <= made else max(0, storing - used),
            0 if form + loading <= used else loading,
        )


class ModeTrial:
    """One stage, saved in a format and reversed in four phases of a trace.

    Parameters
    ----------
    bench, value
        The stage and its input.
    codec, own
        The format, and identities of the storages of the model's input.
    encoded
        Whether input and output of the stage are kept in the format.
    tracer
        Of the trace.
    """

    PHASES = 4

    def __init__(
        self, bench: Bench, value: Any, codec: TimedCodec, own: set[int], encoded: tuple[bool, bool], tracer: Tracer
    ) -> None:
        forms = Forms(own)
        with gradients_present(bench.stage, bench.later) as parameters:
            leaf = cut(value)
            tracer.mark()
            output, packer = run_in_format(bench, leaf, codec, forms, encoded)
            tracer.mark()
            shared = kept_forms(packer)
            outside = {id(form) for t in (*tensors_of(leaf), *tensors_of(output)) if (form := forms.find(t, codec))}
            inside = [form for form in shared if id(form) not in outside]
            self.outside_bytes = sum(form.form.nbytes for form in shared if id(form) in outside)
            self.reserve = sum(reserve_of(f.dense_bytes, f.form.nbytes) for f in inside) if codec.varies else 0
            self.fresh_bytes = bytes_of(output, storage_keys(leaf))
            self.late_bytes = bytes_of((leaf, output)) if bench.late else 0  # not in the format, as the chain has it
            self.gradient_bytes = bytes_of([t for t in tensors_of(output) if t.requires_grad])
            target = one_sum(output)
            del output, shared, inside
            tracer.mark()
            if target is not None:
                reverse([target], [torch.ones_like(target)], leaf, parameters)
            tracer.mark()

    def sizes(self, phases: Sequence[Phase]) -> tuple[int, int, int]:
        """Return saved_bytes, save_extra and backward_extra."""
        _, save, _, backward = phases
        left = save.end - save.start
        saved_bytes = max(0, left - self.fresh_bytes - self.outside_bytes) + self.reserve + self.late_bytes
        return saved_bytes, max(GENERATOR_BYTES, extra(save, left)), extra(backward, self.gradient_bytes)


def free_account() -> Account:
    """Return an account without limits."""
    return Account(Allowance(None, lambda: None), "a sample", 0)


def run_in_format(
    bench: Bench, leaf: Any, codec: TimedCodec, forms: Forms, encoded: tuple[bool, bool]
) -> tuple[Any, Packer]:
    """Save a stage in a format; return its output with the graph, and what was packed."""
    if bench.late:
        return bench.run(leaf, keep=Kept)
    dense = frozenset() if encoded[0] else frozenset(storage_keys(leaf))
    encoder = Encoder(codec, forms, free_account(), dense, dense_output=not encoded[1])
    output, packer = bench.run(leaf, keep=encoder)
    encoder.finish(output, packer.live())
    return output, packer


def kept_forms(packer: Packer) -> list[SharedForm]:
    """Return the forms that holders refer to, each once."""
    kept = [holder.kept for holder in packer.live()]
    return list({id(k.shared): k.shared for k in kept if isinstance(k, EncodedTensor)}.values())


def measure_format(
    codec: Codec, benches: Sequence[Bench], sample: Any, device: torch.device, fields: Sequence[Fields]
) -> StorageCosts:
    """Try a format on every activation and every stage of a chain.

    Parameters
    ----------
    codec
        The format.
    benches
        The stages.
    sample
        The model's input.
    device
        Where the tensors are.
    fields
        Sizes of the stages.
    """
    timed, own = TimedCodec(codec, device), storage_keys(sample)
    stored, encoded = size_activations(timed, benches, sample, own, fields)
    modes = size_modes(timed, benches, sample, own, encoded)
    passes = [list(time_stages(timed, benches, sample, own, encoded)) for _ in range(REPEATS)]
    times = [tuple(map(median, zip(*found, strict=True))) for found in zip(*passes, strict=True)]
    store, load, encode, decode = zip(*times, strict=True)
    saved_bytes, save_extra, backward_extra = zip(*modes, strict=True)
    return StorageCosts(stored, (*store, 0.0), (*load, 0.0), saved_bytes, encode, decode, save_extra, backward_extra)


def walk(benches: Sequence[Bench], sample: Any) -> Iterator[tuple[Bench, Any]]:
    """Yield every stage and its input, in order."""
    value = cut(sample)
    for bench in benches:
        yield bench, value
        output, _ = bench.run(cut(value), keep=None)
        value = cut(output)
        del output


def size_activations(
    codec: TimedCodec, benches: Sequence[Bench], sample: Any, own: set[int], fields: Sequence[Fields]
) -> tuple[tuple[int, ...], list[bool]]:
    """Return the bytes to plan for each of x_0 .. x_L, and whether it is worth while; x_0 and x_L are never stored."""
    trials = []
    with trace_allocations(codec.device) as tracer:
        for bench, value in walk(benches, sample):
            if bench.index:
                trials.append(ActivationTrial(value, codec, own, tracer))
        output_bytes = bytes_of(value, own)  # of the last stage's input: never used, since x_L is not stored
    count = ActivationTrial.PHASES
    stored = [
        trial.stored_bytes(tracer.phases[count * i : count * (i + 1)], *passing_around(i + 1, fields))
        for i, trial in enumerate(trials)
    ]
    encoded = [size < trial.dense_bytes for size, trial in zip(stored, trials, strict=True)]
    return (bytes_of(sample), *stored, output_bytes), [False, *encoded, False]


def passing_around(index: int, fields: Sequence[Fields]) -> tuple[int, int]:
    """Return the least bytes in passing, beside x_index, when it is made and when it is used, however that happens.

    A stage that is rebuilt is reversed next. The last stage's output may belong to the caller already.
    """
    before, after = fields[index - 1], fields[index]
    output = after["output_bytes"] if index + 1 < len(fields) else 0
    input_freed = 0 if after["saves_input"] else before["output_bytes"]
    reversing = max(after["rebuild_extra"], after["backward_extra"] - input_freed)
    rebuilding = after["saved_bytes"] + (output if after["saves_output"] else 0) + reversing
    running = output + min(after["forward_extra"], after["saved_bytes"] + after["save_extra"])
    return min(before["forward_extra"], before["saved_bytes"] + before["save_extra"]), min(running, rebuilding)


def size_modes(
    codec: TimedCodec, benches: Sequence[Bench], sample: Any, own: set[int], encoded: Sequence[bool]
) -> list[tuple[int, int, int]]:
    """Return saved_bytes, save_extra and backward_extra of every stage."""
    trials = []
    with trace_allocations(codec.device) as tracer:
        for bench, value in walk(benches, sample):
            around = encoded[bench.index], encoded[bench.index + 1]
            trials.append(ModeTrial(bench, value, codec, own, around, tracer))
    count = ModeTrial.PHASES
    return [trial.sizes(tracer.phases[count * i : count * (i + 1)]) for i, trial in enumerate(trials)]


def time_stages(
    codec: TimedCodec, benches: Sequence[Bench], sample: Any, own: set[int], encoded: Sequence[bool]
) -> Iterator[tuple[float, float, float, float]]:
    """Yield for every stage the seconds to store its input, to load it, to encode and to decode what it saves."""
    for bench, value in walk(benches, sample):
        codec.encoding = codec.decoding = 0.0
        if bench.index:
            FormSnapshot(value, codec, Forms(own), free_account()).load()
        store, load = codec.encoding, codec.decoding
        yield store, load, *time_mode(codec, bench, value, own, (encoded[bench.index], encoded[bench.index + 1]))


def time_mode(
    codec: TimedCodec, bench: Bench, value: Any, own: set[int], encoded: tuple[bool, bool]
) -> tuple[float, float]:
    """Return the seconds to encode what a stage saves but for its input and output, and to decode all of it."""
    forms = Forms(own)
    with gradients_present(bench.stage, bench.later) as parameters:
        leaf = cut(value)
        codec.encoding = codec.decoding = 0.0
        output, _packer = run_in_format(bench, leaf, codec, forms, encoded)
        outside = {id(f): f for t in (*tensors_of(leaf), *tensors_of(output)) if (f := forms.find(t, codec))}
        elsewhere = sum(count_elsewhere(shared.form) for shared in outside.values())
        roots = [t for t in tensors_of(output) if t.requires_grad]
        del output, outside
        reverse(roots, [torch.ones_like(root) for root in roots], leaf, parameters)
        del roots, _packer
        return max(0.0, codec.encoding - elsewhere), codec.decoding


def count_elsewhere(form: Form) -> float:
    """Return the seconds that it took to make a form whose costs count elsewhere."""
    assert isinstance(form, TimedForm)
    form.elsewhere = True
    return form.encoding
