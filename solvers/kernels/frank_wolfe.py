"""Frank–Wolfe on the quadratic assignment over doubly stochastic matrices (Vogelstein et al., PLoS ONE 10(4) (2015)).

With f(P) = ⟨A P Bᵀ, P⟩ + ⟨L, P⟩, F(P) = ∇f(P) = A P Bᵀ + Aᵀ P B + L is affine in P: along the step from P to a
permutation Q it is interpolated, and F(Q) is one product with permuted rows of Bᵀ (two, where A or B is not symmetric).
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from solvers.kernels.assignment import shortest_augmenting_path
from solvers.kernels.compiling import compiled, parallel, summing
from solvers.kernels.vectors import LANES, constant, load, multiply_add, padded, spread, store

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

WIDTH = 16  # rows are padded to a multiple of it


@compiled
def _add_product(
    A: Doubles, rows: Doubles, q: Integers, factor: float, out: Doubles
) -> None:  # pragma: no cover - compiled
    """out (n, width) += factor A M, where row k of M is row q[k] of ``rows`` (n, width); A (n + 3, n) is padded."""
    n, width = len(q), out.shape[1]
    zero, scale = constant(0.0), constant(factor)
    for j in range(0, width, 2 * LANES):
        for i in range(0, n, 4):
            a0, a1, a2, a3, b0, b1, b2, b3 = zero, zero, zero, zero, zero, zero, zero, zero
            for k in range(n):
                row = q[k] * width + j
                x, y = load(rows, row), load(rows, row + LANES)
                c = i * n + k
                a0, b0 = multiply_add(spread(A, c), x, a0), multiply_add(spread(A, c), y, b0)
                a1, b1 = multiply_add(spread(A, c + n), x, a1), multiply_add(spread(A, c + n), y, b1)
                a2, b2 = multiply_add(spread(A, c + 2 * n), x, a2), multiply_add(spread(A, c + 2 * n), y, b2)
                a3, b3 = multiply_add(spread(A, c + 3 * n), x, a3), multiply_add(spread(A, c + 3 * n), y, b3)
            o = i * width + j
            store(out, o, multiply_add(scale, a0, load(out, o)))
            store(out, o + LANES, multiply_add(scale, b0, load(out, o + LANES)))
            o += width
            store(out, o, multiply_add(scale, a1, load(out, o)))
            store(out, o + LANES, multiply_add(scale, b1, load(out, o + LANES)))
            o += width
            store(out, o, multiply_add(scale, a2, load(out, o)))
            store(out, o + LANES, multiply_add(scale, b2, load(out, o + LANES)))
            o += width
            store(out, o, multiply_add(scale, a3, load(out, o)))
            store(out, o + LANES, multiply_add(scale, b3, load(out, o + LANES)))


@summing
def _products(F: Doubles, FQ: Doubles, P: Doubles) -> tuple[float, float, float]:  # pragma: no cover - compiled
    """⟨F, P⟩, ⟨F(Q), P⟩ and ⟨P, P⟩."""
    n = P.shape[1]
    first, second, third = 0.0, 0.0, 0.0
    for i in range(n):
        for j in range(n):
            first += F[i, j] * P[i, j]
            second += FQ[i, j] * P[i, j]
            third += P[i, j] * P[i, j]
    return first, second, third


@compiled
def _descend(
    A: Doubles, AT: Doubles, B: Doubles, BT: Doubles, L: Doubles, symmetric: bool, P: Doubles, F: Doubles, steps: int,
    tolerance: float,
) -> tuple[int, bool]:  # pragma: no cover - compiled  # fmt: skip
    """Frank–Wolfe from P (n, n) with its gradient F (n + 3, width), both in place: steps made, and convergence."""
    n, width = P.shape[1], F.shape[1]
    FQ = np.empty_like(F)
    p, match = np.empty(n, np.int64), np.empty(width, np.int64)
    u, v = np.empty(n), np.empty(width)
    values, indices = np.empty((3, width)), np.empty((4, width), np.int64)
    for step in range(steps):
        shortest_augmenting_path(F[:n], True, p, match, u, v, values, indices, step > 0)
        FQ[:] = L
        _add_product(A, BT, p, 2.0 if symmetric else 1.0, FQ)
        if not symmetric:
            _add_product(AT, B, p, 1.0, FQ)
        here, there, size = _products(F, FQ, P)
        at_q, at_q_there, met = 0.0, 0.0, 0.0
        for i in range(n):
            at_q += F[i, p[i]]
            at_q_there += FQ[i, p[i]]
            met += P[i, p[i]]
        # f(P + α D) = f(P) + α ⟨F, D⟩ + α²/2 ⟨F(Q) − F, D⟩ with D = Q − P.
        slope = at_q - here
        curvature = 0.5 * ((at_q_there - at_q) - (there - here))
        if curvature > 0:
            alpha = min(1.0, max(0.0, -slope / (2 * curvature)))
        else:
            alpha = 1.0 if slope + curvature < 0 else 0.0
        for i in range(n):
            for j in range(n):
                P[i, j] *= 1 - alpha
                F[i, j] += alpha * (FQ[i, j] - F[i, j])
            P[i, p[i]] += alpha
        moved = alpha * np.sqrt(max(0.0, size - 2 * met + n) / n)
        if moved < tolerance or moved == 0.0:
            return step + 1, True
    return steps, False


@parallel
def frank_wolfe(
    A: Doubles, B: Doubles, L: Doubles, symmetric: bool, P: Doubles, F: Doubles, steps: int, tolerance: float
) -> tuple[Integers, NDArray[np.bool_]]:  # pragma: no cover - compiled
    """From every P (starts, n, n), whose quadratic gradients are F (starts, n, n): P in place; steps, convergence.

    A, B, L (n, n) float64. A start has converged when ‖P' − P‖_F / √n < tolerance.
    """
    starts, n = P.shape[:2]
    width = padded(n, WIDTH)
    wide, wide_T, tall, tall_T = np.zeros((n, width)), np.zeros((n, width)), np.zeros((n + 3, n)), np.zeros((n + 3, n))
    linear = np.full((n + 3, width), np.inf)
    for i in range(n):
        for j in range(n):
            wide[i, j], wide_T[i, j], linear[i, j] = B[i, j], B[j, i], L[i, j]
            tall[i, j], tall_T[i, j] = A[i, j], A[j, i]
    made, converged = np.zeros(starts, np.int64), np.zeros(starts, np.bool_)
    for k in prange(starts):
        gradient = linear.copy()
        for i in range(n):
            for j in range(n):
                gradient[i, j] += F[k, i, j]
        made[k], converged[k] = _descend(
            tall, tall_T, wide, wide_T, linear, symmetric, P[k], gradient, steps, tolerance
        )
    return made, converged
