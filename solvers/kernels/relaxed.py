"""Sinkhorn's iteration on the CPU where the marginals are priced or bounded, with safe scalings.

The plan is T_ij = u_i K_ij v_j with K_ij = exp((f_i + g_j − C_ij)/ε). Scalings are held by their logarithms; when one
leaves the safe range, or a sum underflows, both are absorbed into f and g, chosen so that every row or every column of
the new K has a one (Schmitzer, SIAM J. Sci. Comput. 41(3), 2019): its sums then neither under- nor overflow. Everything
is in float64 and in units of ε; problems of a batch run side by side.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled, parallel, summing
from solvers.kernels.exponential import exp64

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

FAR = 200.0  # the largest |log| of a scaling
TINY = 1e-200  # a sum below this has lost too many terms to underflow


@summing
def _fill(C: Floats, per: float, f: Doubles, g: Doubles, K: Doubles) -> None:  # pragma: no cover - compiled
    n, m = C.shape
    for i in range(n):
        for j in range(m):
            K[i, j] = exp64((f[i] - C[i, j] * per) + g[j])


@summing
def _absorb_columns(
    C: Floats, per: float, U: Doubles, V: Doubles, f: Doubles, g: Doubles, K: Doubles
) -> None:  # pragma: no cover - compiled
    """K from the potentials V of the columns, with a one in every row that has mass."""
    n, m = C.shape
    g[:] = V
    for i in range(n):
        lowest = np.inf
        for j in range(m):
            lowest = min(lowest, C[i, j] * per - g[j])
        f[i] = lowest if U[i] > -np.inf else -np.inf
    _fill(C, per, f, g, K)


@summing
def _absorb_rows(
    C: Floats, per: float, U: Doubles, V: Doubles, f: Doubles, g: Doubles, K: Doubles
) -> None:  # pragma: no cover - compiled
    """K from the potentials U of the rows, with a one in every column that has mass."""
    n, m = C.shape
    f[:] = U
    g[:] = np.inf
    for i in range(n):
        for j in range(m):
            g[j] = min(g[j], C[i, j] * per - f[i])
    for j in range(m):
        g[j] = g[j] if V[j] > -np.inf else -np.inf
    _fill(C, per, f, g, K)


@compiled
def _scalings(total: Doubles, absorbed: Doubles, scaling: Doubles) -> bool:  # pragma: no cover - compiled
    """exp(U − f) of a side; returns whether all are in range."""
    safe = True
    for i in range(len(total)):
        away = total[i] - absorbed[i] if total[i] > -np.inf else -np.inf
        scaling[i] = exp64(away)
        safe = safe and (away < FAR) and (away > -FAR or away == -np.inf)
    return safe


@summing
def _row_sums(K: Doubles, v: Doubles, sums: Doubles) -> None:  # pragma: no cover - compiled
    n, m = K.shape
    for i in range(n):
        total = 0.0
        for j in range(m):
            total += K[i, j] * v[j]
        sums[i] = total


@summing
def _column_sums(K: Doubles, u: Doubles, sums: Doubles) -> None:  # pragma: no cover - compiled
    n, m = K.shape
    sums[:] = 0.0
    for i in range(0, n // 4 * 4, 4):
        for j in range(m):
            sums[j] += (u[i] * K[i, j] + u[i + 1] * K[i + 1, j]) + (u[i + 2] * K[i + 2, j] + u[i + 3] * K[i + 3, j])
    for i in range(n // 4 * 4, n):
        for j in range(m):
            sums[j] += u[i] * K[i, j]


@compiled
def _logs(sums: Doubles, log_w: Doubles, absorbed: Doubles, k: Doubles) -> bool:  # pragma: no cover - compiled
    """k = log of the sums without what is absorbed; returns whether none has underflowed."""
    safe = True
    for i in range(len(sums)):
        k[i] = np.log(sums[i]) - absorbed[i] if log_w[i] > -np.inf else 0.0
        safe = safe and (log_w[i] == -np.inf or sums[i] > TINY)
    return safe


@compiled
def _log_sum(x: Doubles) -> float:  # pragma: no cover - compiled
    largest = x.max()
    total = 0.0
    for value in x:
        total += exp64(value - largest)
    return largest + np.log(total)


@compiled
def _priced(
    log_w: Doubles, per_reach: float, per_other: float, k: Doubles, level: float, U: Doubles, log_p: Doubles
) -> tuple[float, float]:  # pragma: no cover - compiled
    """A marginal at the price ρ KL(p | w): U and log p; returns the change of the other side's potential and level."""
    weight = per_reach / (1 + per_reach)
    for i in range(len(k)):
        log_p[i] = log_w[i] / (1 + per_reach) + weight * k[i]
    wanted = _log_sum(log_p)
    rate = per_other + weight
    shift = (wanted - level) / rate if rate > 0 else 0.0
    for i in range(len(k)):
        log_p[i] -= weight * shift
        U[i] = log_p[i] - k[i] + shift
    return -shift, wanted - weight * shift


