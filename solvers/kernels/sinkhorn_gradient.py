"""The linear system behind Sinkhorn's implicit gradient, for batches of small problems on the CPU.

Each problem stays in cache from its plan to its gradient: marginals, Schur complement, Cholesky factor, both solves.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled, parallel
from solvers.kernels.schur import factor, schur, substitute
from solvers.kernels.vectors import (
    LANES,
    aligned_zeros,
    constant,
    load,
    load_doubles,
    multiply_add,
    padded,
    store,
    store_doubles,
    total,
)

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]


@compiled
def _load(
    T: Floats, W: Floats, eps: float, P: Doubles, Q: Doubles, r: Doubles, c: Doubles, p: Doubles, q: Doubles
) -> None:  # pragma: no cover - compiled
    """P = T and Q = W∘T/ε, their row sums in r and added to p (n,), their column sums added to c and q (width,)."""
    n, m = T.shape
    width, scale, whole = P.shape[1], 1 / eps, m // LANES * LANES
    for i in range(n):
        sums_P, sums_Q = constant(0.0), constant(0.0)
        for j in range(whole, m):
            P[i, j] = T[i, j]
            Q[i, j] = np.float64(W[i, j]) * np.float64(T[i, j]) * scale
        for j in range(0, width, LANES):
            k = i * width + j
            if j < whole:
                t = load_doubles(T, i * m + j)
                store(P, k, t)
                store(Q, k, load_doubles(W, i * m + j) * t * constant(scale))
            s, t = load(P, k), load(Q, k)
            sums_P, sums_Q = sums_P + s, sums_Q + t
            store(c, j, load(c, j) + s)
            store(q, j, load(q, j) + t)
        r[i] = total(sums_P)
        p[i] += total(sums_Q)


@compiled
def _eliminated(P: Doubles, x: Doubles, y: Doubles) -> None:  # pragma: no cover - compiled
    """y − Pᵀ x in place of y (width,)."""
    n, width = P.shape
    for i in range(n):
        weight = constant(-x[i])
        for v in range(0, width, LANES):
            store(y, v, multiply_add(weight, load(P, i * width + v), load(y, v)))


@compiled
def _substituted(P: Doubles, inverse_r: Doubles, y: Doubles, x: Doubles) -> None:  # pragma: no cover - compiled
    """x − P y/r in place of x (n,)."""
    n, width = P.shape
    for i in range(n):
        sums = constant(0.0)
        for v in range(0, width, LANES):
            sums = multiply_add(load(P, i * width + v), load(y, v), sums)
        x[i] -= inverse_r[i] * total(sums)


@compiled
def _write(P: Doubles, Q: Doubles, x: Doubles, y: Doubles, gradient: Floats) -> None:  # pragma: no cover - compiled
    """P∘(x_i + y_j) − Q."""
    n, m = gradient.shape
    width, whole = P.shape[1], m // LANES * LANES
    for i in range(n):
        for j in range(0, whole, LANES):
            k = i * width + j
            store_doubles(gradient, i * m + j, load(P, k) * (constant(x[i]) + load(y, j)) - load(Q, k))
        for j in range(whole, m):
            gradient[i, j] = P[i, j] * (x[i] + y[j]) - Q[i, j]


@parallel
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
    """∂L/∂C (B, n, m), (x, y) = (∂L/∂a, ∂L/∂b)/ε and ∂L/∂ε (B,) from plans T and W = ∂L/∂T (B, n, m), n ≥ m.

    p = ∂L/∂f (B, n) and q = ∂L/∂g (B, m). The mathematics stands in ``solvers.sinkhorn_gradient``; ``reg_gradient`` is
    left alone where it is empty.
    """
    batch, n, m = T.shape
    width = padded(m, LANES)
    for chunk in prange(chunks):
        P = aligned_zeros(n * width, np.float64).reshape(n, width)
        Q = aligned_zeros(n * width, np.float64).reshape(n, width)
        S = aligned_zeros(width * width, np.float64).reshape(width, width)
        r, moved, inverse_r = np.empty(n), np.empty(n), np.empty(n)
        c, right = aligned_zeros(2 * width, np.float64).reshape(2, width)
        for b in range(chunk * batch // chunks, (chunk + 1) * batch // chunks):
            moved[:], c[:], right[:m], right[m:] = p[b], 0.0, q[b], 0.0
            _load(T[b], W[b], reg[b], P, Q, r, c, moved, right)
            # Only what the system can reach is asked for: Σ moved = Σ right.
            excess = (right.sum() - moved.sum()) / c.sum()
            for i in range(n):
                inverse_r[i] = 1 / r[i] if r[i] > 0 else 0.0
                x[b, i] = moved[i] * inverse_r[i]
            for j in range(m):
                right[j] -= excess * c[j]
            schur(P, inverse_r, c[:m], S)
            _eliminated(P, x[b], right)
            factor(S, m)
            substitute(S, right[:m])
            _substituted(P, inverse_r, right, x[b])
            y[b] = right[:m]
            _write(P, Q, x[b], right, gradient[b])
            if reg_gradient.size > 0:
                slope = 0.0
                for i in range(n):
                    for j in range(m):
                        if P[i, j] > 0:
                            slope += np.log(P[i, j]) * np.float64(gradient[b, i, j])
                reg_gradient[b] = slope
