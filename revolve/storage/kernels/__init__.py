"""Numba kernels of the storage formats: arrays and scalars in, arrays out, no checks."""
