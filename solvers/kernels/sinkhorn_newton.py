"""Newton's method on the dual of entropic transport, where scaling rows and columns in turn is slow.

With f fitted to the rows, the dual is a concave function of g alone, D(g) = Σ a f(g) + Σ b g, of gradient b − Tᵀ 1 and
Hessian −S/ε, S = diag(Tᵀ 1) − Tᵀ diag(1/a) T (Brauer, Clason, Lorenz and Wirth, A Sinkhorn–Newton method for entropic
optimal transport, 2017). A step solves S y = b − Tᵀ 1, moves g along ε y and is shortened until D grows.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled, parallel, summing
from solvers.kernels.exponential import exp64
from solvers.kernels.potentials import row_lowest
from solvers.kernels.schur import factor, schur, substitute
from solvers.kernels.vectors import LANES, aligned_zeros, padded

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

REACH = 8.0  # a step moves no potential further than this times ε
ASCENT = 1e-4  # of the promised growth is asked of a step (Armijo)
SHRINKING = 0.9  # a step is as good when it leaves no more than this of the error
ROUNDING = 1e-14  # of D, below which its growth is not seen
HALVINGS = 25


@summing
def _fit_rows(
    C: Floats, a: Doubles, reg: float, g: Doubles, f: Doubles, P: Doubles, c: Doubles
) -> float:  # pragma: no cover - compiled
    """f and the plan P whose rows are exact, its column sums c, and Σ a f."""
    n, m = C.shape
    inverse = 1 / reg
    total_af = 0.0
    c[:] = 0.0
    for i in range(n):
        if a[i] > 0:
            low = row_lowest(C[i], g)
            total = 0.0
            for j in range(m):
                P[i, j] = exp64((low - (C[i, j] - g[j])) * inverse)
                total += P[i, j]
            scaling = a[i] / total
            for j in range(m):
                P[i, j] *= scaling
                c[j] += P[i, j]
            f[i] = low + reg * np.log(scaling)
            total_af += a[i] * f[i]
        else:
            f[i] = -np.inf
            P[i] = 0.0
    return total_af


@compiled
def _newton(
    C: Floats,
    a: Doubles,
    b: Doubles,
    reg: float,
    limit: float,
    start: int,
    stop: int,
    f: Doubles,
    g: Doubles,
    P: Doubles,
    S: Doubles,
    inverse_a: Doubles,
    columns: Doubles,
) -> tuple[int, bool]:  # pragma: no cover - compiled
    """Steps ``start`` … ``stop`` from g; returns the step reached and whether it converged.

    The plan P belongs to f and g at the end whatever happened.
    """
    n, m = C.shape
    c, y, trial = columns[0], columns[1], columns[2]
    for i in range(n):
        inverse_a[i] = 1 / a[i] if a[i] > 0 else 0.0
    iteration, value = start, 0.0
    dual = _fit_rows(C, a, reg, g, f, P, c)
    for j in range(m):
        dual += b[j] * g[j] if b[j] > 0 else 0.0
    while True:
        error = 0.0
        for j in range(m):
            error += abs(c[j] - b[j])
        if error <= limit:
            return iteration, True
        if iteration >= stop:
            return iteration, False
        iteration += 1
        schur(P, inverse_a, c, S)
        for j in range(m):
            y[j] = b[j] - c[j]
        factor(S, m)
        substitute(S, y)
        furthest, centre, count = 0.0, 0.0, 0
        for j in range(m):
            if b[j] > 0:
                centre += y[j]
                count += 1
        centre /= count
        growth = 0.0
        for j in range(m):
            y[j] = reg * (y[j] - centre) if b[j] > 0 else 0.0
            furthest = max(furthest, abs(y[j]))
            growth += (b[j] - c[j]) * y[j]
        step = min(1.0, REACH * reg / furthest) if furthest > 0 else 1.0
        moved = False
        if growth > 0 and np.isfinite(growth):
            for _ in range(HALVINGS):
                for j in range(m):
                    trial[j] = g[j] + step * y[j]
                value, left = _fit_rows(C, a, reg, trial, f, P, c), 0.0
                for j in range(m):
                    value += b[j] * trial[j] if b[j] > 0 else 0.0
                    left += abs(c[j] - b[j])
                # Near the end the growth drowns in the rounding of D, but the error still tells.
                seen = step * growth > ROUNDING * abs(dual)
                if (seen and value >= dual + ASCENT * step * growth) or left <= SHRINKING * error:
                    moved = True
                    break
                step /= 2
        if moved:
            g[:] = trial
            dual = value
            continue
        # What growth is left is rounding, or the system was singular: scale the columns instead.
        _fit_rows(C, a, reg, g, f, P, c)
        for j in range(m):
            if b[j] > 0 and c[j] > 0:
                g[j] += reg * np.log(b[j] / c[j])
        dual = _fit_rows(C, a, reg, g, f, P, c)
        for j in range(m):
            dual += b[j] * g[j] if b[j] > 0 else 0.0


@parallel
def newton_plans(
    C: Floats,
    a: Doubles,
    b: Doubles,
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
    """Newton steps for every problem that has not converged until it does, or until it has had ``stop`` iterations.

    The rows of its plan are exact; it has converged when the L1 error of the columns is at most its ``limit``. C and T
    (B, n, m) share one dtype, all else is float64 or an integer as in ``sinkhorn_plans``.
    """
    batch, n, m = C.shape
    width = padded(m, LANES)
    for chunk in prange(chunks):
        P = aligned_zeros(n * width, np.float64).reshape(n, width)
        S = aligned_zeros(width * width, np.float64).reshape(width, width)
        inverse_a, columns = np.empty(n), np.empty((3, m))
        for k in range(chunk * batch // chunks, (chunk + 1) * batch // chunks):
            if not converged[k]:
                iterations[k], converged[k] = _newton(
                    C[k], a[k], b[k], reg[k], limit[k], iterations[k], stop[k], f[k], g[k], P, S, inverse_a, columns
                )
                T[k] = P[:, :m]
