"""What Sinkhorn's compiled iterations share: potentials fitted in the log domain, and scalings absorbed into them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled, summing
from solvers.kernels.exponential import exp64
from solvers.kernels.intrinsics import smaller

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


@compiled
def largest_scaling(K: Floats) -> float:  # pragma: no cover - compiled
    """The largest scaling that is safe in K's dtype: beyond it, or below its inverse, sums may have lost terms."""
    return 1e10 if K.itemsize == 4 else 1e50


@compiled
def row_lowest(c: Floats, g: Doubles) -> float:  # pragma: no cover - compiled
    """min_j c_j − g_j of a row of the cost."""
    lowest = np.inf
    for j in range(len(g)):
        lowest = smaller(c[j] - g[j], lowest)
    return lowest


@compiled
def absorb(reg: float, potential: Doubles, scaling: Floats) -> None:  # pragma: no cover - compiled
    """Move the logarithms of scalings into the potential of their side."""
    for i in range(len(potential)):
        if scaling[i] > 0:
            potential[i] += reg * np.log(np.float64(scaling[i]))


@summing
def log_rows(
    C: Floats, a: Floats, reg: float, f: Doubles, g: Doubles, first: int, last: int
) -> None:  # pragma: no cover - compiled
    """f_i = ε log a_i − ε log Σ_j exp((g_j − C_ij)/ε), whatever the size of the terms."""
    m = C.shape[1]
    inverse = 1 / reg
    for i in range(first, last):
        lowest = row_lowest(C[i], g)
        total = 0.0
        for j in range(m):
            total += exp64((lowest - (C[i, j] - g[j])) * inverse)
        f[i] = lowest + reg * (np.log(np.float64(a[i])) - np.log(total)) if a[i] > 0 else -np.inf


@summing
def column_lows(C: Floats, f: Doubles, lows: Doubles, first: int, last: int) -> None:  # pragma: no cover - compiled
    """min_i C_ij − f_i over the rows ``first`` … ``last``."""
    m = C.shape[1]
    lows[:] = np.inf
    for i in range(first, last):
        for j in range(m):
            lows[j] = min(lows[j], C[i, j] - f[i])


@summing
def column_totals(
    C: Floats, reg: float, f: Doubles, lows: Doubles, totals: Doubles, first: int, last: int
) -> None:  # pragma: no cover - compiled
    """Σ_i exp((f_i − C_ij + low_j)/ε) over the rows ``first`` … ``last``."""
    m = C.shape[1]
    inverse = 1 / reg
    totals[:] = 0.0
    for i in range(first, last):
        if f[i] > -np.inf:
            for j in range(m):
                totals[j] += exp64((lows[j] - (C[i, j] - f[i])) * inverse)
