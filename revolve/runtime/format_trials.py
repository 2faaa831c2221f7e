"""Tries storage formats on the activations and the saved tensors of a chain, for their sizes and times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import torch

from revolve.schedules.costs import StorageCosts
from revolve.storage.accounts import Account, Allowance, reserve_of
from revolve.storage.boundary import bytes_of, cut, storage_keys, tensors_of
from revolve.storage.codecs import Codec
from revolve.storage.shared_forms import EncodedTensor, Forms, FormSnapshot, SharedForm

from .allocations import Phase, Tracer, trace_allocations
from .bench import GENERATOR_BYTES, Bench, extra
from .encoding import Encoder
from .inputs import Inputs, held_anyway
from .isolation import gradients_present
from .packing import Packer
from .reversal import one_sum, outliving, reverse
from .saving import Kept
from .timed_codecs import TimedCodec, count_elsewhere

__all__ = ["measure_format"]

REPEATS = 3
Fields = dict[str, Any]  # sizes of a stage, by the names of ``Stage``


class ActivationTrial:
    """One activation, stored in a format and loaded again in three phases of a trace.

    Parameters
    ----------
    value
        The activation.
    codec, own, held
        The format, and identities of the storages of the model's input, and of what is held anyway.
    tracer
        Of the trace.
    """

    PHASES = 3

    def __init__(self, value: Any, codec: TimedCodec, own: set[int], held: set[int], tracer: Tracer) -> None:
        self.account = free_account()
        self.dense_bytes = bytes_of(value, own | held)
        tracer.mark()
        snapshot = FormSnapshot(value, codec, Forms(own), self.account, held)
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
    bench, value, inputs
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
        self,
        bench: Bench,
        value: Any,
        inputs: Inputs,
        codec: TimedCodec,
        own: set[int],
        encoded: tuple[bool, bool],
        tracer: Tracer,
    ) -> None:
        forms = Forms(own)
        torch.clear_autocast_cache()  # the casts of parameters are made in the trace, as in a step
        with gradients_present(bench.stage, bench.later) as parameters:
            leaf = cut(value)
            tracer.mark()
            output, packer = run_in_format(bench, leaf, inputs, codec, forms, encoded)
            tracer.mark()
            shared = kept_forms(packer)
            given = bench.stage.activation(output)
            outside = {id(form) for form in forms_outside(forms, codec, leaf, given)}
            inside = [form for form in shared if id(form) not in outside]
            self.outside_bytes = sum(form.form.nbytes for form in shared if id(form) in outside)
            self.reserve = sum(reserve_of(f.dense_bytes, f.form.nbytes) for f in inside) if codec.varies else 0
            keys = storage_keys(leaf)
            self.fresh_bytes = bytes_of(given, keys)
            self.besides_bytes = bytes_of(output, keys) - self.fresh_bytes
            self.again_bytes = bytes_again(packer, output, storage_keys(given) | keys | own)
            self.late_bytes = bytes_of((leaf, output)) if bench.late else 0  # not in the format, as the chain has it
            self.gradient_bytes = bytes_of([t for t in tensors_of(output) if t.requires_grad])
            target, _staying = one_sum(output), outliving(bench.stage, output, keys - own, last=not bench.later)
            del output, given, shared, inside
            tracer.mark()
            if target is not None:
                reverse([target], [torch.ones_like(target)], leaf, parameters)
            tracer.mark()

    def sizes(self, phases: Sequence[Phase]) -> tuple[int, int, int]:
        """Return saved_bytes, save_extra and backward_extra."""
        _, save, _, backward = phases
        left = save.end - save.start - self.besides_bytes
        saved_bytes = max(0, left - self.fresh_bytes - self.outside_bytes) + self.again_bytes
        save_extra = max(GENERATOR_BYTES, extra(save, left + self.again_bytes))
        return saved_bytes + self.reserve + self.late_bytes, save_extra, extra(backward, self.gradient_bytes)


def free_account() -> Account:
    """Return an account without limits."""
    return Account(Allowance(None, lambda: None), "a sample", 0)


def run_in_format(
    bench: Bench, leaf: Any, inputs: Inputs, codec: TimedCodec, forms: Forms, encoded: tuple[bool, bool]
) -> tuple[Any, Packer]:
    """Save a stage in a format; return its output with the graph, and what was packed.

    What it gives besides the next stage's input is held by others, and dense.
    """
    if bench.late:
        return bench.run(leaf, keep=Kept)
    encoder = Encoder(codec, forms, free_account(), inputs, encoded_input=encoded[0], encoded_output=encoded[1])
    output, packer = bench.run(leaf, keep=encoder)
    counted = storage_keys(bench.stage.activation(output))
    encoder.refer([t for t in tensors_of(output) if storage_keys(t).isdisjoint(counted)], packer.live())
    encoder.finish(output, packer.live())
    return output, packer


def forms_outside(forms: Forms, codec: TimedCodec, leaf: Any, given: Any) -> list[SharedForm]:
    """Return the forms of a stage's input and output, which count as those."""
    return [form for t in (*tensors_of(leaf), *tensors_of(given)) if (form := forms.find(t, codec)) is not None]


