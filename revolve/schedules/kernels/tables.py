"""Fills the tables of the recurrence, every budget at once, and looks up the choice in a cell."""

from __future__ import annotations

import numpy as np
from numba import njit

from .recurrence import E, H, P, Q, candidate, count_candidates
from .steps import add_below, locate, merge_lower

INFINITE = np.int64(2**60)  # two of them add up without overflow


@njit(cache=True, inline="never")
def fill_tables(sizes, times, flags, inner, formats_bytes, formats_times, cap, delta):
    """Solve every cell by ascending t - s.

    Returns
    -------
    pool_bytes, pool_times, first, count
        The step function of cell (table, s, t) is ``pool[first : first + count]`` at [table, s, t];
        pool entry 0 is the constant 0, for candidates with fewer than two cells.
    """
    length = sizes.shape[1] - 1
    formats = formats_bytes.shape[0]
    tables = 2 + 2 * formats
    first = np.zeros((tables, length + 1, length + 1), np.int64)
    count = np.zeros((tables, length + 1, length + 1), np.int64)
    pool_bytes = np.empty(1024, np.int64)
    pool_times = np.empty(1024, np.int64)
    pool_bytes[0] = -INFINITE // 2
    pool_times[0] = 0
    used = 1
    room = 64
    lower_bytes, lower_times = np.empty(room, np.int64), np.empty(room, np.int64)
    fresh_bytes, fresh_times = np.empty(room, np.int64), np.empty(room, np.int64)
    spare_bytes, spare_times = np.empty(room, np.int64), np.empty(room, np.int64)
    for width in range(length + 1):
        for s in range(length + 1 - width):
            t = s + width
            for step in range(tables):
                # E before Q before H: each reads the ones before it at the same (s, t).
                if step < formats:
                    table = E + 2 * step
                elif step < formats + 2:
                    table = Q if step == formats else P
                else:
                    table = H + 2 * (step - formats - 2)
                if table == P and not (s == 0 or flags[1, s - 1]):
                    continue
                if table != P and s == 0:
                    continue
                n = 0
                for index in range(count_candidates(table, s, t, formats)):
                    valid, time, floor, at, a_s, a_t, a_shift, bt, b_s, b_t, b_shift = candidate(
                        table, s, t, index, sizes, times, flags, inner, formats_bytes, formats_times
                    )
                    if not valid:
                        continue
                    i, i_n, j, j_n = 0, 1, 0, 1
                    if at >= 0:
                        i, i_n = first[at, a_s, a_t], count[at, a_s, a_t]
                    if bt >= 0:
                        j, j_n = first[bt, b_s, b_t], count[bt, b_s, b_t]
                    if i_n == 0 or j_n == 0:
                        continue
                    if n + i_n + j_n > room:
                        room = 2 * (n + i_n + j_n)
                        lower_bytes = np.concatenate((lower_bytes[:n], np.empty(room - n, np.int64)))
                        lower_times = np.concatenate((lower_times[:n], np.empty(room - n, np.int64)))
                        fresh_bytes, fresh_times = np.empty(room, np.int64), np.empty(room, np.int64)
                        spare_bytes, spare_times = np.empty(room, np.int64), np.empty(room, np.int64)
                    new = add_below(
                        pool_bytes, pool_times, i, i + i_n, a_shift, j, j + j_n, b_shift, time, floor, cap,
                        lower_bytes, lower_times, n, fresh_bytes, fresh_times,
                    )  # fmt: skip
                    if new:
                        n = merge_lower(
                            lower_bytes, lower_times, n, fresh_bytes, fresh_times, new, spare_bytes, spare_times
                        )
                        lower_bytes, spare_bytes = spare_bytes, lower_bytes
                        lower_times, spare_times = spare_times, lower_times
                if used + n > pool_bytes.shape[0]:
                    grown = 2 * (used + n)
                    pool_bytes = np.concatenate((pool_bytes[:used], np.empty(grown - used, np.int64)))
                    pool_times = np.concatenate((pool_times[:used], np.empty(grown - used, np.int64)))
                first[table, s, t] = used
                for p in range(n):
                    # Leaving out a step costs at most a factor 1 + delta, since the kept one before it serves.
                    kept = pool_times[used - 1]
                    if p == 0 or kept > lower_times[p] * (1.0 + delta):
                        pool_bytes[used] = lower_bytes[p]
                        pool_times[used] = lower_times[p]
                        used += 1
                count[table, s, t] = used - first[table, s, t]
    return pool_bytes[:used], pool_times[:used], first, count


@njit(cache=True, inline="never")
def value_at(pool_bytes, pool_times, first, count, table, s, t, free):
    """Return the least time of a cell with ``free`` bytes, INFINITE where infeasible."""
    if table < 0:
        return 0
    start = first[table, s, t]
    position = locate(pool_bytes, start, count[table, s, t], free)
    return INFINITE if position < start else pool_times[position]


@njit(cache=True, inline="never")
def choose(
    table, s, t, free, pool_bytes, pool_times, first, count, sizes, times, flags, inner, formats_bytes, formats_times
):
    """Return the index of the best candidate of a cell with ``free`` bytes, -1 where infeasible."""
    best, best_time = -1, INFINITE
    for index in range(count_candidates(table, s, t, formats_bytes.shape[0])):
        valid, time, floor, at, a_s, a_t, a_shift, bt, b_s, b_t, b_shift = candidate(
            table, s, t, index, sizes, times, flags, inner, formats_bytes, formats_times
        )
        if not valid or free < floor:
            continue
        time += value_at(pool_bytes, pool_times, first, count, at, a_s, a_t, free - a_shift)
        time += value_at(pool_bytes, pool_times, first, count, bt, b_s, b_t, free - b_shift)
        if time < best_time:
            best, best_time = index, time
    return best
