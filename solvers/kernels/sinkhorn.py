"""Sinkhorn's iteration on the CPU: kernel-domain speed with log-domain safety.

The plan is T_ij = u_i K_ij v_j with K_ij = exp((f_i + g_j − C_ij)/ε). The scalings u, v are cheap to update but would
overflow for small ε: as soon as one leaves the safe range, or a sum underflows, they are absorbed into the potentials
f, g (Schmitzer, SIAM J. Sci. Comput. 41(3), 2019) and the iteration is done in the log domain. Each iteration reads K
once: four rows are summed, scaled and added to the column sums while they are in cache.

K, u and v have the cost's dtype; potentials and errors are float64, and so is the exponent before it is rounded.
Small problems run side by side. The rows of a large one run side by side in blocks, whose number depends on the size
of the problem alone: an answer depends neither on the batch around it nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from solvers.kernels.exponential import exp32, exp64
from solvers.kernels.intrinsics import smaller

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

LARGE = 1 << 18  # entries from which a problem is worth splitting into blocks of rows
BLOCK = 1 << 16  # entries of a block
LANES = 16  # rows of K are padded to a multiple of a vector's length

compiled = njit(cache=True, nogil=True, error_model="numpy")
summing = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
inlined = njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"}, forceinline=True
)  # a call counts references to every array, which is long beside a small problem's iteration


@compiled
def _largest(K: Floats) -> float:  # pragma: no cover - compiled
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
def _fill(
    C: Floats, reg: float, f: Doubles, g: Doubles, K: Floats, u: Floats, v: Floats, first: int, last: int
) -> None:  # pragma: no cover - compiled
    """Rows ``first`` … ``last`` of K = exp((f + g − C)/ε), with scalings of one where there is mass."""
    m = C.shape[1]
    inverse = 1 / reg
    for i in range(first, last):
        u[i] = 1.0 if f[i] > -np.inf else 0.0
        if u[i] == 0.0:  # no weight: any row with a positive sum will do, its scaling stays 0
            K[i, :m] = 1.0
        elif K.itemsize == 4:
            for j in range(m):
                K[i, j] = exp32(np.float32((f[i] + g[j] - C[i, j]) * inverse))
        else:
            for j in range(m):
                K[i, j] = exp64((f[i] + g[j] - C[i, j]) * inverse)
        K[i, m:] = 0.0
    if first == 0:
        v[m:] = 0.0
        for j in range(m):
            v[j] = 1.0 if g[j] > -np.inf else 0.0


@inlined
def _scale_rows(
    K: Floats, a: Floats, v: Floats, new_u: Floats, sums: Floats, first: int, last: int
) -> None:  # pragma: no cover - compiled
    """New scalings of the rows ``first`` … ``last`` and the column sums they give, four rows at a time."""
    width = K.shape[1]
    zero = K.dtype.type(0)
    sums[:] = zero
    fours = first + (last - first) // 4 * 4
    for i in range(first, fours, 4):
        t0, t1, t2, t3 = zero, zero, zero, zero
        for j in range(width):
            t0 += K[i, j] * v[j]
            t1 += K[i + 1, j] * v[j]
            t2 += K[i + 2, j] * v[j]
            t3 += K[i + 3, j] * v[j]
        s0, s1, s2, s3 = a[i] / t0, a[i + 1] / t1, a[i + 2] / t2, a[i + 3] / t3
        new_u[i], new_u[i + 1], new_u[i + 2], new_u[i + 3] = s0, s1, s2, s3
        for j in range(width):
            sums[j] += (s0 * K[i, j] + s1 * K[i + 1, j]) + (s2 * K[i + 2, j] + s3 * K[i + 3, j])
    for i in range(fours, last):
        t0 = zero
        for j in range(width):
            t0 += K[i, j] * v[j]
        s0 = a[i] / t0
        new_u[i] = s0
        for j in range(width):
            sums[j] += s0 * K[i, j]


@summing
def _stream_rows(
    K: Floats, a: Floats, v: Floats, new_u: Floats, sums: Floats, first: int, last: int
) -> None:  # pragma: no cover - compiled
    """``_scale_rows`` for a K in main memory: four rows are added to the sums while the next four are on their way."""
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
    for j in range(width):
        sums[j] += (s0 * K[done, j] + s1 * K[done + 1, j]) + (s2 * K[done + 2, j] + s3 * K[done + 3, j])
    for i in range(done + 4, last):
        t0 = zero
        for j in range(width):
            t0 += K[i, j] * v[j]
        s0 = a[i] / t0
        new_u[i] = s0
        for j in range(width):
            sums[j] += s0 * K[i, j]


@inlined
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


@inlined
def _scale_columns(K: Floats, b: Floats, sums: Floats, new_v: Floats) -> bool:  # pragma: no cover - compiled
    """New column scalings from the column sums; returns whether all are in range."""
    one, largest = K.dtype.type(1), _largest(K)
    low, high = one, one
    for j in range(len(b)):
        scaling = b[j] / sums[j] if b[j] > 0 else one
        low, high = smaller(scaling, low), -smaller(-scaling, -high)
        new_v[j] = scaling if b[j] > 0 else K.dtype.type(0)
    return (low > 1 / largest) & (high < largest)


@compiled
def _absorb(reg: float, potential: Doubles, scaling: Floats) -> None:  # pragma: no cover - compiled
    for i in range(len(potential)):
        if scaling[i] > 0:
            potential[i] += reg * np.log(np.float64(scaling[i]))


@summing
def _log_rows(
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
def _column_lows(C: Floats, f: Doubles, lows: Doubles, first: int, last: int) -> None:  # pragma: no cover - compiled
    """min_i C_ij − f_i over the rows ``first`` … ``last``."""
    m = C.shape[1]
    lows[:] = np.inf
    for i in range(first, last):
        for j in range(m):
            lows[j] = min(lows[j], C[i, j] - f[i])


@summing
def _column_totals(
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


@summing
def _plan(K: Floats, u: Floats, v: Floats, T: Floats, first: int, last: int) -> None:  # pragma: no cover - compiled
    for i in range(first, last):
        for j in range(T.shape[1]):
            T[i, j] = u[i] * K[i, j] * v[j]


def _driver(loop: Callable[..., Any], scale: Callable[..., None]) -> Any:
    """The iteration of one problem, compiled with its blocks in sequence (``range``) or side by side (``prange``)."""

    @njit(cache=True, nogil=True, error_model="numpy", parallel=loop is prange)
    def solve(
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
        T: Floats,
        rows: Floats,
        columns: Floats,
        totals: Doubles,
        blocks: int,
    ) -> tuple[int, bool]:  # pragma: no cover - compiled
        """Iterations ``start`` … ``stop`` from g; returns the iteration reached and whether it converged."""
        n = len(a)
        u, new_u, weights = rows[0], rows[1], rows[2]
        height = len(K)  # n, or a few rows more that have no weight
        weights[:n] = a
        weights[n:] = 0.0
        v, new_v, sums, all_sums = columns[0], columns[1], columns[2:], columns[2]
        largest = _largest(K)
        errors, safes = np.empty(blocks), np.empty(blocks, np.bool_)
        for block in loop(blocks):  # f so that every row of K has a one
            for i in range(block * n // blocks, (block + 1) * n // blocks):
                f[i] = row_lowest(C[i], g) if a[i] > 0 else -np.inf
            _fill(C, reg, f, g, K, u, v, block * n // blocks, (block + 1) * n // blocks)
        iteration, converged = start, False
        while True:
            for block in loop(blocks):
                scale(K, weights, v, new_u, sums[block], block * height // blocks, (block + 1) * height // blocks)
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
            _absorb(reg, g, v)
            for block in loop(blocks):
                _log_rows(C, a, reg, f, g, block * n // blocks, (block + 1) * n // blocks)
                _column_lows(C, f, totals[block], block * n // blocks, (block + 1) * n // blocks)
            lows = totals[blocks]
            lows[:] = totals[0]
            for block in range(1, blocks):
                lows[:] = np.minimum(lows, totals[block])
            for block in loop(blocks):
                _column_totals(C, reg, f, lows, totals[block], block * n // blocks, (block + 1) * n // blocks)
            for block in range(1, blocks):
                totals[0] += totals[block]
            for j in range(len(b)):
                g[j] = lows[j] + reg * (np.log(np.float64(b[j])) - np.log(totals[0, j])) if b[j] > 0 else -np.inf
            for block in loop(blocks):
                _fill(C, reg, f, g, K, u, v, block * n // blocks, (block + 1) * n // blocks)
        for block in loop(blocks):
            _plan(K, u, v, T, block * n // blocks, (block + 1) * n // blocks)
        _absorb(reg, f, u)
        _absorb(reg, g, v)
        return iteration, converged

    return solve


_solve, _solve_in_blocks = _driver(range, _scale_rows), _driver(prange, _stream_rows)


@njit(cache=True, parallel=True, nogil=True, error_model="numpy")
def _solve_batch(
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
    """Small problems, side by side."""
    batch, n, m = C.shape
    height, width = (n + 3) // 4 * 4, (m + LANES - 1) // LANES * LANES
    for chunk in prange(chunks):
        K, totals = np.ones((height, width), T.dtype), np.empty((2, m))
        rows, columns = np.empty((3, height), T.dtype), np.zeros((3, width), T.dtype)
        for k in range(chunk * batch // chunks, (chunk + 1) * batch // chunks):
            if not converged[k] and iterations[k] < stop[k]:
                iterations[k], converged[k] = _solve(
                    C[k], a[k], b[k], reg[k], limit[k], iterations[k], stop[k],
                    f[k], g[k], K, T[k], rows, columns, totals, 1,
                )  # fmt: skip


@compiled
def _solve_one_by_one(
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
    blocks: int,
) -> None:  # pragma: no cover - compiled
    """Large problems, one after the other, each in blocks side by side; K becomes the plan in place."""
    batch, n, m = C.shape
    rows, columns = np.empty((3, n), T.dtype), np.empty((2 + blocks, m), T.dtype)
    totals = np.empty((blocks + 1, m))
    for k in range(batch):
        if not converged[k] and iterations[k] < stop[k]:
            iterations[k], converged[k] = _solve_in_blocks(
                C[k], a[k], b[k], reg[k], limit[k], iterations[k], stop[k],
                f[k], g[k], T[k], T[k], rows, columns, totals, blocks,
            )  # fmt: skip


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
    if n * m < LARGE:
        chunks = min(batch, 8 * threads if threads > 1 else 1)
        _solve_batch(C, a, b, reg, limit, stop, f, g, T, iterations, converged, chunks)
    else:
        blocks = max(1, min(n // 4, n * m // BLOCK))
        _solve_one_by_one(C, a, b, reg, limit, stop, f, g, T, iterations, converged, blocks)
