"""Sinkhorn's iteration on the CPU for large problems, whose kernel lies in main memory and is read once an iteration.

Four rows are summed, scaled and added to the column sums while they are in cache. The rows run side by side in blocks,
whose number depends on the size of the problem alone: an answer does not depend on the number of threads. The rest is
as in ``kernels.sinkhorn``.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled, parallel, summing
from solvers.kernels.exponential import exp32, exp64
from solvers.kernels.intrinsics import smaller
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

BLOCK, BLOCKS = 1 << 14, 32  # least entries of a block, and the most blocks: their column sums pass through memory


@compiled
def _fill(
    C: Floats, reg: float, f: Doubles, g: Doubles, K: Floats, u: Floats, v: Floats, first: int, last: int
) -> None:  # pragma: no cover - compiled
    """Rows ``first`` … ``last`` of K = exp((f + g − C)/ε), with scalings of one where there is mass."""
    m = C.shape[1]
    inverse = 1 / reg
    for i in range(first, last):
        u[i] = 1.0 if f[i] > -np.inf else 0.0
        if u[i] == 0.0:  # no weight: any row with a positive sum will do, its scaling stays 0
            K[i] = 1.0
        elif K.itemsize == 4:
            for j in range(m):
                K[i, j] = exp32(np.float32((f[i] + g[j] - C[i, j]) * inverse))
        else:
            for j in range(m):
                K[i, j] = exp64((f[i] + g[j] - C[i, j]) * inverse)
    if first == 0:
        for j in range(m):
            v[j] = 1.0 if g[j] > -np.inf else 0.0


@summing
def _stream_rows(
    K: Floats, a: Floats, v: Floats, new_u: Floats, sums: Floats, first: int, last: int
) -> None:  # pragma: no cover - compiled
    """New scalings of rows and the column sums they give: four rows are added while the next four are on their way."""
    width = K.shape[1]
    zero = K.dtype.type(0)
    sums[:] = zero
    s0, s1, s2, s3 = zero, zero, zero, zero
    done = first
    for i in range(first, last - 3, 4):
        t0, t1, t2, t3 = zero, zero, zero, zero
        for j in range(width):
            sums[j] += (s0 * K[done, j] + s1 * K[done + 1, j]) + (s2 * K[done + 2, j] + s3 * K[done + 3, j])
            t0 += K[i, j] * v[j]
            t1 += K[i + 1, j] * v[j]
            t2 += K[i + 2, j] * v[j]
            t3 += K[i + 3, j] * v[j]
        s0, s1, s2, s3 = a[i] / t0, a[i + 1] / t1, a[i + 2] / t2, a[i + 3] / t3
        new_u[i], new_u[i + 1], new_u[i + 2], new_u[i + 3] = s0, s1, s2, s3
        done = i
    if last - first >= 4:
        for j in range(width):
            sums[j] += (s0 * K[done, j] + s1 * K[done + 1, j]) + (s2 * K[done + 2, j] + s3 * K[done + 3, j])
        done += 4
    for i in range(done, last):
        t0 = zero
        for j in range(width):
            t0 += K[i, j] * v[j]
        s0 = a[i] / t0
        new_u[i] = s0
        for j in range(width):
            sums[j] += s0 * K[i, j]


@summing
def _row_error(
    a: Floats, u: Floats, new_u: Floats, largest: float, first: int, last: int
) -> tuple[float, bool]:  # pragma: no cover - compiled
    """‖u∘(K v) − a‖₁ of the scalings before, from K v = a / new_u, and whether all new ones are in range."""
    one = a.dtype.type(1)
    error, low, high = a.dtype.type(0), one, one
    for i in range(first, last):
        scaling = new_u[i] if a[i] > 0 else one
        error += abs(u[i] / scaling * a[i] - a[i])
        low, high = smaller(scaling, low), -smaller(-scaling, -high)
    return np.float64(error), bool(low > 1 / largest and high < largest)


@summing
def _scale_columns(K: Floats, b: Floats, sums: Floats, new_v: Floats) -> bool:  # pragma: no cover - compiled
    """New column scalings from the column sums; returns whether all are in range."""
    one, largest = K.dtype.type(1), largest_scaling(K)
    low, high = one, one
    for j in range(len(b)):
        scaling = b[j] / sums[j] if b[j] > 0 else one
        low, high = smaller(scaling, low), -smaller(-scaling, -high)
        new_v[j] = scaling if b[j] > 0 else K.dtype.type(0)
    return (low > 1 / largest) & (high < largest)


@summing
def _plan(K: Floats, u: Floats, v: Floats, first: int, last: int) -> None:  # pragma: no cover - compiled
    """Rows ``first`` … ``last`` of K become those of the plan u∘K∘v."""
    for i in range(first, last):
        for j in range(K.shape[1]):
            K[i, j] = u[i] * K[i, j] * v[j]


@parallel
def _solve(
    C: Floats,
    a: Floats,
    b: Floats,
    reg: float,
    limit: float,
    start: int,
    stop: int,
    f: Doubles,
    g: Doubles,
    K: Floats,
    rows: Floats,
    columns: Floats,
    totals: Doubles,
    blocks: int,
) -> tuple[int, bool]:  # pragma: no cover - compiled
    """Iterations ``start`` … ``stop`` from g: the iteration reached and whether it converged. K becomes the plan."""
    n = len(a)
    u, new_u = rows
    v, new_v, sums, all_sums = columns[0], columns[1], columns[2:], columns[2]
    largest = largest_scaling(K)
    errors, safes = np.empty(blocks), np.empty(blocks, np.bool_)
    for block in prange(blocks):  # f so that every row of K has a one
        for i in range(block * n // blocks, (block + 1) * n // blocks):
            f[i] = row_lowest(C[i], g) if a[i] > 0 else -np.inf
        _fill(C, reg, f, g, K, u, v, block * n // blocks, (block + 1) * n // blocks)
    iteration, converged = start, False
    while True:
        for block in prange(blocks):
            _stream_rows(K, a, v, new_u, sums[block], block * n // blocks, (block + 1) * n // blocks)
            errors[block], safes[block] = _row_error(
                a, u, new_u, largest, block * n // blocks, (block + 1) * n // blocks
            )
        # The columns being exact, the error of the rows is that of the plan; before an iteration they are not.
        error, safe = 0.0, True
        for block in range(blocks):
            error += errors[block]
            safe = safe and safes[block]
        converged = iteration > start and error <= limit
        if converged or iteration >= stop:
            break
        iteration += 1
        for block in range(1, blocks):
            all_sums += sums[block]
        if safe and _scale_columns(K, b, all_sums, new_v):
            for i in range(n):
                u[i] = new_u[i]
            for j in range(len(b)):
                v[j] = new_v[j]
            continue
        # Out of range: this iteration is done again from the absorbed potentials, in the log domain.
        absorb(reg, g, v)
        for block in prange(blocks):
            log_rows(C, a, reg, f, g, block * n // blocks, (block + 1) * n // blocks)
            column_lows(C, f, totals[block], block * n // blocks, (block + 1) * n // blocks)
        lows = totals[blocks]
        lows[:] = totals[0]
        for block in range(1, blocks):
            lows[:] = np.minimum(lows, totals[block])
        for block in prange(blocks):
            column_totals(C, reg, f, lows, totals[block], block * n // blocks, (block + 1) * n // blocks)
        for block in range(1, blocks):
            totals[0] += totals[block]
        for j in range(len(b)):
            g[j] = lows[j] + reg * (np.log(np.float64(b[j])) - np.log(totals[0, j])) if b[j] > 0 else -np.inf
        for block in prange(blocks):
            _fill(C, reg, f, g, K, u, v, block * n // blocks, (block + 1) * n // blocks)
    for block in prange(blocks):
        _plan(K, u, v, block * n // blocks, (block + 1) * n // blocks)
    absorb(reg, f, u)
    absorb(reg, g, v)
    return iteration, converged


@compiled
def solve_in_blocks(
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
) -> None:  # pragma: no cover - compiled
    """``sinkhorn_plans`` of large problems, one after the other; K becomes the plan in place."""
    batch, n, m = C.shape
    blocks = max(1, min(n // 4, n * m // BLOCK, BLOCKS))
    rows, columns = np.empty((2, n), T.dtype), np.empty((2 + blocks, m), T.dtype)
    totals = np.empty((blocks + 1, m))
    for k in range(batch):
        if not converged[k] and iterations[k] < stop[k]:
            iterations[k], converged[k] = _solve(
                C[k], a[k], b[k], reg[k], limit[k], iterations[k], stop[k],
                f[k], g[k], T[k], rows, columns, totals, blocks,
            )  # fmt: skip
