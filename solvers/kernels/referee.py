"""What the referee computes on every answer, in one pass and without temporaries."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray


@njit(cache=True, parallel=True, nogil=True, error_model="numpy", fastmath={"nnan", "nsz"})
def c_transform(C: NDArray[np.floating], g: NDArray[np.float64]) -> NDArray[np.float64]:  # pragma: no cover - compiled
    """min_j C[b, i, j] − g[b, j], shape (B, n), of C (B, n, m) and g (B, m); no entry may be NaN."""
    batch, n, m = C.shape
    out = np.empty((batch, n))
    for row in prange(batch * n):
        b = np.int64(row) // n
        i = np.int64(row) - b * n
        smallest = np.inf
        for j in range(m):
            difference = C[b, i, j] - g[b, j]
            smallest = difference if difference < smallest else smallest
        out[b, i] = smallest
    return out


@njit(cache=True, nogil=True)
def are_matchings(p: NDArray[np.int64], m: int) -> NDArray[np.bool_]:  # pragma: no cover - compiled
    """Whether each row of p (B, n) matches min(n, m) members to distinct columns below m, the others to −1; (B,)."""
    batch, n = p.shape
    out = np.empty(batch, np.bool_)
    last = np.full(m, -1)  # the row of p that a column was last seen in
    for b in range(batch):
        matched, good = 0, True
        for i in range(n):
            j = p[b, i]
            if j < -1 or j >= m:
                good = False
            elif j >= 0:
                good = good and last[j] != b
                last[j] = b
                matched += 1
        out[b] = good and matched == min(n, m)
    return out
