"""The optimal solver: the candidates of every cell, step functions, and the tables of them.

A cell (table, s, t) is the least time to reverse stages t..s as a function of the free bytes m,
given the gradient of x_{t+1}, whose size D is counted in m; t = L includes the loss. Tables differ in
how x_s is held on entry:

    0            Q    only as the cursor: counted in m, gone when the cursor moves unless stored
    1            P    by somebody else (the caller for s = 0, a saved stage s-1 that saves its output)
    2 + 2f       E_f  in format f (counted in m) and as the cursor; stage s is run again later
    3 + 2f       H_f  in format f (counted in m); it has to be loaded first
    2 + 2F + f   G_f  as the cursor (counted in m) and, in format f, by stage s-1, saved in it (not counted)

F is the number of formats; the first M of them can save stages. Each candidate of a cell is

    time + A(m - shift_a) + B(m - shift_b)   for m >= floor

with cells A and B or without (table -1). With F(s,k) the forward time of s..k-1, G(k,t) what the
reversal of t..k leaves allocated, x, r, b, sv, st as in the cost model:

    Q(s,t) = min( leaf: r_t + b_t, or f_t + b_t where saving takes less   s = t
                  save: f_s + b_s + [P or Q](s+1,t)                     s < t, P if saves_output
                  min_f save_f
                  min_k F(s,k) + Q(k,t,m - x_s) + Q(s,k-1,m - G(k,t))   x_s stored dense on the way
                  min_f store_f + E_f(s,t) )
    P(s,t) = min( leaf, save, min_f save_f, min_k F(s,k) + Q(k,t,m) + P(s,k-1,m - G(k,t)) )
    E_f    = min_k F(s,k) + Q(k,t,m - st_f) + H_f(s,k-1,m - G(k,t))
    H_f    = load_f + min(Q, E_f, save_f)
    G_f    = min( leaf, save, min_g save_g,
                  min_k F(s,k) + Q(k,t,m - x_s) + G_f(s,k-1,m - G(k,t))
                  min_k F(s,k) + Q(k,t,m) + load_f + G_f(s,k-1,m - G(k,t))
                  min_gk store_g + F(s,k) + Q(k,t,m - st_g) + load_g + G_f(s,k-1,m - G(k,t)) )
    save_f = f_s + encode_f + b_s + decode_f + [P, G_f or Q](s+1,t)     nothing follows where s = t

save_f keeps sv_f, and of x_s and x_{s+1}, as the flags say, the form where it is ``encoded``, else the
dense tensor. Making a form takes store_f; that of x_s is there already in G_f, and in H_f, where the
saved stage takes it over. What follows is G_f where x_{s+1} was encoded, P where it was kept dense.
Stage s-1 holds the form of G_f until its backward, so that storing x_s in f is free and frees nothing.

The third line of Q stores x_s for the sub-reversal of k..t only; Q(s,k-1) is free to store it again or
to let it go, which costs no time, so keeping x_s alive needs no table of its own.

Each cell is a non-increasing step function of m, kept as int64 arrays of equal length: ``bytes``
ascending, where each step begins, and its value from there on; left of the first step it is infinite.
The value is twofold: ``least``, strictly descending, which no schedule of the recurrence beats, and
``times``, which the schedule that is read back reaches. Without a tolerance the two are one array. With
one, ``thin`` unites steps of a cell of width w = t - s as long as times <= (1 + allowed(w)) least holds for
the united step. Sums keep that ratio, ``allowed`` ascends with w and ends at the tolerance: so the root
is within it, whatever was left out on the way.

All of it is in one file since Numba's cache does not notice a change of a kernel in another one.
"""

from __future__ import annotations

import numpy as np
from numba import njit

INFINITE = np.int64(2**60)  # two of them add up without overflow
Q, P, E, H = 0, 1, 2, 3


