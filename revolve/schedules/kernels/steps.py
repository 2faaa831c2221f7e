"""Step functions of the free bytes: sums and lower envelopes by linear merges.

A non-increasing step function is two int64 arrays of equal length: ``bytes`` ascending, where each
step begins, and ``times`` strictly descending, its value from there on. Left of the first step it is
infinite: infeasible.
"""

from __future__ import annotations

from numba import njit


@njit(cache=True, inline="never")
def locate(steps, start, count, free):
    """Return the position of the last step that begins at or below ``free``; start - 1 if none does."""
    low, high = start, start + count
    while low < high:
        middle = (low + high) // 2
        if steps[middle] <= free:
            low = middle + 1
        else:
            high = middle
    return low - 1


@njit(cache=True, inline="never")
def add_below(
    pool_bytes, pool_times, i, i_end, shift_a, j, j_end, shift_b, time, floor, cap,
    lower_bytes, lower_times, count, out_bytes, out_times,
):  # fmt: skip
    """Write those steps of time + A(m - shift_a) + B(m - shift_b), m >= floor, that lie below an envelope.

    A is steps i..i_end-1 of the pool, B steps j..j_end-1; the envelope is the first ``count`` entries
    of ``lower_*``. Steps beyond ``cap`` are left out. Returns the number of steps written.
    """
    begin = max(floor, pool_bytes[i] + shift_a, pool_bytes[j] + shift_b)
    if begin > cap:
        return 0
    best = time + pool_times[i_end - 1] + pool_times[j_end - 1]
    e = locate(lower_bytes, 0, count, begin)
    if e >= 0 and lower_times[e] <= best:
        return 0
    i = locate(pool_bytes, i, i_end - i, begin - shift_a)
    j = locate(pool_bytes, j, j_end - j, begin - shift_b)
    written = 0
    while True:
        value = time + pool_times[i] + pool_times[j]
        while e + 1 < count and lower_bytes[e + 1] <= begin:
            e += 1
        if e < 0 or value < lower_times[e]:
            out_bytes[written] = begin
            out_times[written] = value
            written += 1
        elif lower_times[e] <= best:
            return written
        next_i = pool_bytes[i + 1] + shift_a if i + 1 < i_end else cap + 1
        next_j = pool_bytes[j + 1] + shift_b if j + 1 < j_end else cap + 1
        begin = min(next_i, next_j)
        if begin > cap:
            return written
        if next_i == begin:
            i += 1
        if next_j == begin:
            j += 1


@njit(cache=True, inline="never")
def merge_lower(a_bytes, a_times, a_count, b_bytes, b_times, b_count, out_bytes, out_times):
    """Write the lower envelope of two step functions; return its number of steps."""
    i = j = written = 0
    lowest = -1
    while i < a_count or j < b_count:
        if j >= b_count or (i < a_count and a_bytes[i] <= b_bytes[j]):
            begin, value = a_bytes[i], a_times[i]
            i += 1
        else:
            begin, value = b_bytes[j], b_times[j]
            j += 1
        if lowest < 0 or value < lowest:
            if written and out_bytes[written - 1] == begin:
                written -= 1
            out_bytes[written] = begin
            out_times[written] = value
            written += 1
            lowest = value
    return written
