"""One pass over a transport kernel that is never stored: what is done with some rows while they are in cache.

The caller holds S, some rows of the matrix of inner products s_ij = X_i · Y_j. Whatever the size of the terms, nothing
over- or underflows: exp is taken relative to the largest term of its row. Rows run side by side in blocks whose number
depends on the size of S alone, so that an answer does not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled, parallel, summing
from solvers.kernels.exponential import exp32, exp64

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]

LANES = 64  # running maxima side by side, a few vectors long
TILE = 2048  # terms summed in the working precision before they join a float64 sum
GROUP = 8  # rows added to the column sums together, in one reading of these


@compiled
def _largest(s: Floats, v: Floats, lanes: Floats) -> float:  # pragma: no cover - compiled
    """max_j s_j + v_j."""
    whole = len(v) - len(v) % LANES
    lanes[:] = -np.inf
    for start in range(0, whole, LANES):
        s_, v_ = s[start : start + LANES], v[start : start + LANES]
        for k in range(LANES):
            lanes[k] = max(lanes[k], s_[k] + v_[k])
    top = lanes.max()
    for j in range(whole, len(v)):
        top = max(top, s[j] + v[j])
    return top


@summing
def _exponentials(s: Floats, v: Floats, top: float) -> float:  # pragma: no cover - compiled
    """s_j ← exp(s_j + v_j − top); returns their sum."""
    total = 0.0
    for start in range(0, len(v), TILE):
        s_, v_ = s[start : start + TILE], v[start : start + TILE]
        part = s.dtype.type(0)
        if s.itemsize == 4:
            for j in range(len(v_)):
                e = exp32(s_[j] + v_[j] - top)
                s_[j] = e
                part += e
        else:
            for j in range(len(v_)):
                d = exp64(s_[j] + v_[j] - top)
                s_[j] = d
                part += d
        total += float(part)
    return total


@summing
def _add(S: Floats, w: Floats, columns: Doubles) -> None:  # pragma: no cover - compiled
    """columns_j += Σ_i w_i S_ij over at most GROUP rows; w is zero beyond the last, which is then read again."""
    last = len(S) - 1
    s0, s1, s2, s3 = S[0], S[min(1, last)], S[min(2, last)], S[min(3, last)]
    s4, s5, s6, s7 = S[min(4, last)], S[min(5, last)], S[min(6, last)], S[min(7, last)]
    w0, w1, w2, w3, w4, w5, w6, w7 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]
    for j in range(len(columns)):
        columns[j] += ((w0 * s0[j] + w1 * s1[j]) + (w2 * s2[j] + w3 * s3[j])) + (
            (w4 * s4[j] + w5 * s5[j]) + (w6 * s6[j] + w7 * s7[j])
        )


@parallel
def scale_rows(
    S: Floats, v: Floats, a: Doubles, logarithms: Doubles, columns: Doubles
) -> None:  # pragma: no cover - compiled
    """Scale the rows of K_ij = exp(s_ij + v_j) to the sums a_i, and add up the columns.

    S (B, m), overwritten, and v (m,) have one dtype, a (B,). Written: ``logarithms`` (B,), log Σ_j K_ij; added to:
    ``columns`` (parts, m), whose sum over the parts grows by Σ_i a_i K_ij / Σ_j K_ij.
    """
    rows, parts = len(S), len(columns)
    for part in prange(parts):
        w, lanes = np.zeros(GROUP, S.dtype), np.empty(LANES, S.dtype)
        last = (part + 1) * rows // parts
        for start in range(part * rows // parts, last, GROUP):
            stop = min(start + GROUP, last)
            w[:] = 0
            for i in range(start, stop):
                top = _largest(S[i], v, lanes)
                total = _exponentials(S[i], v, top)
                logarithms[i] = np.float64(top) + np.log(total)
                w[i - start] = a[i] / total
            _add(S[start:stop], w, columns[part])


@summing
def _judge(
    s: Doubles, alpha: float, beta: Doubles, f: float, g: Doubles, rate: float, columns: Doubles
) -> tuple[float, float]:  # pragma: no cover - compiled
    """A row's part of the value and its sum; the row is added to the columns, and s becomes minus the cost."""
    value, total = 0.0, 0.0
    for j in range(len(s)):
        cost = (alpha + beta[j]) - s[j]
        t = exp64(((f + g[j]) - cost) * rate)
        s[j] = -cost
        value += cost * t
        total += t
        columns[j] += t
    return value, total


@parallel
def judge_rows(
    S: Doubles,
    alpha: Doubles,
    beta: Doubles,
    f: Doubles,
    g: Doubles,
    dual: Doubles,
    rate: float,
    values: Doubles,
    sums: Doubles,
    lowest: Doubles,
    columns: Doubles,
) -> None:  # pragma: no cover - compiled
    """What the referee wants to know of some rows of T_ij = exp((f_i + g_j − C_ij) · rate), C_ij = α_i + β_j − s_ij.

    S (B, m), overwritten. Written, each (B,): ``values`` Σ_j C_ij T_ij, ``sums`` Σ_j T_ij and ``lowest``
    min_j C_ij − dual_j; added to: ``columns`` (parts, m), whose sum over the parts grows by the column sums.
    """
    rows, parts = len(S), len(columns)
    for part in prange(parts):
        lanes = np.empty(LANES)
        for i in range(part * rows // parts, (part + 1) * rows // parts):
            values[i], sums[i] = _judge(S[i], alpha[i], beta, f[i], g, rate, columns[part])
            lowest[i] = -_largest(S[i], dual, lanes)
