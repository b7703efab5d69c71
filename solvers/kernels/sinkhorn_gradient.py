"""The linear system behind Sinkhorn's implicit gradient, for batches of small problems on the CPU.

Each problem stays in cache from its plan to its gradient: marginals, Schur complement, Cholesky factor, both solves.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]

DAMPING = 1e-14
"""Nearly decoupled plans (small ε) leave directions without curvature: they are damped at rounding level."""

summing = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})


@summing
def schur(P: Doubles, inverse_r: Doubles, c: Doubles, S: Doubles) -> None:  # pragma: no cover - compiled
    """Lower half of diag(c) − Pᵀ diag(1/r) P + c cᵀ/Σc, whose last term fixes the constant; damped."""
    n, m = P.shape
    total, largest = c.sum(), c.max()
    for j in range(m):
        share = c[j] / total
        for k in range(j + 1):
            S[j, k] = share * c[k]
        S[j, j] += c[j] + DAMPING * largest if c[j] > 0 else 1.0
    fours = n // 4 * 4
    for i in range(0, fours, 4):
        w0, w1, w2, w3 = inverse_r[i], inverse_r[i + 1], inverse_r[i + 2], inverse_r[i + 3]
        for j in range(m):
            t0, t1, t2, t3 = w0 * P[i, j], w1 * P[i + 1, j], w2 * P[i + 2, j], w3 * P[i + 3, j]
            for k in range(j + 1):
                S[j, k] -= (t0 * P[i, k] + t1 * P[i + 1, k]) + (t2 * P[i + 2, k] + t3 * P[i + 3, k])
    for i in range(fours, n):
        for j in range(m):
            t0 = inverse_r[i] * P[i, j]
            for k in range(j + 1):
                S[j, k] -= t0 * P[i, k]


@summing
def factor(S: Doubles, column: Doubles) -> None:  # pragma: no cover - compiled
    """Cholesky's lower factor in place of the lower half of S."""
    m = len(S)
    for k in range(m):
        # A pivot lost to rounding is a direction without curvature: nothing moves along it.
        pivot = np.sqrt(S[k, k]) if S[k, k] > 0 else np.inf
        S[k, k] = pivot
        for j in range(k + 1, m):
            S[j, k] /= pivot
            column[j] = S[j, k]
        for j in range(k + 1, m):
            weight = column[j]
            for i in range(k + 1, j + 1):
                S[j, i] -= weight * column[i]


@summing
def substitute(L: Doubles, y: Doubles) -> None:  # pragma: no cover - compiled
    """L Lᵀ y = y, in place."""
    m = len(L)
    for j in range(m):
        total = y[j]
        for k in range(j):
            total -= L[j, k] * y[k]
        y[j] = total / L[j, j]
    for j in range(m - 1, -1, -1):
        y[j] /= L[j, j]
        for k in range(j):
            y[k] -= L[j, k] * y[j]


@summing
def _solve(
    P: Doubles, p: Doubles, q: Doubles, r: Doubles, c: Doubles, x: Doubles, y: Doubles, S: Doubles, space: Doubles
) -> None:  # pragma: no cover - compiled
    """(x, y) with r∘x + P y = p and Pᵀ x + c∘y = q, for the row sums r and column sums c of P (n ≥ m)."""
    n, m = P.shape
    for i in range(n):
        x[i] = 1 / r[i] if r[i] > 0 else 0.0
    schur(P, x, c, S)
    # Only what the system can reach is asked for: Σp = Σq.
    excess = (q.sum() - p.sum()) / c.sum()
    for j in range(m):
        y[j] = q[j] - excess * c[j]
    for i in range(n):
        weight = p[i] * x[i]
        for j in range(m):
            y[j] -= weight * P[i, j]
    factor(S, space)
    substitute(S, y)
    for i in range(n):
        total = p[i]
        for j in range(m):
            total -= P[i, j] * y[j]
        x[i] *= total


@njit(cache=True, parallel=True, nogil=True, error_model="numpy")
def implicit_gradients(
    T: Floats,
    W: Floats,
    p: Doubles,
    q: Doubles,
    reg: Doubles,
    gradient: Floats,
    x: Doubles,
    y: Doubles,
    reg_gradient: Doubles,
    chunks: int,
) -> None:  # pragma: no cover - compiled
    """∂L/∂C (B, n, m), (x, y) = (∂L/∂a, ∂L/∂b)/ε and ∂L/∂ε (B,) from plans T and W = ∂L/∂T (B, n, m).

    p = ∂L/∂f (B, n) and q = ∂L/∂g (B, m) are overwritten. The mathematics stands in ``solvers.sinkhorn_gradient``.
    """
    batch, n, m = T.shape
    small, large = min(n, m), max(n, m)
    for chunk in prange(chunks):
        P, S, space = np.empty((large, small)), np.empty((small, small)), np.empty(small)
        r, c = np.empty(n), np.empty(m)
        for b in range(chunk * batch // chunks, (chunk + 1) * batch // chunks):
            eps = reg[b]
            c[:] = 0.0
            for i in range(n):
                total, moved = 0.0, 0.0
                for j in range(m):
                    t = np.float64(T[b, i, j])
                    wt = W[b, i, j] * t / eps
                    total += t
                    moved += wt
                    c[j] += t
                    q[b, j] += wt
                r[i] = total
                p[b, i] += moved
            if n >= m:
                for i in range(n):
                    for j in range(m):
                        P[i, j] = T[b, i, j]
                _solve(P, p[b], q[b], r, c, x[b], y[b], S, space)
            else:
                for i in range(n):
                    for j in range(m):
                        P[j, i] = T[b, i, j]
                _solve(P, q[b], p[b], c, r, y[b], x[b], S, space)
            slope = 0.0
            for i in range(n):
                for j in range(m):
                    t = np.float64(T[b, i, j])
                    change = t * (x[b, i] + y[b, j] - W[b, i, j] / eps)
                    gradient[b, i, j] = change
            if reg_gradient.size > 0:
                for i in range(n):
                    for j in range(m):
                        if T[b, i, j] > 0:
                            slope += np.log(np.float64(T[b, i, j])) * np.float64(gradient[b, i, j])
                reg_gradient[b] = slope
