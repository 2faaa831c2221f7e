"""The recurrence of the optimal solver, written once: the candidates of every cell.

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

    Q(s,t) = min( leaf: r_t + b_t                                       s = t
                  save: f_s + b_s + [P or Q](s+1,t)                     s < t, P if saves_output
                  min_k F(s,k) + Q(k,t,m - x_s) + Q(s,k-1,m - G(k,t))   x_s stored dense on the way
                  min_f store_f + E_f(s,t) )
    P(s,t) = min( leaf, save, min_k F(s,k) + Q(k,t,m) + P(s,k-1,m - G(k,t)) )
    E_f    = min_k F(s,k) + Q(k,t,m - st_f) + H_f(s,k-1,m - G(k,t))
    H_f    = load_f + min(Q, E_f)

The third line of Q stores x_s for the sub-reversal of k..t only; Q(s,k-1) is free to store it again or
to let it go, which costs no time, so keeping x_s alive needs no table of its own.
"""

from __future__ import annotations

from numba import njit

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
        if index == 1:
            if s >= t:
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
