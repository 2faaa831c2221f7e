"""Numba kernels of the solver: arrays and scalars in, arrays out, no checks."""
