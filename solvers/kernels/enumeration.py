"""Depth-first enumeration of all matchings, with the objective kept up to date along the way.

One step of the search adds the terms of one more row, so a complete matching costs O(1) amortised for the linear
objective and O(n) for the quadratic one, and no term is ever subtracted again: partial sums are exact to rounding.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from solvers.kernels.compiling import parallel


@parallel
def enumerate_assignments(
    cost: NDArray[np.float64], first: int, best: NDArray[np.float64], best_p: NDArray[np.int64]
) -> None:  # pragma: no cover - compiled
    """Lowers ``best`` (B,), ``best_p`` (B, n) to the best matching with row 0 in column ``first``; C (B, n ≤ m, m)."""
    n, m = cost.shape[1:]
    for k in prange(cost.shape[0]):
        C = cost[k]
        p = np.full(n, -1, np.int64)
        used = np.zeros(m, np.bool_)
        partial = np.zeros(n + 1)
        p[0], used[first], partial[1] = first, True, C[0, first]
        i = 1
        if n == 1 and partial[1] < best[k]:
            best[k], best_p[k] = partial[1], p
        while 0 < i < n:
            j = p[i]
            if j >= 0:
                used[j] = False
            j += 1
            while j < m and used[j]:
                j += 1
            if j == m:
                p[i] = -1
                i -= 1
                continue
            p[i], used[j] = j, True
            partial[i + 1] = partial[i] + C[i, j]
            i += 1
            if i == n:
                if partial[n] < best[k]:
                    best[k], best_p[k] = partial[n], p
                i -= 1


@parallel
def enumerate_permutations(
    A: NDArray[np.float64],
    B: NDArray[np.float64],
    L: NDArray[np.float64],
    first: int,
    best: NDArray[np.float64],
    best_p: NDArray[np.int64],
) -> None:  # pragma: no cover - compiled
    """Lowers ``best`` (B,), ``best_p`` (B, n) to the best permutation with p(0) = ``first``; A, B, L (B, n, n)."""
    n = A.shape[1]
    for k in prange(A.shape[0]):
        Ak, Bk, Lk = A[k], B[k], L[k]
        p = np.full(n, -1, np.int64)
        used = np.zeros(n, np.bool_)
        partial = np.zeros(n + 1)
        p[0], used[first] = first, True
        partial[1] = Ak[0, 0] * Bk[first, first] + Lk[0, first]
        i = 1
        if n == 1 and partial[1] < best[k]:
            best[k], best_p[k] = partial[1], p
        while 0 < i < n:
            j = p[i]
            if j >= 0:
                used[j] = False
            j += 1
            while j < n and used[j]:
                j += 1
            if j == n:
                p[i] = -1
                i -= 1
                continue
            p[i], used[j] = j, True
            added = Ak[i, i] * Bk[j, j] + Lk[i, j]
            for h in range(i):
                added += Ak[i, h] * Bk[j, p[h]] + Ak[h, i] * Bk[p[h], j]
            partial[i + 1] = partial[i] + added
            i += 1
            if i == n:
                if partial[n] < best[k]:
                    best[k], best_p[k] = partial[n], p
                i -= 1
