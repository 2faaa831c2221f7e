"""The plain twin of the solver: its recurrence for one budget, as a memoised recursion.

It shares nothing with the kernels but the formulas of their docstring: one number of free bytes instead of
step functions, and every peak spelled out action by action. ``D`` below is the gradient of x_{t+1}.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

from revolve.schedules import Chain

Q, P = "x_s is only the cursor", "x_s is held by somebody else"
E, H = "x_s is stored in a format, and the cursor", "x_s is stored in a format"
G = "x_s is the cursor; stage s-1, saved in a format, holds it in that"
Table = tuple[str, str]  # how x_s is held, and the format for E, H and G
Parts = list[tuple[Table, int, int, int]]  # cells, each with its free bytes
Candidate = tuple[int, int, Parts]  # nanoseconds, least free bytes, cells


def least_makespan(chain: Chain, budget: int, formats: tuple[str, ...] = ()) -> int | None:
    """Return the nanoseconds that the recurrence gives within ``budget`` bytes, None where nothing fits."""
    recurrence = Recurrence(chain, formats)

    @cache
    def least(table: Table, s: int, t: int, free: int) -> float:
        times = (
            time + sum(least(*part) for part in parts)
            for time, floor, parts in recurrence.candidates(table, s, t, free)
            if free >= floor
        )
        return min(times, default=math.inf)

    found = least((P, ""), 0, len(chain), budget)
    return None if found == math.inf else int(found)


class Recurrence:
    """The candidates of every cell of one chain."""

    def __init__(self, chain: Chain, formats: tuple[str, ...]) -> None:
        self.stages, self.length, self.formats = chain.stages, len(chain), formats
        self.x = [0, *(stage.output_bytes for stage in chain.stages)]  # x_0 is the caller's
        self.gradient = [chain.input_bytes if chain.input_grad else 0, *self.x[1:], 0]  # [L + 1]: before the loss
        self.loss_time, self.loss_extra = nanoseconds(chain.loss_time), chain.loss_extra
        self.stored = {name: chain.formats[name].stored_bytes for name in formats}
        self.store_time = {name: [nanoseconds(time) for time in chain.formats[name].store_time] for name in formats}
        self.load_time = {name: [nanoseconds(time) for time in chain.formats[name].load_time] for name in formats}
        self.modes = [name for name in formats if chain.formats[name].saves]
        self.chain = chain

    def candidates(self, table: Table, s: int, t: int, free: int) -> Iterator[Candidate]:
        """Yield every way to do a cell."""
        held, name = table
        if held in (Q, P, G):
            yield self.loss(held) if s == self.length else self.save(held, s, t, free)
            if s < self.length:
                yield from (self.save_encoded(table, mode, s, t, free) for mode in self.modes)
        if held in (Q, P, G) and s == t < self.length:
            yield self.leaf(held, s)
        if held == H:
            yield from self.load(name, s, t, free)
        else:
            ways = ("dense", *self.formats) if held == G else (name or "dense",)
            yield from (self.advance(table, way, s, k, t, free) for way in ways for k in range(s + 1, t + 1))
        if held == Q and s < t:
            for name in self.formats:
                floor = self.gradient[t + 1] + self.x[s] + self.stored[name][s]
                yield self.store_time[name][s], floor, [((E, name), s, t, free)]

    def load(self, name: str, s: int, t: int, free: int) -> Iterator[Candidate]:
        """Load x_s; drop its form, or keep it, or leave it to the saved stage s."""
        floor, time = self.gradient[t + 1] + self.stored[name][s] + self.x[s], self.load_time[name][s]
        yield time, floor, [((Q, ""), s, t, free)]
        yield time, floor, [((E, name), s, t, free)]
        if name in self.modes and s < self.length and self.stages[s].saves_input and self.chain.encoded(name, s):
            saving, save_floor, parts = self.save_encoded((H, name), name, s, t, free)
            yield time + saving, max(floor, save_floor), parts

    def loss(self, held: str) -> Candidate:
        """Turn around, with x_L at hand."""
        output = self.x[self.length] if held == Q else 0
        return self.loss_time, output + self.gradient[self.length] + self.loss_extra, []

    def leaf(self, held: str, s: int) -> Candidate:
        """Rebuild stage s and reverse it."""
        stage = self.stages[s]
        cursor = 0 if held == P else self.x[s]
        kept = stage.saved_bytes + (self.output(s, s) if stage.saves_output else 0)
        rebuild = cursor + kept + stage.rebuild_extra
        backward = (cursor if stage.saves_input else 0) + kept + stage.backward_extra
        time = nanoseconds(stage.rebuild) + nanoseconds(stage.backward)
        return time, self.gradient[s + 1] + max(rebuild, backward), []

    def save(self, held: str, s: int, t: int, free: int) -> Candidate:
        """Save stage s, reverse s+1..t, reverse stage s."""
        stage = self.stages[s]
        cursor, output = 0 if held == P else self.x[s], self.output(s, t)
        kept = stage.saved_bytes + (cursor if stage.saves_input else 0) + (output if stage.saves_output else 0)
        peak = self.gradient[t + 1] + cursor + output + stage.saved_bytes + stage.save_extra - stage.passed_bytes
        # By its backward the loss is over and the caller holds x_L: what ``kept`` has of it is in ``left``.
        twice = output if stage.saves_output and s + 1 == self.length == t else 0
        backward = kept - twice + self.left(s + 1, t) + self.gradient[s + 1] + stage.backward_extra
        following = ((P, "") if stage.saves_output else (Q, ""), s + 1, t, free - kept)
        time = nanoseconds(stage.forward) + nanoseconds(stage.backward)
        return time, max(peak, backward), [following] if s < t else []

    def save_encoded(self, table: Table, mode: str, s: int, t: int, free: int) -> Candidate:
        """Save stage s in a format, reverse s+1..t, reverse stage s."""
        stage, costs = self.stages[s], self.chain.save_mode(mode, s)
        cursor, output = 0 if table[0] == P else self.x[s], self.output(s, t)
        time = sum(map(nanoseconds, (stage.forward, costs.encode_time, stage.backward, costs.decode_time)))
        kept, following = costs.saved_bytes, (Q, "")  # what the stage keeps, the cursor's x_s and x_{s+1} apart
        dense_input = dense_output = 0
        if stage.saves_input and not self.chain.encoded(mode, s):
            dense_input = cursor
        elif stage.saves_input and table != (G, mode):
            kept += self.stored[mode][s]
            time += 0 if table == (H, mode) else self.store_time[mode][s]
        if stage.saves_output and not self.chain.encoded(mode, s + 1):
            dense_output, following = output, (P, "")
        elif stage.saves_output:
            kept += self.stored[mode][s + 1]
            time += self.store_time[mode][s + 1]
            following = (G, mode)
        peak = self.gradient[t + 1] + cursor + output + kept + costs.save_extra
        backward = self.left(s + 1, t) + kept + dense_input + self.gradient[s + 1] + costs.backward_extra
        backward += dense_output if s + 1 < self.length else 0
        parts = [(following, s + 1, t, free - kept - dense_input - dense_output)]
        return time, max(peak, backward), parts if s < t else []

    def advance(self, table: Table, way: str, s: int, k: int, t: int, free: int) -> Candidate:
        """Keep x_s in a format, run s..k-1 without saving, reverse k..t, then s..k-1."""
        held, name = table
        kept = 0 if held == P or table == (G, way) else self.x[s] if way == "dense" else self.stored[way][s]
        peaks = []
        for i in range(s, k):
            cursor = self.x[i] if i > s or way != "dense" else 0
            extra = self.stages[i].forward_extra - self.stages[i].passed_bytes
            peaks.append(self.gradient[t + 1] + kept + cursor + self.x[i + 1] + extra)
        time = sum(nanoseconds(stage.forward) for stage in self.stages[s:k])
        again = (H, name) if held == E else table
        if held == G and way != "dense":  # stored for these stages alone
            peaks.append(self.left(k, t) + self.gradient[k] + self.x[s] + kept)
            time += self.load_time[way][s] + (0 if way == name else self.store_time[way][s])
        return time, max(peaks), [((Q, ""), k, t, free - kept), (again, s, k - 1, free - self.left(k, t))]

    def output(self, s: int, t: int) -> int:
        """Return the bytes of x_{s+1} in a reversal of ..t: none for x_L once the caller holds it."""
        return 0 if s + 1 == self.length > t else self.x[s + 1]

    def left(self, k: int, t: int) -> int:
        """Return the bytes that the reversal of k..t leaves allocated: gradients of parameters, and x_L."""
        gradients = sum(stage.grad_bytes for stage in self.stages[k : t + 1])
        return gradients + (self.x[self.length] if t == self.length else 0)


def nanoseconds(seconds: float) -> int:
    """Return whole nanoseconds."""
    return round(seconds * 1e9)
