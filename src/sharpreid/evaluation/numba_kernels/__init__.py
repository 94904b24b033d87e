"""Numba kernels: optional, compiled replacements for the NumPy code of `sharpreid.evaluation`."""
