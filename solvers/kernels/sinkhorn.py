"""Sinkhorn's iteration on the CPU: kernel-domain speed with log-domain safety.

The plan is T_ij = u_i K_ij v_j with K_ij = exp((f_i + g_j − C_ij)/ε). The scalings u, v are cheap to update but would
overflow for small ε: as soon as one leaves [1/LARGE, LARGE], or a sum underflows, they are absorbed into the potentials
f, g (Schmitzer, SIAM J. Sci. Comput. 41(3), 2019) and the iteration is done in the log domain. Each iteration reads K
once: a row is scaled and added to the column sums while it is in cache.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

LARGE = 1e50
TINY = 1e-200  # a sum below this has lost too many terms to underflow


@njit(cache=True, nogil=True, error_model="numpy")
def _log_step(
    C: NDArray[np.floating], log_a: Doubles, log_b: Doubles, reg: float, f: Doubles, g: Doubles, top: Doubles
) -> None:  # pragma: no cover - compiled
    """One iteration in the log domain: f from the rows, then g from the columns."""
    n, m = C.shape
    for i in range(n):
        if log_a[i] == -np.inf:
            f[i] = -np.inf
            continue
        largest = -np.inf
        for j in range(m):
            largest = max(largest, g[j] - C[i, j])
        total = 0.0
        for j in range(m):
            total += np.exp((g[j] - C[i, j] - largest) / reg)
        f[i] = reg * (log_a[i] - np.log(total)) - largest
    for j in range(m):
        top[j] = -np.inf
        g[j] = 0.0
    for i in range(n):
        if f[i] > -np.inf:
            for j in range(m):
                top[j] = max(top[j], f[i] - C[i, j])
    for i in range(n):
        if f[i] > -np.inf:
            for j in range(m):
                g[j] += np.exp((f[i] - C[i, j] - top[j]) / reg)
    for j in range(m):
        g[j] = -np.inf if log_b[j] == -np.inf else reg * (log_b[j] - np.log(g[j])) - top[j]


@njit(cache=True, nogil=True, error_model="numpy")
def _fill_kernel(
    C: NDArray[np.floating], reg: float, f: Doubles, g: Doubles, K: Doubles, u: Doubles, v: Doubles
) -> None:  # pragma: no cover - compiled
    """K = exp((f + g − C)/ε), with scalings of one where there is mass."""
    n, m = C.shape
    for i in range(n):
        u[i] = 1.0 if f[i] > -np.inf else 0.0
        for j in range(m):
            K[i, j] = np.exp((f[i] + g[j] - C[i, j]) / reg)
    for j in range(m):
        v[j] = 1.0 if g[j] > -np.inf else 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def _absorb(reg: float, potential: Doubles, scaling: Doubles) -> None:  # pragma: no cover - compiled
    for i in range(len(potential)):
        if scaling[i] > 0:
            potential[i] += reg * np.log(scaling[i])


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def _scale_rows(
    K: Doubles, a: Doubles, u: Doubles, v: Doubles, new_u: Doubles, columns: Doubles
) -> tuple[float, bool]:  # pragma: no cover - compiled
    """New row scalings and the column sums they give; returns the error of (u, v) and whether all is in range."""
    n, m = K.shape
    error, safe = 0.0, True
    columns[:] = 0.0
    for i in range(n):
        new_u[i] = 0.0
        if a[i] > 0:
            total = 0.0
            for j in range(m):
                total += K[i, j] * v[j]
            error += abs(u[i] * total - a[i])
            if not total > TINY:
                safe = False
                continue
            scaling = a[i] / total
            new_u[i] = scaling
            safe = safe and 1 / LARGE < scaling < LARGE
            for j in range(m):
                columns[j] += scaling * K[i, j]
    return error, safe


@njit(cache=True, nogil=True, error_model="numpy")
def _scale_columns(b: Doubles, columns: Doubles, new_v: Doubles) -> bool:  # pragma: no cover - compiled
    """New column scalings; returns whether all are in range."""
    safe = True
    for j in range(len(b)):
        new_v[j] = 0.0
        if b[j] > 0:
            if not columns[j] > TINY:
                return False
            new_v[j] = b[j] / columns[j]
            safe = safe and 1 / LARGE < new_v[j] < LARGE
    return safe


@njit(cache=True, nogil=True, error_model="numpy")
def _solve(
    C: NDArray[np.floating],
    a: Doubles,
    b: Doubles,
    reg: float,
    limit: float,
    first: int,
    last: int,
    f: Doubles,
    g: Doubles,
    K: Doubles,
    rows: Doubles,
    columns: Doubles,
) -> tuple[int, bool]:  # pragma: no cover - compiled
    """Iterations ``first`` … ``last`` of one problem; returns the iteration reached and whether it converged."""
    log_a, u, new_u = rows[0], rows[1], rows[2]
    log_b, v, new_v, sums = columns[0], columns[1], columns[2], columns[3]
    for i in range(len(a)):
        log_a[i] = np.log(a[i]) if a[i] > 0 else -np.inf
    for j in range(len(b)):
        log_b[j] = np.log(b[j]) if b[j] > 0 else -np.inf
    iteration = first
    if iteration == 0:
        _log_step(C, log_a, log_b, reg, f, g, sums)
        iteration = 1
    _fill_kernel(C, reg, f, g, K, u, v)
    converged = False
    while True:
        error, safe = _scale_rows(K, a, u, v, new_u, sums)
        converged = error <= limit
        if converged or iteration >= last:
            break
        iteration += 1
        if safe and _scale_columns(b, sums, new_v):
            u[:], v[:] = new_u, new_v
            continue
        # Out of range: this iteration is done again from the absorbed potentials, in the log domain.
        _absorb(reg, f, u)
        _absorb(reg, g, v)
        _log_step(C, log_a, log_b, reg, f, g, sums)
        _fill_kernel(C, reg, f, g, K, u, v)
    _absorb(reg, f, u)
    _absorb(reg, g, v)
    return iteration, converged


@njit(cache=True, parallel=True, nogil=True, error_model="numpy")
def sinkhorn_potentials(
    C: NDArray[np.floating],
    a: Doubles,
    b: Doubles,
    reg: float,
    limit: Doubles,
    last: int,
    f: Doubles,
    g: Doubles,
    iterations: NDArray[np.int64],
    converged: NDArray[np.bool_],
    chunks: int,
) -> None:  # pragma: no cover - compiled
    """Iterate every problem that has not converged until it does, or until iteration ``last``.

    Each stops when the L1 error of its row marginal is at most its ``limit``, the columns being exact. Called again
    with a larger ``last`` it goes on. C (B, n, m) in float32 or float64, all else float64: a (B, n), b (B, m),
    limit (B,); updated in place: f (B, n), g (B, m), iterations (B,), converged (B,).
    """
    batch, n, m = C.shape
    for chunk in prange(chunks):
        K, rows, columns = np.empty((n, m)), np.empty((3, n)), np.empty((4, m))
        for k in range(chunk * batch // chunks, (chunk + 1) * batch // chunks):
            if not converged[k]:
                iterations[k], converged[k] = _solve(
                    C[k], a[k], b[k], reg, limit[k], iterations[k], last, f[k], g[k], K, rows, columns
                )
