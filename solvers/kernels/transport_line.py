"""Transport on the line in closed form: in sorted order, mass goes to the first place that is still free."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled, parallel

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


@compiled
def _cost(gap: float, p: float) -> tuple[float, float]:  # pragma: no cover - compiled
    """|gap|^p and its derivative."""
    if p == 2.0:
        return gap * gap, 2.0 * gap
    sign = np.sign(gap)
    if p == 1.0:
        return abs(gap), sign
    root = abs(gap) ** (p - 1.0)
    return root * abs(gap), p * root * sign


@parallel
def transport_line(
    x: Doubles, y: Doubles, a: Doubles, b: Doubles, rows: Integers, columns: Integers, p: float, slopes: bool
) -> tuple[Doubles, Integers, Integers, Doubles, Doubles, Doubles, Doubles, Doubles]:  # pragma: no cover - compiled
    """Minimise Σ T_ij |x_i − y_j|^p for points x (B, n) and y (B, m) of masses a (B, n) and b (B, m), equal in total.

    ``rows`` and ``columns`` sort the points. Returns the value (B,); the staircase of n + m − 1 arcs: rows, columns and
    masses; potentials f (B, n) and g (B, m) that are tight on all of them, and feasible because the sorted costs are a
    Monge matrix (Hoffman, "On simple linear programming problems", 1963); and, where ``slopes`` are
    wanted, the derivatives of the value by x (B, n) and y (B, m).
    """
    (batch, n), m = x.shape, y.shape[1]
    value, f, g = np.empty(batch), np.empty((batch, n)), np.empty((batch, m))
    source, target = np.empty((batch, n + m - 1), np.int64), np.empty((batch, n + m - 1), np.int64)
    mass, dx, dy = np.empty((batch, n + m - 1)), np.empty((batch * slopes, n)), np.empty((batch * slopes, m))
    for k in prange(batch):
        j, t, total = 0, columns[k, 0], 0.0
        place, free = y[k, t], b[k, t]
        dual, pull = _cost(x[k, rows[k, 0]] - place, p)[0], 0.0  # g and −dy of the column at hand
        for i in range(n):
            s = rows[k, i]
            point, left = x[k, s], a[k, s]
            u, push = _cost(point - place, p)[0] - dual, 0.0
            f[k, s] = u
            while True:
                # The last row and the last column take what rounding has left.
                row_ends = j == m - 1 or (i < n - 1 and left <= free)
                moved = max(left if row_ends else free, 0.0)
                source[k, i + j], target[k, i + j], mass[k, i + j] = s, t, moved
                cost, slope = _cost(point - place, p)
                total, push, pull = total + moved * cost, push + moved * slope, pull + moved * slope
                left, free = left - moved, free - moved
                if row_ends:
                    break
                g[k, t] = dual
                if slopes:
                    dy[k, t] = -pull
                j += 1
                t = columns[k, j]
                place, free = y[k, t], b[k, t]
                dual, pull = _cost(point - place, p)[0] - u, 0.0
            if slopes:
                dx[k, s] = push
        value[k] = total
        g[k, t] = dual
        if slopes:
            dy[k, t] = -pull
    return value, source, target, mass, f, g, dx, dy