@njit(cache=True, inline="never")
def count_candidates(table, s, t, formats, modes):
    """Return how many candidates the cell has, valid or not."""
    advances = max(t - s, 0)
    if table == Q:
        return 2 + modes + advances + formats
    if table == P:
        return 2 + modes + advances
    if table >= E + 2 * formats:
        return 2 + modes + (1 + formats) * advances
    if table % 2:
        return 3 if (table - H) // 2 < modes else 2
    return advances


@njit(cache=True, inline="never")
def saved_in(table, index, formats, modes):
    """Return the format that a candidate saves stage s in, -1 for dense, -2 if it does not save it."""
    if table <= P or table >= E + 2 * formats:
        return index - 2 if 1 <= index < 2 + modes else -2
    return (table - H) // 2 if index == 2 and table % 2 else -2


@njit(cache=True, inline="never")
def stored_in(table, s, t, index, formats, modes):
    """Return the format that an advance stores x_s in, -1 for dense."""
    if table >= E + 2 * formats:
        return (index - 2 - modes) // (t - s) - 1
    return -1 if table <= P else (table - E) // 2


@njit(cache=True, inline="never")
def save_encoded(table, s, t, f, sizes, times, flags, formats_bytes, formats_times):
    """Return the candidate that saves stage s in format f; parameters and result as ``candidate``'s."""
    length, formats = sizes.shape[1] - 1, formats_bytes.shape[0]
    x = sizes[0]
    loaded, beside = E <= table < E + 2 * formats, table == E + 2 * formats + f
    encodes_input, encodes_output = flags[0, s] and flags[2 + f, s], flags[1, s] and flags[2 + f, min(s + 1, length)]
    if s > t or s == length or (loaded and not encodes_input):
        return (False, 0, 0, -1, 0, 0, 0, -1, 0, 0, 0)
    cursor = 0 if table == P else x[s]
    output = 0 if s + 1 == length > t else x[s + 1]
    new = formats_bytes[f, 1, s] + (formats_bytes[f, 0, s + 1] if encodes_output else 0)
    new += formats_bytes[f, 0, s] if encodes_input and not beside else 0
    kept = new + (cursor if flags[0, s] and not encodes_input else 0)
    retains = flags[1, s] and not encodes_output  # x_{s+1} stays dense; x_L is in ``left`` by the backward
    left = sizes[7, min(t + 1, length)] - sizes[7, s + 1] + (x[length] if t == length else 0)
    floor = max(
        (sizes[1, t + 1] if t < length else 0) + cursor + output + new + formats_bytes[f, 2, s],
        left + kept + (output if retains and s + 1 < length else 0) + sizes[1, s + 1] + formats_bytes[f, 3, s],
    )
    time = times[1, s] + times[3, s] + formats_times[f, 2, s] + formats_times[f, 3, s]
    time += formats_times[f, 0, s] if encodes_input and not (loaded or beside) else 0
    time += formats_times[f, 0, s + 1] if encodes_output else 0
    time += formats_times[f, 1, s] if loaded else 0
    if s == t:
        return (True, time, floor, -1, 0, 0, 0, -1, 0, 0, 0)
    following = E + 2 * formats + f if encodes_output else (P if retains else Q)
    return (True, time, floor, following, s + 1, t, kept + (output if retains else 0), -1, 0, 0, 0)


