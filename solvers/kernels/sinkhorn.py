"""Sinkhorn's iteration on the CPU: kernel-domain speed with log-domain safety.

The plan is T_ij = u_i K_ij v_j with K_ij = exp((f_i + g_j − C_ij)/ε). The scalings u, v are cheap to update but would
overflow for small ε: as soon as one leaves the safe range, or a sum underflows, they are absorbed into the potentials
f, g (Schmitzer, SIAM J. Sci. Comput. 41(3), 2019) and the iteration is done in the log domain.

The kernel of a small problem lies in cache by rows and by columns, so that both sums, K v and Kᵀ u, add whole vectors.
Problems run side by side; an answer does not depend on the batch around it. K, u and v have the cost's dtype;
potentials and errors are float64, and so is the exponent before it is rounded.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled, inlined, parallel
from solvers.kernels.exponential import exp32, exp64
from solvers.kernels.potentials import (
    Doubles,
    Floats,
    Integers,
    absorb,
    column_lows,
    column_totals,
    largest_scaling,
    log_rows,
    row_lowest,
)
from solvers.kernels.sinkhorn_blocks import solve_in_blocks
from solvers.kernels.vectors import (
    BYTES,
    absolute,
    aligned_zeros,
    constant,
    greatest,
    highest,
    least,
    load,
    lowest,
    multiply_add,
    padded,
    spread,
    store,
    total,
    where_positive,
)

LARGE = 1 << 19  # bytes of a cost matrix from which its kernel, twice, is no longer in cache
RUN = 16  # entries of a row whose loop is unrolled


class Space(NamedTuple):
    """What one problem at a time is solved in; both sides are padded with zeros to whole vectors."""

    K: Floats  # (n, m)
    K_T: Floats  # (m, n)
    rows: Floats  # a, u, the next u, K v
    columns: Floats  # b, v, the next v, Kᵀ u
    totals: Doubles  # (2, m)


@compiled
def space_for(C: Floats) -> Space:  # pragma: no cover - compiled
    """The space for problems of the shape and dtype of C (n, m)."""
    lanes = BYTES // C.itemsize
    n, m = C.shape
    height, width = padded(n, lanes), padded(m, lanes)
    return Space(
        aligned_zeros(height * width, C.dtype).reshape(height, width),
        aligned_zeros(width * height, C.dtype).reshape(width, height),
        aligned_zeros(4 * height, C.dtype).reshape(4, height),
        aligned_zeros(4 * width, C.dtype).reshape(4, width),
        np.empty((2, m)),
    )


@inlined
def _weighted_sum(K: Floats, weights: Floats, sums: Floats, n: int) -> None:  # pragma: no cover - compiled
    """Σ_i weights_i K_i over the first n rows, rounded up to whole fours."""
    width, lanes = K.shape[1], BYTES // K.itemsize
    zero = constant(K.dtype.type(0))
    j = 0
    while j + 4 * lanes <= width:
        s0, s1, s2, s3, t0, t1, t2, t3 = zero, zero, zero, zero, zero, zero, zero, zero
        for i in range(0, n, 2):
            k = i * width + j
            w = spread(weights, i)
            s0 = multiply_add(w, load(K, k), s0)
            s1 = multiply_add(w, load(K, k + lanes), s1)
            s2 = multiply_add(w, load(K, k + 2 * lanes), s2)
            s3 = multiply_add(w, load(K, k + 3 * lanes), s3)
            k += width
            w = spread(weights, i + 1)
            t0 = multiply_add(w, load(K, k), t0)
            t1 = multiply_add(w, load(K, k + lanes), t1)
            t2 = multiply_add(w, load(K, k + 2 * lanes), t2)
            t3 = multiply_add(w, load(K, k + 3 * lanes), t3)
        store(sums, j, s0 + t0)
        store(sums, j + lanes, s1 + t1)
        store(sums, j + 2 * lanes, s2 + t2)
        store(sums, j + 3 * lanes, s3 + t3)
        j += 4 * lanes
    while j < width:
        s0, s1, s2, s3 = zero, zero, zero, zero
        for i in range(0, n, 4):
            k = i * width + j
            s0 = multiply_add(spread(weights, i), load(K, k), s0)
            s1 = multiply_add(spread(weights, i + 1), load(K, k + width), s1)
            s2 = multiply_add(spread(weights, i + 2), load(K, k + 2 * width), s2)
            s3 = multiply_add(spread(weights, i + 3), load(K, k + 3 * width), s3)
        store(sums, j, (s0 + s1) + (s2 + s3))
        j += lanes


@inlined
def _scale(weights: Floats, sums: Floats, scalings: Floats) -> tuple[float, float]:  # pragma: no cover - compiled
    """scalings = weights / sums, 0 without weight; returns the least and the greatest of the others, and of 1."""
    lanes = BYTES // sums.itemsize
    one, zero = constant(sums.dtype.type(1)), constant(sums.dtype.type(0))
    low, high = one, one
    for i in range(0, len(sums), lanes):
        w = load(weights, i)
        scaling = w / load(sums, i)
        judged = where_positive(w, scaling, one)
        low, high = least(judged, low), greatest(judged, high)
        store(scalings, i, where_positive(w, scaling, zero))
    return np.float64(lowest(low)), np.float64(highest(high))


@inlined
def _error(weights: Floats, sums: Floats, scalings: Floats) -> float:  # pragma: no cover - compiled
    """‖scalings∘sums − weights‖₁."""
    error = constant(sums.dtype.type(0))
    for i in range(0, len(sums), BYTES // sums.itemsize):
        error = error + absolute(load(scalings, i) * load(sums, i) - load(weights, i))
    return np.float64(total(error))


@compiled
def _fill(
    C: Floats, reg: float, f: Doubles, g: Doubles, K: Floats, K_T: Floats, u: Floats, v: Floats
) -> None:  # pragma: no cover - compiled
    """K = exp((f + g − C)/ε) by rows and by columns, with scalings of one where there is mass."""
    n, m = C.shape
    width, inverse = K.shape[1], 1 / reg
    for j in range(m):
        v[j] = 1.0 if g[j] > -np.inf else 0.0
    for i in range(n):
        u[i] = 1.0 if f[i] > -np.inf else 0.0
        if u[i] > 0:
            for j in range(m):
                K[i, j] = (f[i] + g[j] - C[i, j]) * inverse
        else:  # no weight: any row with a positive sum will do, its scaling stays 0
            K[i, :m] = 0.0
        K[i, m:] = -np.inf
    entries = K.reshape(-1)  # in one long loop: short ones leave most of a row to code that is not vectorised
    if K.itemsize == 4:
        for k in range(n * width):
            entries[k] = exp32(entries[k])
    else:
        for k in range(n * width):
            entries[k] = exp64(entries[k])
    for i in range(n):
        for j in range(m):
            K_T[j, i] = K[i, j]


@compiled
def _write_plan(K: Floats, u: Floats, v: Floats, T: Floats) -> None:  # pragma: no cover - compiled
    """T = u∘K∘v."""
    n, m = T.shape
    whole = m // RUN * RUN
    for i in range(n):
        for first in range(0, whole, RUN):
            for j in range(first, first + RUN):
                T[i, j] = u[i] * K[i, j] * v[j]
        for j in range(whole, m):
            T[i, j] = u[i] * K[i, j] * v[j]


@compiled
def solve_in_cache(
    C: Floats,
    a: Floats,
    b: Floats,
    reg: float,
    limit: float,
    start: int,
    stop: int,
    f: Doubles,
    g: Doubles,
    T: Floats,
    space: Space,
) -> tuple[int, bool]:  # pragma: no cover - compiled
    """Iterations ``start`` … ``stop`` of one problem from g; returns the iteration reached and whether it converged."""
    n, m = C.shape
    K, K_T, rows, columns, totals = space
    weights_a, u, new_u, row_sums = rows
    weights_b, v, new_v, column_sums = columns
    weights_a[:n], weights_b[:m] = a, b
    largest = largest_scaling(K)
    for i in range(n):  # so that every row of K has a one
        f[i] = row_lowest(C[i], g) if a[i] > 0 else -np.inf
    _fill(C, reg, f, g, K, K_T, u, v)
    iteration, converged = start, False
    while True:
        _weighted_sum(K_T, v, row_sums, m)
        # The columns being exact, the error of the rows is that of the plan; before an iteration they are not.
        converged = iteration > start and _error(weights_a, row_sums, u) <= limit
        if converged or iteration >= stop:
            break
        iteration += 1
        low, high = _scale(weights_a, row_sums, new_u)
        if low > 1 / largest and high < largest:
            _weighted_sum(K, new_u, column_sums, n)
            low, high = _scale(weights_b, column_sums, new_v)
            if low > 1 / largest and high < largest:
                u, new_u, v, new_v = new_u, u, new_v, v
                continue
        # Out of range: this iteration is done again from the absorbed potentials, in the log domain.
        absorb(reg, g, v)
        log_rows(C, a, reg, f, g, 0, n)
        column_lows(C, f, totals[0], 0, n)
        column_totals(C, reg, f, totals[0], totals[1], 0, n)
        for j in range(m):
            g[j] = totals[0, j] + reg * (np.log(np.float64(b[j])) - np.log(totals[1, j])) if b[j] > 0 else -np.inf
        _fill(C, reg, f, g, K, K_T, u, v)
    _write_plan(K, u, v, T)
    absorb(reg, f, u)
    absorb(reg, g, v)
    return iteration, converged


@parallel
def _solve_side_by_side(
    C: Floats,
    a: Floats,
    b: Floats,
    reg: Doubles,
    limit: Doubles,
    stop: Integers,
    f: Doubles,
    g: Doubles,
    T: Floats,
    iterations: Integers,
    converged: NDArray[np.bool_],
    chunks: int,
) -> None:  # pragma: no cover - compiled
    batch = len(C)
    for chunk in prange(chunks):
        space = space_for(C[0])
        for k in range(chunk * batch // chunks, (chunk + 1) * batch // chunks):
            if not converged[k] and iterations[k] < stop[k]:
                iterations[k], converged[k] = solve_in_cache(
                    C[k], a[k], b[k], reg[k], limit[k], iterations[k], stop[k], f[k], g[k], T[k], space
                )


def sinkhorn_plans(
    C: Floats,
    a: Floats,
    b: Floats,
    reg: Doubles,
    limit: Doubles,
    stop: Integers,
    f: Doubles,
    g: Doubles,
    T: Floats,
    iterations: Integers,
    converged: NDArray[np.bool_],
    threads: int,
) -> None:
    """Iterate every problem that has not converged until it does, or until it has had ``stop`` iterations.

    An iteration scales the rows, then the columns, from the potential g. A problem stops when the L1 error of its row
    marginal is at most its ``limit``, the columns being exact. Called again with a larger ``stop`` it goes on.

    C (B, n, m), a (B, n), b (B, m) and T (B, n, m) share one dtype, float32 or float64, and are contiguous; C may hold
    +∞ for forbidden pairs, but no row or column with mass may hold nothing else. reg, limit (B,), f (B, n) and g (B, m)
    are float64, stop (B,) int64. Updated in place: g (−∞ where b is 0), f, T, iterations (B,), converged (B,).
    """
    batch, n, m = C.shape
    if n * m * C.itemsize < LARGE:
        chunks = min(batch, 8 * threads if threads > 1 else 1)
        _solve_side_by_side(C, a, b, reg, limit, stop, f, g, T, iterations, converged, chunks)
    else:
        solve_in_blocks(C, a, b, reg, limit, stop, f, g, T, iterations, converged)