def bytes_again(packer: Packer, output: Any, counted: set[int]) -> int:
    """Return the bytes that a stage saves, dense, of what it gives besides: anew, where it is run again."""
    dense = [holder.kept.get() for holder in packer.live() if isinstance(holder.kept, Kept)]
    return bytes_of(output) - bytes_of(output, (storage_keys(dense) & storage_keys(output)) - counted)


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


def walk(benches: Sequence[Bench], sample: Any) -> Iterator[tuple[Bench, Any, Inputs]]:
    """Yield every stage, its input, and what it takes, in order."""
    value, stages = cut(sample), [bench.stage for bench in benches]
    for bench in benches:
        yield bench, value, Inputs.of(stages, bench.index, value)
        output, _ = bench.run(cut(value), keep=None)
        value = cut(output)
        del output


def size_activations(
    codec: TimedCodec, benches: Sequence[Bench], sample: Any, own: set[int], fields: Sequence[Fields]
) -> tuple[tuple[int, ...], list[bool]]:
    """Return the bytes to plan for each of x_0 .. x_L, and whether it is worth while; x_0 and x_L are never stored."""
    trials = []
    with trace_allocations(codec.device) as tracer:
        stages = [bench.stage for bench in benches]
        for bench, value, _ in walk(benches, sample):
            if bench.index:
                held = held_anyway(stages, bench.index, value)
                trials.append(ActivationTrial(value, codec, own, held, tracer))
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
        for bench, value, inputs in walk(benches, sample):
            around = encoded[bench.index], encoded[bench.index + 1]
            trials.append(ModeTrial(bench, value, inputs, codec, own, around, tracer))
    count = ModeTrial.PHASES
    return [trial.sizes(tracer.phases[count * i : count * (i + 1)]) for i, trial in enumerate(trials)]


def time_stages(
    codec: TimedCodec, benches: Sequence[Bench], sample: Any, own: set[int], encoded: Sequence[bool]
) -> Iterator[tuple[float, float, float, float]]:
    """Yield for every stage the seconds to store its input, to load it, to encode and to decode what it saves."""
    stages = [bench.stage for bench in benches]
    for bench, value, inputs in walk(benches, sample):
        codec.encoding = codec.decoding = 0.0
        if bench.index:
            held = held_anyway(stages, bench.index, value)
            FormSnapshot(value, codec, Forms(own), free_account(), held).load()
        store, load = codec.encoding, codec.decoding
        around = encoded[bench.index], encoded[bench.index + 1]
        yield store, load, *time_mode(codec, bench, value, inputs, own, around)


def time_mode(
    codec: TimedCodec, bench: Bench, value: Any, inputs: Inputs, own: set[int], encoded: tuple[bool, bool]
) -> tuple[float, float]:
    """Return the seconds to encode what a stage saves but for its input and output, and to decode all of it."""
    forms = Forms(own)
    with gradients_present(bench.stage, bench.later) as parameters:
        leaf = cut(value)
        codec.encoding = codec.decoding = 0.0
        output, _packer = run_in_format(bench, leaf, inputs, codec, forms, encoded)
        outside = {id(form): form for form in forms_outside(forms, codec, leaf, bench.stage.activation(output))}
        elsewhere = sum(count_elsewhere(shared.form) for shared in outside.values())
        roots = [t for t in tensors_of(output) if t.requires_grad]
        del output, outside
        reverse(roots, [torch.ones_like(root) for root in roots], leaf, parameters)
        del roots, _packer
        return max(0.0, codec.encoding - elsewhere), codec.decoding
