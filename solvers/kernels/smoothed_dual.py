"""The level-1 RLT dual of a quadratic assignment by coordinate ascent on its smoothing.

U, V, R and the leaders λ are those of ``dual_ascent``. With every minimum replaced by −ε log Σ exp(−·/ε), coordinate
ascent does not stall as on the polyhedral dual: its fixed points are the optimum of the smoothed dual, which is within
ε times an entropy of the true one (Werner, "A linear programming approach to max-sum problem", IEEE PAMI 29 (2007);
Hazan and Shashua, "Norm-product belief propagation", IEEE Trans. Inf. Theory 56 (2010)). One visit to a choice (i, j)
makes the soft minima of the n − 1 rows of R_ij and the leader all equal, which is the exact step in λ_ij and U_ij, and
then does the same for the columns and V_ij; after the n choices of a row the leaders are scaled once. ε is lowered from
sweep to sweep.

The arithmetic is float32, on costs of size about one: what these sweeps are for is to place U and V well, and
``dual_ascent.finish`` then makes a bound of them in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled, inlined, parallel
from solvers.kernels.vector_functions import exp_below_zero, log_of_positive
from solvers.kernels.vectors import BYTES, constant, least, load, lowest, multiply_add, store, total

Singles = NDArray[np.float32]
Integers = NDArray[np.int64]

LANES = BYTES // 4  # numbers of a vector
PAD = 16  # rows are a multiple of it long, whatever the vectors
FAINT = np.float32(1e-30)  # a sum of exponentials below it has lost too much to underflow
ONE, ZERO, INF = np.float32(1), np.float32(0), np.float32(np.inf)


class Smoothed(NamedTuple):
    """A problem and where its smoothed dual stands, float32, C-contiguous; rows are padded to ``width``."""

    A: Singles  # (n, n)
    AT: Singles
    B: Singles  # (n, width)
    BT: Singles
    U: Singles  # (n, n, width)
    V: Singles
    leaders: Singles  # (n, width), reduced; infinite in the padding


def new_smoothed(A: NDArray, B: NDArray, L: NDArray, U: NDArray | None = None, V: NDArray | None = None) -> Smoothed:
    """The smoothed dual of a problem, from zero or from U and V (n, n, n)."""
    n = len(A)
    width = (n + PAD - 1) // PAD * PAD

    def rows(M: NDArray | None, *shape: int, fill: float = 0.0) -> Singles:
        wide = np.full((*shape, width), fill, np.float32)
        if M is not None:
            wide[..., :n] = M
        return wide

    leaders = L + np.outer(np.diag(A), np.diag(B))
    leaders = leaders + sum(M.sum(0, dtype=np.float64) for M in (U, V) if M is not None)
    A32 = np.ascontiguousarray(A, np.float32)
    return Smoothed(
        A32,
        np.ascontiguousarray(A32.T),
        rows(B, n),
        rows(B.T, n),
        rows(U, n, n),
        rows(V, n, n),
        rows(leaders, n, fill=np.inf),
    )


class Scratch(NamedTuple):
    """For the visits of one thread."""

    u: Singles  # (width,)
    v: Singles
    low: Singles
    sums: Singles
    totals: Singles
    R: Singles


@compiled
def _new_scratch(width: int) -> Scratch:  # pragma: no cover - compiled
    x = np.empty((6, width), np.float32)
    return Scratch(x[0], x[1], x[2], x[3], x[4], x[5])


@inlined
def _soft_row(R: Singles, width: int, inverse: float, E: Singles) -> tuple[float, float]:  # pragma: no cover - compiled
    """The least entry of R (width,) and Σ exp((least − R) / ε), whose terms go to E; R and E may be one."""
    low = load(R, 0)
    for l in range(LANES, width, LANES):
        low = least(load(R, l), low)
    smallest = lowest(low)
    shift, rate = constant(smallest), constant(inverse)
    s = constant(ZERO)
    for l in range(0, width, LANES):
        e = exp_below_zero((shift - load(R, l)) * rate)
        store(E, l, e)
        s = s + e
    return smallest, total(s)


@compiled
def _visit(dual: Smoothed, i: int, j: int, eps: float, scratch: Scratch) -> None:  # pragma: no cover - compiled
    """The exact steps of the smoothed dual in (λ_ij, U_ij) and in (λ_ij, V_ij)."""
    A, AT, B, BT, U, V, leaders = dual
    u, v, low, sums, totals, R = scratch
    n, width = len(A), B.shape[1]
    epsilon = np.float32(eps)
    inverse = np.float32(1 / eps)
    for l in range(n, width):
        v[l] = -INF  # R is infinite in the padding, and in column j
    for k in range(n):
        u[k], v[k] = U[k, i, j], V[k, i, j]
    kept, v[j] = v[j], -INF
    for l in range(width):
        low[l], sums[l], totals[l] = ZERO, ONE, ZERO
    for k in range(n):
        if k == i:
            continue
        a, a_, u_k = constant(A[i, k]), constant(AT[i, k]), constant(u[k])
        for l in range(0, width, LANES):
            cost = multiply_add(a, load(B[j], l), a_ * load(BT[j], l))
            store(R, l, (cost - (load(U[i, k], l) + load(V[j, k], l))) - load(v, l) - u_k)
        low[k], sums[k] = _soft_row(R, width, inverse, R)
        share = constant(ONE / sums[k])
        for l in range(0, width, LANES):
            store(totals, l, multiply_add(share, load(R, l), load(totals, l)))
    # Rows: all their soft minima and the leader become ``here``.
    level = constant(ZERO)
    for k in range(0, width, LANES):
        soft = load(low, k) - constant(epsilon) * log_of_positive(load(sums, k))
        store(low, k, soft)
        level = level + soft
    here = (leaders[i, j] + total(level)) / np.float32(n)
    # Columns: the same, from the sums of the exponentials, which the rows have scaled.
    faint = False
    for l in range(n):
        faint |= (totals[l] < FAINT) & (l != j)
    for k in range(n):
        if k != i:
            u[k] += low[k] - here
            U[k, i, j] = u[k]
    if faint:
        _faint_columns(dual, i, j, epsilon, u, v, here, totals)
    for l in range(n, width):
        totals[l] = ONE
    totals[j] = ONE
    level = constant(ZERO)
    for l in range(0, width, LANES):
        soft = constant(-epsilon) * log_of_positive(load(totals, l))
        store(R, l, soft)
        level = level + soft
    whole = here + total(level) / np.float32(n)
    v[j] = kept
    for l in range(n):
        if l != j:
            V[l, i, j] = v[l] + (R[l] + (here - whole))
    leaders[i, j] = whole


@compiled
def _faint_columns(
    dual: Smoothed, i: int, j: int, eps: float, u: Singles, v: Singles, here: float, totals: Singles
) -> None:  # pragma: no cover - compiled
    """``totals`` of columns that underflowed, brought into range: at most exp(80), at least exp(−60)."""
    A, AT, B, BT, U, V, _ = dual
    n = len(A)
    for l in range(n):
        if l == j or not totals[l] < FAINT:
            continue
        low = INF
        for k in range(n):
            if k != i:
                r = A[i, k] * B[j, l] + AT[i, k] * BT[j, l] - U[i, k, l] - V[j, k, l] - v[l] - u[k]
                low = min(low, r)
        totals[l] = np.float32(np.exp(max(-60.0, -np.float64(low - here) / eps)))


@compiled
def _scale_leaders(
    leaders: Singles, n: int, i: int, eps: float, scratch: Scratch
) -> None:  # pragma: no cover - compiled
    """Scale row i of the leaders, then all columns: their soft minima become zero."""
    low, sums = scratch.low, scratch.sums
    width = leaders.shape[1]
    epsilon, inverse = np.float32(eps), np.float32(1 / eps)
    smallest, s = _soft_row(leaders[i], width, inverse, scratch.R)
    shift = constant(smallest - epsilon * np.log(s))
    for j in range(0, width, LANES):
        store(leaders[i], j, load(leaders[i], j) - shift)
    for j in range(0, width, LANES):
        best = load(leaders[0], j)
        for k in range(1, n):
            best = least(load(leaders[k], j), best)
        store(low, j, best)
    for j in range(n, width):
        low[j] = ZERO
    for j in range(0, width, LANES):
        best, s_j = load(low, j), constant(ZERO)
        for k in range(n):
            s_j = s_j + exp_below_zero((best - load(leaders[k], j)) * constant(inverse))
        store(sums, j, s_j)
    for j in range(n, width):
        sums[j] = ONE
    for j in range(0, width, LANES):
        shift = load(low, j) - constant(epsilon) * log_of_positive(load(sums, j))
        for k in range(n):
            store(leaders[k], j, load(leaders[k], j) - shift)


@compiled
def _visit_some(dual: Smoothed, i: int, begin: int, end: int, eps: float) -> None:  # pragma: no cover - compiled
    scratch = _new_scratch(dual.B.shape[1])
    for j in range(begin, end):
        _visit(dual, i, j, eps, scratch)


@compiled
def smoothed_sweep(dual: Smoothed, order: Integers, eps: float) -> None:  # pragma: no cover - compiled
    """Visit every choice once, row by row in this order, at the temperature ε."""
    n = len(dual.A)
    scratch = _new_scratch(dual.B.shape[1])
    for i in order:
        for j in range(n):
            _visit(dual, i, j, eps, scratch)
        _scale_leaders(dual.leaders, n, i, eps, scratch)


@compiled
def smoothed_sweeps(dual: Smoothed, orders: Integers, eps: NDArray[np.float64]) -> None:  # pragma: no cover - compiled
    """A sweep for every row of ``orders`` (sweeps, n) and its temperature (sweeps,)."""
    for k in range(len(orders)):
        smoothed_sweep(dual, orders[k], eps[k])


@parallel
def smoothed_sweep_in_parallel(dual: Smoothed, order: Integers, eps: float, parts: int) -> None:  # pragma: no cover
    """The same on several threads: the choices of one row do not touch each other's residuals."""
    n = len(dual.A)
    scratch = _new_scratch(dual.B.shape[1])
    for i in order:
        for part in prange(parts):
            _visit_some(dual, i, part * n // parts, (part + 1) * n // parts, eps)
        _scale_leaders(dual.leaders, n, i, eps, scratch)
