# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-untyped-calls=False
"""The bitmap format on a CPU: count, pack, unpack, checksum; every loop releases the GIL.

Elements are integers of 1, 2, 4 or 8 bytes; element 64 w + j is bit j of word w of the bitmap. Three things make
the loops as fast as they are, measured on 4 million floats:

- indices are unsigned: Numba then leaves out the test for a negative index, and LLVM vectorises (8 times);
- a word of the bitmap is made from 64 elements by a loop of fixed length, which becomes vector compares;
- packing has no branch on the data: it writes always and advances by whether the element is there, as long as the
  next 64 writes stay inside the values; the last few move as in unpacking;
- unpacking moves values by a loop over the ones of a word (count trailing zeros, clear the lowest one), whose only
  branch is its end. Reading always and advancing by the bit takes 4 to 7 times as long.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

ZERO, ONE, WORD = np.uint64(0), np.uint64(1), np.uint64(64)
CHECKED = 4096  # words of a partial checksum: their sum and weighted sum stay far below 2**64


@intrinsic
def count_ones(typingctx, word):
    """Return the number of ones of a 64-bit word."""
    return types.uint64(types.uint64), lambda context, builder, signature, args: builder.ctpop(args[0])


@intrinsic
def lowest_one(typingctx, word):
    """Return the position of the lowest one of a 64-bit word that is not zero."""

    def generate(context, builder, signature, args):
        return builder.cttz(args[0], context.get_constant(types.boolean, True))

    return types.uint64(types.uint64), generate


@njit(cache=True, nogil=True)
def count_values(elements):
    """Return how many elements are not zero."""
    total = 0
    for start in range(0, elements.size, 4096):
        block = elements[start : start + 4096]
        count = np.int32(0)  # of 32 bits, so that a vector holds many
        for i in range(block.size):
            count += np.int32(block[i] != 0)
        total += int(count)
    return total


@njit(cache=True, nogil=True)
def count_bits(words):
    """Return how many bits are one."""
    total = ZERO
    for i in range(words.size):
        total += count_ones(words[i])
    return total


@njit(cache=True, nogil=True)
def pack(elements, words, values):
    """Write the bitmap and the non-zero elements in order, of which there are as many as values."""
    k, end = ZERO, np.uint64(values.size)
    for w in range(words.size):
        block = elements[w * 64 : w * 64 + 64]
        bits = ZERO
        if block.size == 64:
            for j in range(64):
                bits |= np.uint64(block[np.uint64(j)] != 0) << np.uint64(j)
        else:
            for j in range(block.size):
                bits |= np.uint64(block[np.uint64(j)] != 0) << np.uint64(j)
        words[np.uint64(w)] = bits
        if block.size == 64 and k + WORD <= end:
            for j in range(64):
                element = block[np.uint64(j)]
                values[k] = element
                k += np.uint64(element != 0)
        else:
            while bits != ZERO:
                values[k] = block[lowest_one(bits)]
                k += ONE
                bits &= bits - ONE


@njit(cache=True, nogil=True)
def unpack(words, values, elements):
    """Write the elements; as many bits of the words must be one as there are values."""
    k = ZERO
    for w in range(words.size):
        block = elements[w * 64 : w * 64 + 64]
        bits = words[np.uint64(w)]
        block[:] = 0
        while bits != ZERO:
            block[lowest_one(bits)] = values[k]
            k += ONE
            bits &= bits - ONE


@njit(cache=True, nogil=True)
def sum_weighted(words):
    """Return the sum of (2 k + 1) times word k modulo 2**64, words being of 32 bits."""
    total = ZERO
    for start in range(0, words.size, CHECKED):
        block = words[start : start + CHECKED]
        plain, weighted = ZERO, ZERO
        for j in range(block.size):
            word = np.uint64(block[j])
            plain += word
            weighted += word * np.uint64(np.uint32(j))
        total += (np.uint64(start) * np.uint64(2) + ONE) * plain + np.uint64(2) * weighted
    return total
