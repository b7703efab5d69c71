"""How the kernels are compiled: cached on disk, without Python's lock, and dividing by zero as IEEE 754 does."""

from __future__ import annotations

from numba import njit

OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}
SUMS = {"reassoc", "contract", "nsz"}  # floating-point sums in any order; infinities and NaN as they are

compiled = njit(**OPTIONS)
summing = njit(**OPTIONS, fastmath=SUMS)
parallel = njit(**OPTIONS, parallel=True)
inlined = njit(**OPTIONS, forceinline=True)
inner = njit(**OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True)  # called by kernels alone