@compiled
def _bounded(
    log_w: Doubles, log_mass: float, k: Doubles, rest: Doubles, U: Doubles, log_p: Doubles
) -> None:  # pragma: no cover - compiled
    """A marginal of total s at most w: U = min(log w − k, t) and log p, with the t that makes the total right."""
    n = len(k)
    for i in range(n):
        U[i] = log_w[i] - k[i]
    order = np.argsort(U)
    following = -np.inf
    for position in range(n - 1, -1, -1):
        i = order[position]
        if log_w[i] > -np.inf:
            high, low = max(following, k[i]), min(following, k[i])
            following = high + np.log1p(exp64(low - high))
        rest[position] = following - log_mass
    before, t, last = 0.0, np.inf, -np.inf
    for position in range(n):
        i = order[position]
        if position == n - 1 or before + exp64(U[i] + rest[position]) >= 1:
            t = max(min(np.log(max(1 - before, 1e-300)) - rest[position], U[i]), last)
            break
        last = U[i]
        before += exp64(log_w[i] - log_mass)
    for i in range(n):
        U[i] = min(U[i], t)
        log_p[i] = U[i] + k[i]


@compiled
def _solve(
    C: Floats,
    log_a: Doubles,
    log_b: Doubles,
    per: float,
    priced: bool,
    held: Doubles,
    limit: float,
    start: int,
    stop: int,
    U: Doubles,
    V: Doubles,
    T: Floats,
    log_p: Doubles,
    K: Doubles,
    rows: Doubles,
    columns: Doubles,
) -> tuple[int, bool]:  # pragma: no cover - compiled
    """Iterations ``start`` … ``stop`` from V; returns the iteration reached and whether it converged."""
    n, m = C.shape
    f, u, k, before, rest = rows[0], rows[1], rows[2], rows[3], rows[4]
    g, v, k_b, log_q, rest_b = columns[0], columns[1], columns[2], columns[3], columns[4]
    level = held[0]
    if priced:
        for j in range(m):
            log_q[j] = log_b[j] - V[j] * held[1] if log_b[j] > -np.inf else -np.inf
        level = _log_sum(log_q)
    U[:] = log_a
    _absorb_columns(C, per, U, V, f, g, K)
    _scalings(V, g, v)
    iteration, converged, safe = start, False, True
    while True:
        _row_sums(K, v, u)
        if not (safe and _logs(u, log_a, f, k)):
            _absorb_columns(C, per, U, V, f, g, K)
            _scalings(V, g, v)
            _row_sums(K, v, u)
            _logs(u, log_a, f, k)
        before[:] = U
        now, shift = level, 0.0
        if priced:
            shift, level = _priced(log_a, held[0], held[1], k, level, U, log_p)
        else:
            _bounded(log_a, held[0], k, rest, U, log_p)
        if iteration > start:
            error = 0.0
            for i in range(n):
                error += abs(exp64(before[i] + k[i] - now) - exp64(log_p[i] - now))
            converged = error <= limit
            if converged or iteration >= stop:
                U[:] = before
                break
        iteration += 1
        if not _scalings(U, f, u):
            _absorb_rows(C, per, U, V, f, g, K)
            _scalings(U, f, u)
        _column_sums(K, u, v)
        if not _logs(v, log_b, g, k_b):
            _absorb_rows(C, per, U, V, f, g, K)
            _scalings(U, f, u)
            _column_sums(K, u, v)
            _logs(v, log_b, g, k_b)
        if priced:
            shift, level = _priced(log_b, held[1], held[0], k_b, level, V, log_q)
            for i in range(n):
                U[i] += shift
        else:
            _bounded(log_b, held[0], k_b, rest_b, V, log_q)
        safe = _scalings(V, g, v)
    if not (_scalings(U, f, u) and safe):
        _absorb_columns(C, per, U, V, f, g, K)
        _scalings(V, g, v)
        _scalings(U, f, u)
    for i in range(n):
        for j in range(m):
            T[i, j] = u[i] * K[i, j] * v[j]
    return iteration, converged


@parallel
def relaxed_plans(
    C: Floats,
    log_a: Doubles,
    log_b: Doubles,
    per: Doubles,
    priced: bool,
    held: Doubles,
    limit: float,
    stop: Integers,
    U: Doubles,
    V: Doubles,
    T: Floats,
    log_p: Doubles,
    iterations: Integers,
    converged: NDArray[np.bool_],
    chunks: int,
) -> None:  # pragma: no cover - compiled
    """Iterate every problem that has not converged until it does, or until it has had ``stop`` iterations.

    An iteration fits the rows, then the columns, from the potential V = g/ε. A problem stops when another one would
    change its row marginal by at most ``limit`` × its mass in L1. Called again with a larger ``stop`` it goes on.

    C (B, n, m) and T (B, n, m) in float32 or float64, all else float64: log weights (B, n) and (B, m), 1/ε (B,), and
    ``held`` (B, 2), which is (ε/ρ₁, ε/ρ₂) where the marginals are ``priced``, and the log of the total mass, twice,
    where they are bounded. Updated in place: U = f/ε, V, T, the log of the wanted row marginal (B, n), iterations
    (B,), converged (B,).
    """
    batch, n, m = C.shape
    for chunk in prange(chunks):
        K, rows, columns = np.empty((n, m)), np.empty((5, n)), np.empty((5, m))
        for b in range(chunk * batch // chunks, (chunk + 1) * batch // chunks):
            if not converged[b] and iterations[b] < stop[b]:
                iterations[b], converged[b] = _solve(
                    C[b], log_a[b], log_b[b], per[b], priced, held[b], limit, iterations[b], stop[b],
                    U[b], V[b], T[b], log_p[b], K, rows, columns,
                )  # fmt: skip
