"""The rows of Revolve's schedule: a binomial tree walked with a stack of tasks.

A segment of ``length`` stages is reversed with s slots, its start x_start held in one of them, and r
is the least number with beta(s, r) = C(s + r, s) >= length. It is split as ``revolve.schedules.binomial``
says, at the upper end:

    right (behind the split)                          left (before it)
    length - beta(s, r-1)  with s - 1 slots, r        beta(s, r-1)                  with s slots, r - 1
    beta(s-1, r-1)         with s - 1 slots, r - 1    length - beta(s-1, r-1)       with s slots, r - 1

The first line holds where its right part is longer than beta(s-1, r-1), the second elsewhere. A segment
is *full* when its length is beta(s, r). Both parts of a full segment are full, the left one having
length r / (s + r) stages, and at every other split one part is full; so binomials are computed along a
single path, and everywhere else a split costs a division. Segments with s = 1 (one pass for every stage)
and r = 1 (every activation but the last is stored) need none and are most of the schedule.

A task is one line of an int64 array (depth, 6), columns task, start, length, s, r, full:

    ENTER    load x_start, then as DESCEND
    DESCEND  reverse the segment, the cursor being at its start
    FALL     reverse the stages start..start+length-1, the input of every one being stored

``fill_rows`` stops where the arrays are full and can be called again with the same stack, for the next
rows. The stack never holds more than min(s, isqrt(2 length)) + 4 tasks: the segments on it have distinct
numbers of slots s_i, and all but two have more than s_i stages. Lengths up to 2**40 do not overflow:
the largest product is length * r with s > 1, so r < 2**21.
"""

from __future__ import annotations

from numba import njit

FORWARD, STORE, LOAD, DROP, SAVE, REBUILD, LOSS, BACKWARD = range(8)
ENTER, DESCEND, FALL = range(3)
STEP = 4  # rows that one step of a task writes at most


@njit(cache=True)
def binomial(s, r):
    """Return C(s + r, s)."""
    few, many = min(s, r), max(s, r)
    value = 1
    for i in range(1, few + 1):
        value = value * (many + i) // i
    return value


@njit(cache=True)
def split(length, s, r, full):
    """Return (length of the left part, whether that is full, r of the right part, whether that is full)."""
    if full:
        return length * r // (s + r), 1, r, 1
    left = binomial(s, r - 1)
    right = binomial(s - 1, r - 1)
    if length - left > right:
        return left, 1, r, 0
    return length - right, 0, r - 1, 1


@njit(cache=True)
def push(stack, depth, task, start, length, s, r, full):
    """Put a task on the stack; return the new depth."""
    stack[depth, 0] = task
    stack[depth, 1] = start
    stack[depth, 2] = length
    stack[depth, 3] = s
    stack[depth, 4] = r
    stack[depth, 5] = full
    return depth + 1


@njit(cache=True)
def put(starts, stops, kinds, n, kind, start, stop):
    """Write row n; return n + 1."""
    starts[n] = start
    stops[n] = stop
    kinds[n] = kind
    return n + 1


@njit(cache=True)
def reverse_stage(starts, stops, kinds, n, stage, last):
    """Write the rows that tape and reverse a stage from the cursor; the last one turns around."""
    if stage == last:
        n = put(starts, stops, kinds, n, SAVE, stage, stage + 1)
        n = put(starts, stops, kinds, n, LOSS, stage + 1, stage + 2)
    else:
        n = put(starts, stops, kinds, n, REBUILD, stage, stage + 1)
    return put(starts, stops, kinds, n, BACKWARD, stage, stage + 1)


@njit(cache=True)
def fall(stack, depth, starts, stops, kinds, n, start, length):
    """Run a FALL task as far as the arrays allow; return (rows written, depth)."""
    room = starts.size - STEP
    while length > 0 and n <= room:
        length -= 1
        stage = start + length
        n = put(starts, stops, kinds, n, LOAD, stage, stage + 1)
        if stage > 0:
            n = put(starts, stops, kinds, n, DROP, stage, stage + 1)
        n = put(starts, stops, kinds, n, REBUILD, stage, stage + 1)
        n = put(starts, stops, kinds, n, BACKWARD, stage, stage + 1)
    if length > 0:
        depth = push(stack, depth, FALL, start, length, 0, 0, 0)
    return n, depth


@njit(cache=True)
def climb(stack, depth, last, starts, stops, kinds, n, start, length, s):
    """Run a DESCEND task with r = 1 as far as the arrays allow; return (rows written, depth)."""
    room = starts.size - STEP
    base = start
    if depth > 0 and stack[depth - 1, 0] == FALL:  # left by the climb that this one continues
        depth -= 1
        base = stack[depth, 1]
    while length > 2 and n <= room:
        n = put(starts, stops, kinds, n, FORWARD, start, start + 1)
        start += 1
        length -= 1
        n = put(starts, stops, kinds, n, STORE, start, start + 1)
    if n > room:
        depth = push(stack, depth, FALL, base, start - base, 0, 0, 0)
        return n, push(stack, depth, DESCEND, start, length, s, 1, 0)
    if length == 2:
        n = put(starts, stops, kinds, n, FORWARD, start, start + 1)
        start += 1
    depth = push(stack, depth, FALL, base, start - base, 0, 0, 0)
    return reverse_stage(starts, stops, kinds, n, start, last), depth


@njit(cache=True)
def sweep(stack, depth, last, starts, stops, kinds, n, start, length):
    """Reverse the last stage of a segment with s = 1; return (rows written, depth)."""
    stage = start + length - 1
    if length > 1:
        n = put(starts, stops, kinds, n, FORWARD, start, stage)
        depth = push(stack, depth, ENTER, start, length - 1, 1, 0, 0)
    elif start > 0:
        n = put(starts, stops, kinds, n, DROP, start, start + 1)
    return reverse_stage(starts, stops, kinds, n, stage, last), depth


@njit(cache=True)
def fill_rows(stack, depth, last, starts, stops, kinds, n):
    """Write rows from row n on, until no task is left or fewer than STEP rows are free.

    Parameters
    ----------
    stack
        int64 (tasks, 6).
    depth
        Tasks on the stack.
    last
        The last stage of the chain, where the schedule turns around.
    starts, stops, kinds
        (rows,): the rows to write, at least STEP; ints that hold last + 2, and int8.
    n
        Rows written before.

    Returns
    -------
    n, depth
        Rows written in all, and tasks left.
    """
    room = starts.size - STEP
    while depth > 0 and n <= room:
        depth -= 1
        task, start, length = stack[depth, 0], stack[depth, 1], stack[depth, 2]
        if task == FALL:
            n, depth = fall(stack, depth, starts, stops, kinds, n, start, length)
            continue
        s, r, full = stack[depth, 3], stack[depth, 4], stack[depth, 5]
        if task == ENTER:
            n = put(starts, stops, kinds, n, LOAD, start, start + 1)
        while s > 1 and r > 1 and n <= room:
            left, left_full, r_right, right_full = split(length, s, r, full)
            n = put(starts, stops, kinds, n, FORWARD, start, start + left)
            depth = push(stack, depth, ENTER, start, left, s, r - 1, left_full)
            start += left
            length -= left
            n = put(starts, stops, kinds, n, STORE, start, start + 1)
            s, r, full = s - 1, r_right, right_full
        if n > room:
            depth = push(stack, depth, DESCEND, start, length, s, r, full)
        elif s == 1:
            n, depth = sweep(stack, depth, last, starts, stops, kinds, n, start, length)
        else:
            n, depth = climb(stack, depth, last, starts, stops, kinds, n, start, length, s)
    return n, depth
