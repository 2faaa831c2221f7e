"""The optimal solver: the candidates of every cell, step functions, and the tables of them.

A cell (table, s, t) is the least time to reverse stages t..s as a function of the free bytes m,
given the gradient of x_{t+1}, whose size D is counted in m; t = L includes the loss. Tables differ in
how x_s is held on entry:

    0        Q    only as the cursor: counted in m, gone when the cursor moves unless stored
    1        P    by somebody else (the caller for s = 0, a saved stage s-1 that saves its output)
    2 + 2f   E_f  in format f (counted in m) and as the cursor; stage s is run again later
    3 + 2f   H_f  in format f (counted in m); it has to be loaded first

Each candidate of a cell is

    time + A(m - shift_a) + B(m - shift_b)   for m >= floor

with cells A and B or without (table -1). With F(s,k) the forward time of s..k-1, G(k,t) what the
reversal of t..k leaves allocated, x, r, b, sv as in the cost model:

    Q(s,t) = min( leaf: r_t + b_t, or f_t + b_t where saving takes less   s = t
                  save: f_s + b_s + [P or Q](s+1,t)                     s < t, P if saves_output
                  min_k F(s,k) + Q(k,t,m - x_s) + Q(s,k-1,m - G(k,t))   x_s stored dense on the way
                  min_f store_f + E_f(s,t) )
    P(s,t) = min( leaf, save, min_k F(s,k) + Q(k,t,m) + P(s,k-1,m - G(k,t)) )
    E_f    = min_k F(s,k) + Q(k,t,m - st_f) + H_f(s,k-1,m - G(k,t))
    H_f    = load_f + min(Q, E_f)

The third line of Q stores x_s for the sub-reversal of k..t only; Q(s,k-1) is free to store it again or
to let it go, which costs no time, so keeping x_s alive needs no table of its own.

Each cell is a non-increasing step function of m, kept as two int64 arrays of equal length: ``bytes``
ascending, where each step begins, and ``times`` strictly descending, its value from there on; left of
the first step it is infinite. All of it is in one file since Numba's cache does not notice a change of a
kernel in another one.
"""

from __future__ import annotations

import numpy as np
from numba import njit

INFINITE = np.int64(2**60)  # two of them add up without overflow
Q, P, E, H = 0, 1, 2, 3


@njit(cache=True, inline="never")
def count_candidates(table, s, t, formats):
    """Return how many candidates the cell has, valid or not."""
    advances = max(t - s, 0)
    if table == Q:
        return 2 + advances + formats
    if table == P:
        return 2 + advances
    return 2 if table % 2 else advances


@njit(cache=True, inline="never")
def candidate(table, s, t, index, sizes, times, flags, inner, formats_bytes, formats_times):
    """Return (valid, time, floor, A: table, s, t, shift, B: table, s, t, shift).

    Parameters
    ----------
    table, s, t, index
        The cell, and the number of the candidate.
    sizes
        int64 (9, L + 1): rows x_j (x_0 as 0), gradient of x_j, saved, forward, save, rebuild and
        backward extra of stage j, prefix sums of grad_bytes; [8, 0] is loss_extra.
    times
        int64 (4, L + 1), nanoseconds: prefix sums of forward, forward, rebuild, backward; [2, L] is
        the loss.
    flags
        bool (2, L + 1): saves_input, saves_output.
    inner
        int64 (L + 1, L + 1): [s, k] is the largest x_i + x_{i+1} + forward_extra_i for s < i < k.
    formats_bytes, formats_times
        int64 (F, L + 1) and (F, 2, L + 1): stored bytes; store and load nanoseconds.
    """
    length = sizes.shape[1] - 1
    x = sizes[0]
    gradient = sizes[1, t + 1] if t < length else 0
    none = (False, 0, 0, -1, 0, 0, 0, -1, 0, 0, 0)
    format_ = (table - 2) // 2
    if table >= 2 and table % 2:  # H: load, then drop the stored form or keep it
        if index == 1 and s == t:
            return none
        target = Q if index == 0 else table - 1
        floor = gradient + x[s] + formats_bytes[format_, s]
        return (True, formats_times[format_, 1, s], floor, target, s, t, 0, -1, 0, 0, 0)
    cursor = x[s] if table == Q else 0
    if table <= P:
        if index == 0:
            if s != t:
                return none
            if s == length:
                return (True, times[2, s], cursor + sizes[1, s] + sizes[8, 0], -1, 0, 0, 0, -1, 0, 0, 0)
            kept = sizes[2, s] + (x[s + 1] if flags[1, s] and s + 1 < length else 0)
            floor = gradient + kept + max(cursor + sizes[5, s], (cursor if flags[0, s] else 0) + sizes[6, s])
            return (True, times[2, s] + times[3, s], floor, -1, 0, 0, 0, -1, 0, 0, 0)
        if index == 1 and s == t:
            if s == length:
                return none
            kept = sizes[2, s] + (x[s + 1] if flags[1, s] and s + 1 < length else 0)
            output = x[s + 1] if s + 1 < length else 0
            floor = gradient + max(
                cursor + output + sizes[2, s] + sizes[4, s], kept + (cursor if flags[0, s] else 0) + sizes[6, s]
            )
            return (True, times[1, s] + times[3, s], floor, -1, 0, 0, 0, -1, 0, 0, 0)
        if index == 1:
            if s > t:
                return none
            shift = sizes[2, s] + (cursor if flags[0, s] else 0) + (x[s + 1] if flags[1, s] else 0)
            held = shift - (x[s + 1] if flags[1, s] and s + 1 == length else 0)
            left = sizes[7, min(t + 1, length)] - sizes[7, s + 1] + (x[length] if t == length else 0)
            floor = max(
                gradient + cursor + x[s + 1] + sizes[2, s] + sizes[4, s],
                left + held + sizes[1, s + 1] + sizes[6, s],
            )
            following = P if flags[1, s] else Q
            return (True, times[1, s] + times[3, s], floor, following, s + 1, t, shift, -1, 0, 0, 0)
        index -= 2
        if index >= t - s:  # Q: store x_s in a format
            format_ = index - max(t - s, 0)
            if s >= t:
                return none
            floor = gradient + cursor + formats_bytes[format_, s]
            return (True, formats_times[format_, 0, s], floor, 2 + 2 * format_, s, t, 0, -1, 0, 0, 0)
    k = s + 1 + index
    held, extra = cursor, 0
    again = table
    if table >= 2:
        held, extra, again = formats_bytes[format_, s], x[s], table + 1
    left = sizes[7, min(t + 1, length)] - sizes[7, k] + (x[length] if t == length else 0)
    floor = gradient + held + max(extra + x[s + 1] + sizes[3, s], inner[s, k])
    return (True, times[0, k] - times[0, s], floor, Q, k, t, held, again, s, k - 1, left)


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
