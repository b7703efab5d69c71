"""Dense symmetric systems [[diag(r), P], [Pᵀ, diag(c)]] of small size, by the Schur complement of the shorter side.

Matrices have ``width`` columns, a multiple of a vector's lanes; those beyond the m that count are zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled, summing
from solvers.kernels.vectors import LANES, constant, load, multiply_add, spread, store

Doubles = NDArray[np.float64]

DAMPING = 1e-14
"""Nearly decoupled plans (small ε) leave directions without curvature: they are damped at rounding level."""


@compiled
def _four_columns(P: Doubles, weights: Doubles, S: Doubles, j: int, k: int) -> None:  # pragma: no cover - compiled
    """Rows j … j + 3 of −Pᵀ diag(weights) P, from column k on, a vector's length."""
    width, zero = P.shape[1], constant(0.0)
    s0, s1, s2, s3 = zero, zero, zero, zero
    for i in range(len(P)):
        first = i * width
        p = load(P, first + k) * (zero - spread(weights, i))
        s0 = multiply_add(spread(P, first + j), p, s0)
        s1 = multiply_add(spread(P, first + j + 1), p, s1)
        s2 = multiply_add(spread(P, first + j + 2), p, s2)
        s3 = multiply_add(spread(P, first + j + 3), p, s3)
    store(S, j * width + k, s0)
    store(S, (j + 1) * width + k, s1)
    store(S, (j + 2) * width + k, s2)
    store(S, (j + 3) * width + k, s3)


@compiled
def _four_columns_twice(
    P: Doubles, weights: Doubles, S: Doubles, j: int, k: int
) -> None:  # pragma: no cover - compiled
    """As above, two vectors' lengths."""
    width, zero = P.shape[1], constant(0.0)
    s0, s1, s2, s3, t0, t1, t2, t3 = zero, zero, zero, zero, zero, zero, zero, zero
    for i in range(len(P)):
        first = i * width
        weight = zero - spread(weights, i)
        p, q = load(P, first + k) * weight, load(P, first + k + LANES) * weight
        w = spread(P, first + j)
        s0, t0 = multiply_add(w, p, s0), multiply_add(w, q, t0)
        w = spread(P, first + j + 1)
        s1, t1 = multiply_add(w, p, s1), multiply_add(w, q, t1)
        w = spread(P, first + j + 2)
        s2, t2 = multiply_add(w, p, s2), multiply_add(w, q, t2)
        w = spread(P, first + j + 3)
        s3, t3 = multiply_add(w, p, s3), multiply_add(w, q, t3)
    k += j * width
    store(S, k, s0)
    store(S, k + LANES, t0)
    store(S, k + width, s1)
    store(S, k + width + LANES, t1)
    store(S, k + 2 * width, s2)
    store(S, k + 2 * width + LANES, t2)
    store(S, k + 3 * width, s3)
    store(S, k + 3 * width + LANES, t3)


@compiled
def schur(P: Doubles, inverse_r: Doubles, c: Doubles, S: Doubles) -> None:  # pragma: no cover - compiled
    """Upper half of diag(c) − Pᵀ diag(1/r) P + c cᵀ/Σc (m, m), whose last term fixes the constant; damped.

    P is (n, width), S (width, width) and c (m,).
    """
    m, width = len(c), P.shape[1]
    for j in range(0, m, 4):
        k = j // LANES * LANES
        while k + 2 * LANES <= width:
            _four_columns_twice(P, inverse_r, S, j, k)
            k += 2 * LANES
        if k < width:
            _four_columns(P, inverse_r, S, j, k)
    sum_c, largest = c.sum(), c.max()
    for j in range(m):
        share = c[j] / sum_c
        for k in range(j, m):
            S[j, k] += share * c[k]
        S[j, j] += c[j] + DAMPING * largest if c[j] > 0 else 1.0


@compiled
def factor(S: Doubles, m: int) -> None:  # pragma: no cover - compiled
    """Cholesky's upper factor in place of the upper half of S; what is below the diagonal is lost."""
    width = S.shape[1]
    zero = constant(0.0)
    for k in range(m):
        # A pivot lost to rounding is a direction without curvature: nothing moves along it.
        pivot = np.sqrt(S[k, k]) if S[k, k] > 0 else np.inf
        row, inverse = k * width, constant(1 / pivot)
        for v in range(k // LANES * LANES, width, LANES):
            store(S, row + v, load(S, row + v) * inverse)
        S[k, k] = pivot
        for j in range(k + 1, m):
            weight = zero - spread(S, row + j)
            for v in range(j // LANES * LANES, width, LANES):
                store(S, j * width + v, multiply_add(weight, load(S, row + v), load(S, j * width + v)))


@summing
def substitute(U: Doubles, y: Doubles) -> None:  # pragma: no cover - compiled
    """Uᵀ U y = y (m,), in place."""
    m = len(y)
    for k in range(m):
        y[k] /= U[k, k]
        for j in range(k + 1, m):
            y[j] -= y[k] * U[k, j]
    for k in range(m - 1, -1, -1):
        total = y[k]
        for j in range(k + 1, m):
            total -= U[k, j] * y[j]
        y[k] = total / U[k, k]