@njit(cache=True, inline="never")
def advance_beside(table, s, t, index, sizes, times, flags, inner, formats_bytes, formats_times):
    """Return a candidate of G that stores x_s; parameters and result as ``candidate``'s."""
    length, formats = sizes.shape[1] - 1, formats_bytes.shape[0]
    x = sizes[0]
    f = stored_in(table, s, t, index, formats, flags.shape[0] - 2)
    k = s + 1 + (index - flags.shape[0]) % (t - s)
    left = sizes[7, min(t + 1, length)] - sizes[7, k] + (x[length] if t == length else 0)
    beside = table == E + 2 * formats + f
    held = x[s] if f < 0 else 0 if beside else formats_bytes[f, 0, s]
    floor = held + (sizes[1, t + 1] if t < length else 0)
    floor += max((x[s] if f >= 0 else 0) + x[s + 1] + sizes[3, s], inner[s, k])
    time = times[0, k] - times[0, s]
    if f >= 0:
        floor = max(floor, left + sizes[1, k] + x[s] + held)  # loading it
        time += formats_times[f, 1, s] + (0 if beside else formats_times[f, 0, s])
    return (True, time, floor, Q, k, t, held, table, s, k - 1, left)


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
        bool (2 + M, L + 1): saves_input, saves_output, and for each format that can save stages whether x_j
        is encoded in it.
    inner
        int64 (L + 1, L + 1): [s, k] is the largest x_i + x_{i+1} + forward_extra_i for s < i < k.
    formats_bytes
        int64 (F, 4, L + 1): stored bytes of x_j; saved bytes, save and backward extra of stage j.
    formats_times
        int64 (F, 4, L + 1), nanoseconds: store and load of x_j; encode and decode of stage j.
    """
    length = sizes.shape[1] - 1
    formats, modes = formats_bytes.shape[0], flags.shape[0] - 2
    x = sizes[0]
    gradient = sizes[1, t + 1] if t < length else 0
    none = (False, 0, 0, -1, 0, 0, 0, -1, 0, 0, 0)
    if modes:
        f = saved_in(table, index, formats, modes)
        if f >= 0:
            return save_encoded(table, s, t, f, sizes, times, flags, formats_bytes, formats_times)
    beside = table >= E + 2 * formats
    if beside and index >= 2 + modes:
        return advance_beside(table, s, t, index, sizes, times, flags, inner, formats_bytes, formats_times)
    format_ = (table - E) // 2
    if table >= E and table % 2 and not beside:  # H: load, then drop the stored form or keep it
        if index == 1 and s == t:
            return none
        target = Q if index == 0 else table - 1
        floor = gradient + x[s] + formats_bytes[format_, 0, s]
        return (True, formats_times[format_, 1, s], floor, target, s, t, 0, -1, 0, 0, 0)
    cursor = 0 if table == P else x[s]
    if table <= P or beside:
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
        index -= 2 + modes
        if index >= t - s:  # Q: store x_s in a format
            format_ = index - max(t - s, 0)
            if s >= t:
                return none
            floor = gradient + cursor + formats_bytes[format_, 0, s]
            return (True, formats_times[format_, 0, s], floor, E + 2 * format_, s, t, 0, -1, 0, 0, 0)
    k = s + 1 + index
    held, extra = cursor, 0
    again = table
    if table >= E:
        held, extra, again = formats_bytes[format_, 0, s], x[s], table + 1
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
def within(steps, p, stride, end, free):
    """Return the last of steps p..p+stride that begins at or below ``free``; p does."""
    if p + stride < end and steps[p + stride] <= free:
        return p + stride
    while stride > 1:
        stride //= 2
        q = min(p + stride, end - 1)
        p = q if steps[q] <= free else p
    return p


@njit(cache=True, inline="never")
def lower(
    a_bytes, a_least, a_times, i, i_end, shift_a, b_bytes, b_least, b_times, j, j_end, shift_b, time, begin, cap,
    low_bytes, low_least, low_times, count, out_bytes, out_least, out_times,
):  # fmt: skip
    """Write the lower envelope of a step function and of the sum time + A(m - shift_a) + B(m - shift_b).

    A is steps i..i_end-1 of ``a_*``, B steps j..j_end-1 of ``b_*``, both defined from ``begin`` on; the
    step function is the first ``count`` entries of ``low_*``. What lies beyond ``cap`` is left out.
    Where the sum lies above, it is followed in strides over both A and B that double as long as its value
    at their end is still above the envelope at their start: nothing between can be below. Returns the
    number of steps written, 0 where the sum is nowhere below.
    """
    best = time + a_least[i_end - 1] + b_least[j_end - 1]
    e = locate(low_bytes, 0, count, begin)
    if e >= 0 and low_least[e] <= best:
        return 0
    i = locate(a_bytes, i, i_end - i, begin - shift_a)
    j = locate(b_bytes, j, j_end - j, begin - shift_b)
    written = 0
    taken = 0  # steps of the envelope that were written or are no longer lowest
    last = INFINITE  # value of the sum's step that was written last
    stride = 1
    while begin <= cap:
        value = time + a_least[i] + b_least[j]
        if e < 0 or value < low_least[e]:
            while taken <= e and low_least[taken] >= last:
                taken += 1
            while taken <= e and low_bytes[taken] < begin:
                out_bytes[written] = low_bytes[taken]
                out_least[written] = low_least[taken]
                out_times[written] = low_times[taken]
                written += 1
                taken += 1
            out_bytes[written] = begin
            out_least[written] = last = value
            out_times[written] = time + a_times[i] + b_times[j]
            written += 1
            stride = 1
        elif low_least[e] <= best:
            break
        else:
            stride *= 2
        while True:
            next_a = a_bytes[i + stride] + shift_a if i + stride < i_end else cap + 1
            next_b = b_bytes[j + stride] + shift_b if j + stride < j_end else cap + 1
            begin = min(next_a, next_b)
            if stride == 1:
                i += 1 if next_a == begin and i + 1 < i_end else 0
                j += 1 if next_b == begin and j + 1 < j_end else 0
                break
            p = within(a_bytes, i, stride, i_end, min(begin, cap) - shift_a)
            q = within(b_bytes, j, stride, j_end, min(begin, cap) - shift_b)
            if time + a_least[p] + b_least[q] >= low_least[e]:
                i, j = p, q
                break
            stride //= 2
        ahead = 1
        while e + ahead < count and low_bytes[e + ahead] <= begin:
            e += ahead
            ahead *= 2
        e = within(low_bytes, e, ahead, count, begin) if ahead > 1 else e
    if written == 0:
        return 0
    while taken < count and low_least[taken] >= last:
        taken += 1
    for rest in range(taken, count):
        out_bytes[written] = low_bytes[rest]
        out_least[written] = low_least[rest]
        out_times[written] = low_times[rest]
        written += 1
    return written


@njit(cache=True, inline="never")
def thin(steps_bytes, steps_least, steps_times, count, allowed):
    """Unite steps in place as long as times <= (1 + allowed) least; return how many remain.

    United steps begin where the first did and may be as fast as the last. The cell's first and last step
    stay as they are: the least bytes and the least time are exact.
    """
    for p in range(1, count):
        steps_times[p] = min(steps_times[p], steps_times[p - 1])
    kept = first = count - 1
    while first > 0:
        last = first = first - 1
        while first > 1 and steps_times[first - 1] <= steps_least[last] * (1.0 + allowed):
            first -= 1
        kept -= 1
        steps_bytes[kept] = steps_bytes[first]
        steps_least[kept] = steps_least[last]
        steps_times[kept] = steps_times[first]
    for p in range(kept, count):
        steps_bytes[p - kept] = steps_bytes[p]
        steps_least[p - kept] = steps_least[p]
        steps_times[p - kept] = steps_times[p]
    return count - kept


@njit(cache=True, inline="never")
def enlarged(steps, used, room):
    """Return a copy with space for ``room`` steps."""
    copy = np.empty(room, np.int64)
    for p in range(used):
        copy[p] = steps[p]
    return copy


@njit(cache=True, nogil=True)
def fill_cells(
    starts, width, pool_bytes, pool_least, pool_times, first, count, cap, allowed,
    sizes, times, flags, inner, formats_bytes, formats_times,
):  # fmt: skip
    """Solve the cells (s, s + width) for s in ``starts``; all narrower ones are in the pool.

    The step function of cell (table, s, t) is ``pool[first : first + count]`` at [table, s, t]; pool entry
    0 is the constant 0, for candidates with fewer than two cells. ``first`` and ``count`` of the solved
    cells are set, ``first`` as a position in the arrays returned: bytes, least, times. ``allowed`` below 0
    means no tolerance; then the last two are one array, as must be those of the pool.
    """
    formats, modes = formats_bytes.shape[0], flags.shape[0] - 2
    exact = allowed < 0
    room, used = 1024, 0
    own_bytes, own_least = np.empty(room, np.int64), np.empty(room, np.int64)
    own_times = own_least if exact else np.empty(room, np.int64)
    space = 256
    low_bytes, low_least = np.empty(space, np.int64), np.empty(space, np.int64)
    low_times = low_least if exact else np.empty(space, np.int64)
    out_bytes, out_least = np.empty(space, np.int64), np.empty(space, np.int64)
    out_times = out_least if exact else np.empty(space, np.int64)
    for s in starts:
        t = s + width
        for step in range(2 + 2 * formats + modes):
            # E before Q before H: each reads the ones before it at the same (s, t).
            if step < formats:
                table = E + 2 * step
            elif step < formats + 2:
                table = Q if step == formats else P
            elif step < 2 + 2 * formats:
                table = H + 2 * (step - formats - 2)
            else:
                table = step
            if (table == P and s > 0 and not flags[1, s - 1]) or (table != P and s == 0):
                continue
            if table >= E + 2 * formats and not (flags[1, s - 1] and flags[table - 2 * formats, s]):
                continue
            n = np.int64(0)  # not a literal, for which Numba would compile every callee once more
            for index in range(count_candidates(table, s, t, formats, modes)):
                valid, time, begin, at, a_s, a_t, a_shift, bt, b_s, b_t, b_shift = candidate(
                    table, s, t, index, sizes, times, flags, inner, formats_bytes, formats_times
                )
                if not valid:
                    continue
                a_bytes, a_least, a_times = pool_bytes, pool_least, pool_times
                i, i_n, j, j_n = 0, 1, 0, 1
                if at >= 0:
                    i, i_n = first[at, a_s, a_t], count[at, a_s, a_t]
                    if a_s == s and a_t == t:
                        a_bytes, a_least, a_times = own_bytes, own_least, own_times
                if bt >= 0:
                    j, j_n = first[bt, b_s, b_t], count[bt, b_s, b_t]
                if i_n == 0 or j_n == 0:
                    continue
                begin = max(begin, a_bytes[i] + a_shift, pool_bytes[j] + b_shift)
                if begin > cap:
                    continue
                if n + i_n + j_n > space:
                    space = int(2 * (n + i_n + j_n))
                    low_bytes, low_least = enlarged(low_bytes, n, space), enlarged(low_least, n, space)
                    low_times = low_least if exact else enlarged(low_times, n, space)
                    out_bytes, out_least = np.empty(space, np.int64), np.empty(space, np.int64)
                    out_times = out_least if exact else np.empty(space, np.int64)
                written = lower(
                    a_bytes, a_least, a_times, i, i + i_n, a_shift,
                    pool_bytes, pool_least, pool_times, j, j + j_n, b_shift, time, begin, cap,
                    low_bytes, low_least, low_times, n, out_bytes, out_least, out_times,
                )  # fmt: skip
                if written:
                    n = written
                    low_bytes, out_bytes = out_bytes, low_bytes
                    low_least, out_least = out_least, low_least
                    low_times, out_times = out_times, low_times
            if not exact and n:
                n = thin(low_bytes, low_least, low_times, n, allowed)
            if used + n > room:
                room = int(2 * (used + n))
                own_bytes, own_least = enlarged(own_bytes, used, room), enlarged(own_least, used, room)
                own_times = own_least if exact else enlarged(own_times, used, room)
            first[table, s, t], count[table, s, t] = used, n
            for p in range(n):
                own_bytes[used] = low_bytes[p]
                own_least[used] = low_least[p]
                own_times[used] = low_times[p]
                used += 1
    return own_bytes[:used], own_least[:used], own_times[:used]


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
    formats, modes = formats_bytes.shape[0], flags.shape[0] - 2
    for index in range(count_candidates(table, s, t, formats, modes)):
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
