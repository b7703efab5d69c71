"""The exponentials of two navigators, by blocks of rows, and the affinities and costs they are made of.

With one reference for all, E_ij = exp((s_ij − max s)/τ), both navigators share one exponential an entry. Where the
exponents of a problem spread too far for that (small τ), rows and columns get a reference each, the maximum of
s_ij + τ log q_j or of s_ij + τ log p_i, and there are two exponentials an entry.

Short loops over few arrays are meant: longer ones are not vectorised, as too many pairs of arrays might overlap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled, summing
from solvers.kernels.exponential import exp32, exp64

Floats = NDArray[np.floating]

GIVEN, INNER, COSINE, SQEUCLIDEAN, EXPONENTIAL = range(5)  # what affinity and cost are made of
LEAST, GREATEST = 1e-30, 1e10  # of the exponential cost
REACH32, REACH64 = (60.0, 80.0, 40.0), (600.0, 700.0, 350.0)  # of ``reach``, in float32 and in float64


@compiled
def reach(s: Floats) -> tuple[float, float, float]:  # pragma: no cover - compiled
    """(spread of exponents that one reference bears, largest exponent, that of a point of weight zero)."""
    if s.itemsize == 4:
        return REACH32
    return REACH64


@compiled
def exponentials(t: Floats) -> None:  # pragma: no cover - compiled
    """t ← exp(t)."""
    if t.itemsize == 4:
        for k in range(len(t)):
            t[k] = exp32(np.float32(t[k]))
    else:
        for k in range(len(t)):
            t[k] = exp64(t[k])


@summing
def nearness(
    form: int, G: Floats, x: Floats, y: Floats, first: int, last: int, out: Floats
) -> Floats:  # pragma: no cover - compiled
    """Rows ``first`` … ``last`` of G, of the cosine or of minus the squared distance; x, y (2, n | m) hold the inverse
    norms and the squared norms.
    """
    if form == COSINE:
        for i in range(first, last):
            inverse = x[0, i]
            for j in range(G.shape[1]):
                out[i - first, j] = inverse * y[0, j] * G[i, j]
    elif form == SQEUCLIDEAN:
        zero = G.dtype.type(0)
        for i in range(first, last):
            square = x[1, i]
            for j in range(G.shape[1]):
                out[i - first, j] = min((G[i, j] - square) + (G[i, j] - y[1, j]), zero)
    else:
        return G[first:last]
    return out[: last - first]


@compiled
def costs(
    form: int, C: Floats, x: Floats, y: Floats, first: int, last: int, out: Floats
) -> Floats:  # pragma: no cover - compiled
    """Rows ``first`` … ``last`` of the cost: given, 1 − cosine, squared distance, −G or the clamped exp(−G)."""
    if form == GIVEN:
        return C[first:last]
    near = nearness(form, C, x, y, first, last, out).reshape(-1)
    far = out[: last - first].reshape(-1)
    shift = C.dtype.type(1 if form == COSINE else 0)
    for k in range(len(far)):
        far[k] = shift - near[k]
    if form == EXPONENTIAL:
        exponentials(far)
        least, greatest = C.dtype.type(LEAST), C.dtype.type(GREATEST)
        for k in range(len(far)):
            far[k] = min(max(far[k], least), greatest)
    return out[: last - first]


@compiled
def widen(s: Floats, low: Floats, high: Floats) -> None:  # pragma: no cover - compiled
    """Lower ``low`` (m,) to the column minima of some rows and raise ``high`` (m,) to their maxima."""
    for i in range(len(s)):
        for j in range(s.shape[1]):
            low[j] = s[i, j] if s[i, j] < low[j] else low[j]
            high[j] = s[i, j] if s[i, j] > high[j] else high[j]


@compiled
def raise_tops(
    s: Floats, bonus_x: Floats, bonus_y: Floats, top_x: Floats, top_y: Floats
) -> None:  # pragma: no cover - compiled
    """References of some rows, max_j s_ij + τ log q_j, and those of the columns raised to max_i s_ij + τ log p_i."""
    for i in range(len(s)):
        top = top_x[i]
        for j in range(s.shape[1]):
            t = s[i, j] + bonus_y[j]
            top = t if t > top else top
        top_x[i] = top
        for j in range(s.shape[1]):
            t = s[i, j] + bonus_x[i]
            top_y[j] = t if t > top_y[j] else top_y[j]


@compiled
def bonus(weights: Floats, temperature: float, out: Floats) -> None:  # pragma: no cover - compiled
    """τ log of the weights, −∞ for zero."""
    for k in range(len(weights)):
        out[k] = temperature * np.log(np.float64(weights[k])) if weights[k] > 0 else -np.inf


@compiled
def fill(
    single: bool,
    s: Floats,
    p: Floats,
    q: Floats,
    top_x: Floats,
    top_y: Floats,
    temperature: float,
    forward: Floats,
    backward: Floats,
) -> Floats:  # pragma: no cover - compiled
    """Exponentials of some rows of s for the forward navigator, in ``forward``; those for the backward are returned.

    Points of weight zero lie above the reference where they are nearer than all others: their exponentials matter to
    the gradient of their weight alone, and are bounded so that it stays finite.
    """
    rows, m = s.shape
    t, scale = forward[:rows].reshape(-1), s.dtype.type(1 / temperature)
    if single:
        flat, top = s.reshape(-1), top_x[0]
        for k in range(rows * m):
            t[k] = (flat[k] - top) * scale
        exponentials(t)
        return forward
    spread, heavy, light = reach(s)
    heaviest, lightest = s.dtype.type(heavy), s.dtype.type(light)
    least, none = s.dtype.type(-spread), s.dtype.type(-np.inf)  # without them products would be subnormal, and slow
    for i in range(rows):
        top, highest = top_x[i], heaviest if p[i] > 0 else lightest
        for j in range(m):
            near = min((s[i, j] - top) * scale, heaviest if q[j] > 0 else lightest)
            forward[i, j] = near if near > least else none
        for j in range(m):
            near = min((s[i, j] - top_y[j]) * scale, highest)
            backward[i, j] = near if near > least else none
    exponentials(t)
    exponentials(backward[:rows].reshape(-1))
    return backward
