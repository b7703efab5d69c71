"""What the referee computes on every answer, in one pass and without temporaries."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled, inner, parallel
from solvers.kernels.intrinsics import at, smaller
from solvers.kernels.vectors import (
    LANES,
    constant,
    least,
    load,
    load_doubles,
    lowest,
    multiply_add,
    store,
    total,
)

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]

SERIAL_WORK = 2**19  # entries of the batch below which threads cost more than they save
PART = 2**18  # entries of one problem from which on several threads share it


@parallel
def c_transform(C: NDArray[np.floating], g: NDArray[np.float64]) -> NDArray[np.float64]:  # pragma: no cover - compiled
    """min_j C[b, i, j] − g[b, j], shape (B, n), of C (B, n, m) and g (B, m); no entry may be NaN."""
    batch, n, m = C.shape
    out = np.empty((batch, n))
    for row in prange(batch * n):
        b = np.int64(row) // n
        i = np.int64(row) - b * n
        smallest = np.inf
        for j in range(m):
            smallest = smaller(C[b, i, j] - g[b, j], smallest)
        out[b, i] = smallest
    return out


@inner
def _paired(weights: Floats, potential: Doubles, size: int) -> float:  # pragma: no cover - compiled
    """Σ w p with 0 · ±∞ = 0."""
    total = 0.0
    for k in range(size):
        if weights[k] != 0 or abs(potential[k]) < np.inf:
            total += weights[k] * potential[k]
    return total


class _Survey(NamedTuple):
    """Plans and what is summed over them; each problem is read in parts of whole rows."""

    C: Floats
    T: Floats
    a: Floats
    b: Floats
    g: Doubles
    values: Doubles  # (B, parts), as are the next two
    errors: Doubles
    least: Doubles
    columns: Doubles  # (B, parts, m)
    f: Doubles  # (B, n)
    bounds: Doubles  # (B,)


@inner
def _survey_part(unit: int, to: _Survey) -> None:  # pragma: no cover - compiled
    """Read one part of one problem."""
    (_, n, m), parts = to.C.shape, to.values.shape[1]
    k = unit // parts
    part, whole = unit - k * parts, m // LANES * LANES
    C, T, g, columns = at(to.C, k * n * m), at(to.T, k * n * m), at(to.g, k * m), at(to.columns, unit * m)
    zero, none = constant(0.0), constant(np.inf)
    values, leasts, value, least_mass = zero, none, 0.0, np.inf
    for i in range(part * n // parts, (part + 1) * n // parts):
        masses, differences, mass, difference = zero, none, 0.0, np.inf
        for j in range(0, whole, LANES):
            c, t = load_doubles(C, i * m + j), load_doubles(T, i * m + j)
            values, masses, leasts = multiply_add(c, t, values), masses + t, least(t, leasts)
            differences = least(c - load(g, j), differences)
            store(columns, j, load(columns, j) + t)
        for j in range(whole, m):
            c_ij, t_ij = np.float64(C[i * m + j]), np.float64(T[i * m + j])
            value, mass, least_mass = value + c_ij * t_ij, mass + t_ij, smaller(t_ij, least_mass)
            difference = smaller(c_ij - g[j], difference)
            columns[j] += t_ij
        to.errors[k, part] += abs(total(masses) + mass - to.a[k, i])
        to.f[k, i] = smaller(lowest(differences), difference)
    to.values[k, part] = total(values) + value
    to.least[k, part] = smaller(lowest(leasts), least_mass)


@compiled
def _survey_serial(to: _Survey) -> None:  # pragma: no cover - compiled
    for unit in range(to.values.size):
        _survey_part(unit, to)


@parallel
def _survey_parallel(to: _Survey) -> None:  # pragma: no cover - compiled
    for unit in prange(to.values.size):
        _survey_part(np.int64(unit), to)


@compiled
def _join_parts(to: _Survey) -> None:  # pragma: no cover - compiled
    """Collect what the parts of a problem have found in the first of them."""
    (batch, n, m), parts = to.C.shape, to.values.shape[1]
    for k in range(batch):
        for part in range(1, parts):
            to.values[k, 0] += to.values[k, part]
            to.errors[k, 0] += to.errors[k, part]
            to.least[k, 0] = min(to.least[k, 0], to.least[k, part])
            for j in range(m):
                to.columns[k, 0, j] += to.columns[k, part, j]
        for j in range(m):
            to.errors[k, 0] += abs(to.columns[k, 0, j] - to.b[k, j])
        rows = _paired(at(to.a, k * n), at(to.f, k * n), n)
        to.bounds[k] = rows + _paired(at(to.b, k * m), at(to.g, k * m), m)


def survey(
    C: Floats, T: Floats, a: Floats, b: Floats, g: Doubles
) -> tuple[Doubles, Doubles, Doubles, Doubles, Doubles]:
    """What the referee asks of transport plans T (B, n, m) for costs C (B, n, m), weights a (B, n) and b (B, m).

    Returns, in float64: the values ⟨C, T⟩ (B,); the marginal errors ‖T 1 − a‖₁ + ‖Tᵀ 1 − b‖₁ (B,), finite only where T
    is; the least entries of T (B,) where it is finite; the transforms f_i = min_j C_ij − g_j (B, n) of potentials
    g (B, m) without NaN; and the bounds Σ a f + Σ b g (B,) that they prove. All arrays are C-contiguous; C and T are
    read once and summed in an order that depends on n and m alone.
    """
    batch, n, m = C.shape
    parts = min(n, 1 + n * m // PART)
    sums, least = np.zeros((2, batch, parts)), np.full((batch, parts), np.inf)
    values, errors = sums
    to = _Survey(
        C, T, a, b, g, values, errors, least, np.zeros((batch, parts, m)), np.empty((batch, n)), np.empty(batch)
    )
    run = _survey_serial if C.size < SERIAL_WORK or get_num_threads() == 1 else _survey_parallel
    run(to)
    _join_parts(to)
    return to.values[:, 0], to.errors[:, 0], least[:, 0], to.f, to.bounds


@compiled
def are_matchings(p: NDArray[np.int64], m: int) -> NDArray[np.bool_]:  # pragma: no cover - compiled
    """Whether each row of p (B, n) matches min(n, m) members to distinct columns below m, the others to −1; (B,)."""
    batch, n = p.shape
    out = np.empty(batch, np.bool_)
    last = np.full(m, -1)  # the row of p that a column was last seen in
    for b in range(batch):
        matched, good = 0, True
        for i in range(n):
            j = p[b, i]
            if j < -1 or j >= m:
                good = False
            elif j >= 0:
                good = good and last[j] != b
                last[j] = b
                matched += 1
        out[b] = good and matched == min(n, m)
    return out


@parallel
def rlt_leaders(
    A: Doubles, B: Doubles, linear: Doubles, U: Doubles, V: Doubles
) -> Doubles:  # pragma: no cover - compiled
    """Leaders λ (n, n) that the dual variables U_ij,k = U[k, i, j], V_ij,l = V[l, i, j] of the RLT dual prove.

    See ``kernels.dual_ascent``. Where a residual is negative, half of each pair's deficit is charged to either of its
    choices, row by row: for every permutation the objective is at least the sum of its leaders.
    """
    n = len(A)
    leaders = np.empty((n, n))
    for i in prange(n):
        for j in range(n):
            total = linear[i, j] + A[i, i] * B[j, j]
            for k in range(n):
                total += (U[k, i, j] if k != i else 0.0) + (V[k, i, j] if k != j else 0.0)
            for k in range(n):
                if k == i:
                    continue
                low = 0.0
                for l in range(n):
                    if l != j:
                        residual = A[i, k] * B[j, l] + A[k, i] * B[l, j]
                        residual -= (U[k, i, j] + V[l, i, j]) + (U[i, k, l] + V[j, k, l])
                        low = smaller(residual, low)
                total += 0.5 * low
            leaders[i, j] = total
    return leaders
