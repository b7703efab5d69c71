"""Conditional transport on the CPU: costs and gradients of both navigators, with one exponential an entry.

The forward navigator is q_j E_ij / R_i and the backward one p_i E_ij / K_j, where R_i = Σ_j q_j E_ij and
K_j = Σ_i p_i E_ij: one pass over the rows gives the sums and the costs of both, and one more the gradients. Affinity
and cost are matrices, or are made block by block from the inner products G = X Yᵀ of the features: then G and, in the
gradient, ∂L/∂G are the only n × m matrices. Rows are worked on in blocks that stay in the cache; sums over the rows of
a block have the dtype of the matrices, sums over blocks are float64.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled, parallel, summing
from solvers.kernels.navigators import (
    COSINE,
    GIVEN,
    GREATEST,
    INNER,
    LEAST,
    SQEUCLIDEAN,
    bonus,
    costs,
    fill,
    nearness,
    raise_tops,
    reach,
    widen,
)

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]
Booleans = NDArray[np.bool_]

BLOCK = 4096  # entries of a block of rows
FARTHEST = -1e3  # an exponent below counts as this in the gradient of the temperature: its exponential is 0


@summing
def _add_rows(
    e: Floats, b: Floats, c: Floats, p: Floats, q: Floats, sum_x: Floats, cost_x: Floats, sum_y: Floats, cost_y: Floats
) -> None:  # pragma: no cover - compiled
    """R_i and the mean forward cost of some rows; Σ_i p_i b_ij and Σ_i p_i b_ij c_ij are added to those of columns."""
    n, m = c.shape
    for i in range(n):
        total, cost, weight = c.dtype.type(0), c.dtype.type(0), p[i]
        for j in range(m):
            w = q[j] * e[i, j]
            total += w
            cost += w * c[i, j]
        sum_x[i], cost_x[i] = total, cost / total
        for j in range(m):
            w = weight * b[i, j]
            sum_y[j] += w
            cost_y[j] += w * c[i, j]


@compiled
def _one_cost(
    forms: tuple[int, int],
    S: Floats,
    C: Floats,
    x: Floats,
    y: Floats,
    p: Floats,
    q: Floats,
    temperature: float,
    stats_x: Floats,
    stats_y: Floats,
    space: Floats,
) -> bool:  # pragma: no cover - compiled
    """``transport_costs`` of one problem; returns whether it has one reference."""
    n, m = S.shape
    rows = space.shape[1]
    part = np.empty((2, m), S.dtype)
    part[0], part[1] = np.inf, -np.inf
    for first in range(0, n, rows):
        widen(nearness(forms[0], S, x, y, first, min(n, first + rows), space[0]), part[0], part[1])
    high = np.max(part[1])
    single = (np.float64(high) - np.float64(np.min(part[0]))) / temperature <= reach(S)[0]
    if single:
        stats_x[0], stats_y[0] = high, high
    else:
        stats_x[0], stats_y[0] = -np.inf, -np.inf
        bonus_x, bonus_y = np.empty_like(p), np.empty_like(q)
        bonus(p, temperature, bonus_x)
        bonus(q, temperature, bonus_y)
        for first in range(0, n, rows):
            last = min(n, first + rows)
            s = nearness(forms[0], S, x, y, first, last, space[0])
            raise_tops(s, bonus_x[first:last], bonus_y, stats_x[0, first:last], stats_y[0])
    totals = np.zeros((2, m))
    for first in range(0, n, rows):
        last = min(n, first + rows)
        s = nearness(forms[0], S, x, y, first, last, space[0])
        c = costs(forms[1], C, x, y, first, last, space[1])
        b = fill(single, s, p[first:last], q, stats_x[0, first:last], stats_y[0], temperature, space[2], space[3])
        part[:] = 0
        sum_x, cost_x = stats_x[1, first:last], stats_x[2, first:last]
        _add_rows(space[2], b, c, p[first:last], q, sum_x, cost_x, part[0], part[1])
        totals += part
    stats_y[1], stats_y[2] = totals[0], totals[1] / totals[0]
    return single


@summing
def _gradients(
    e: Floats,
    b: Floats,
    c: Floats,
    u: Floats,
    v: Floats,
    p: Floats,
    q: Floats,
    cost_x: Floats,
    cost_y: Floats,
    temperature: float,
    grad_s: Floats,
    grad_p: Floats,
    grad_q: Floats,
) -> None:  # pragma: no cover - compiled
    """∂L/∂s and ∂L/∂p of some rows, and their part of ∂L/∂q; u e q and v b p are what is transported."""
    n, m = c.shape
    inverse = c.dtype.type(1 / temperature)
    for i in range(n):
        share, cost, weight, total = u[i], cost_x[i], p[i], c.dtype.type(0)
        for j in range(len(grad_q)):
            grad_q[j] += share * e[i, j] * (c[i, j] - cost)
        for j in range(m):
            back = v[j] * b[i, j] * (c[i, j] - cost_y[j])
            total += back
            grad_s[i, j] = inverse * (q[j] * share * e[i, j] * (c[i, j] - cost) + weight * back)
        grad_p[i] = total


@summing
def _plan(
    e: Floats, b: Floats, u: Floats, v: Floats, p: Floats, q: Floats, plan: Floats
) -> None:  # pragma: no cover - compiled
    """What some rows transport both ways, which is ∂L/∂c."""
    for i in range(len(u)):
        share, weight = u[i], p[i]
        for j in range(len(v)):
            plan[i, j] = share * e[i, j] * q[j] + weight * v[j] * b[i, j]


@summing
def _temperature(
    e: Floats,
    b: Floats,
    c: Floats,
    s: Floats,
    u: Floats,
    v: Floats,
    p: Floats,
    q: Floats,
    top_x: Floats,
    top_y: Floats,
    cost_x: Floats,
    cost_y: Floats,
    temperature: float,
) -> float:  # pragma: no cover - compiled
    """The part of some rows in ∂L/∂τ = −Σ (s − reference)/τ² × gradient of the exponent, of both navigators."""
    n, m = c.shape
    inverse, far, result = c.dtype.type(1 / temperature), c.dtype.type(FARTHEST), 0.0
    for i in range(n):
        share, cost, weight, top = u[i], cost_x[i], p[i], top_x[i]
        total = c.dtype.type(0)
        for j in range(m):
            forth = q[j] * share * e[i, j] * (c[i, j] - cost)
            back = weight * v[j] * b[i, j] * (c[i, j] - cost_y[j])
            total += forth * max((s[i, j] - top) * inverse, far) + back * max((s[i, j] - top_y[j]) * inverse, far)
        result -= float(total)
    return result / temperature


@summing
def _chain(
    form: int,
    sign: float,
    d: Floats,
    G: Floats,
    c: Floats,
    x: Floats,
    y: Floats,
    first: int,
    grad_G: Floats,
    own_x: Floats,
    own_y: Floats,
) -> None:  # pragma: no cover - compiled
    """Carry the gradient d of ``sign`` × nearness of the rows from ``first`` on to G and to the norms, adding to each.

    The gradients to the features are Σ_j ∂L/∂G_ij y_j + own_i x_i, and likewise for y.
    """
    n, m = c.shape
    scale, zero = c.dtype.type(sign), c.dtype.type(0)
    least, greatest = c.dtype.type(LEAST), c.dtype.type(GREATEST)
    for i in range(n):
        k, own = first + i, zero
        if form == INNER:
            for j in range(m):
                grad_G[k, j] += scale * d[i, j]
        elif form == COSINE:
            inverse = x[0, k]
            factor = scale * inverse
            for j in range(m):
                grad_G[k, j] += factor * y[0, j] * d[i, j]
            for j in range(m):
                w = factor * y[0, j] * d[i, j] * G[k, j]
                own -= w
                own_y[j] -= w * y[0, j] * y[0, j]
            own *= inverse * inverse
        elif form == SQEUCLIDEAN:
            for j in range(m):
                w = (scale + scale) * d[i, j]
                own -= w
                grad_G[k, j] += w
                own_y[j] -= w
        else:
            for j in range(m):
                grad_G[k, j] -= d[i, j] * c[i, j] if least <= c[i, j] <= greatest else zero
        own_x[k] += own


@compiled
def _one_gradient(
    forms: tuple[int, int],
    S: Floats,
    C: Floats,
    x: Floats,
    y: Floats,
    from_x: Floats,
    from_y: Floats,
    p: Floats,
    q: Floats,
    temperature: float,
    single: bool,
    stats_x: Floats,
    stats_y: Floats,
    grad_S: Floats,
    grad_C: Floats,
    grad_p: Floats,
    grad_q: Doubles,
    grad_temperature: Doubles,
    own_x: Floats,
    own_y: Doubles,
    space: Floats,
) -> None:  # pragma: no cover - compiled
    """``transport_gradients`` of one problem."""
    n, rows = len(S), space.shape[1]
    given, wants_s, wants_c = forms[0] == GIVEN, len(grad_S) > 0, len(grad_C) > 0
    top_y, cost_y, v = stats_y[0], stats_y[2], from_y / stats_y[1]
    part_q, part_y = np.empty(len(grad_q), S.dtype), np.empty(len(own_y), S.dtype)
    for first in range(0, n, rows):
        last = min(n, first + rows)
        top_x, cost_x = stats_x[0, first:last], stats_x[2, first:last]
        u, w = from_x[first:last] / stats_x[1, first:last], p[first:last]
        s = nearness(forms[0], S, x, y, first, last, space[0])
        c = costs(forms[1], C, x, y, first, last, space[1])
        e, to_s, to_c = space[2], space[4], space[5]
        b = fill(single, s, w, q, top_x, top_y, temperature, e, space[3])
        if given and wants_s:
            to_s = grad_S[first:last]
        if wants_c:
            to_c = grad_C[first:last]
        if wants_s:
            part_q[:] = 0
            _gradients(e, b, c, u, v, w, q, cost_x, cost_y, temperature, to_s, grad_p[first:last], part_q)
            grad_q += part_q
        if len(grad_temperature) > 0:
            grad_temperature[0] += _temperature(e, b, c, s, u, v, w, q, top_x, top_y, cost_x, cost_y, temperature)
        if wants_c or not given:
            _plan(e, b, u, v, w, q, to_c)
        if not given:
            part_y[:] = 0
            grad_S[first:last] = 0
            _chain(forms[0], 1.0, to_s, S, c, x, y, first, grad_S, own_x, part_y)
            _chain(forms[1], -1.0, to_c, S, c, x, y, first, grad_S, own_x, part_y)
            own_y += part_y


@parallel
def transport_costs(
    forms: tuple[int, int],
    S: Floats,
    C: Floats,
    x: Floats,
    y: Floats,
    p: Floats,
    q: Floats,
    temperature: Doubles,
    single: Booleans,
    stats_x: Floats,
    stats_y: Floats,
    chunks: int,
) -> None:  # pragma: no cover - compiled
    """References, sums and mean costs of both navigators for a batch of problems.

    S, C (B, n, m) are affinity and cost where ``forms`` are GIVEN, and otherwise G = X Yᵀ twice; x (B, 2, n) and
    y (B, 2, m) are then the inverse norms (0 of a zero vector) and the squared norms, else (B, 2, 0). p (B, n) and
    q (B, m) are the weights in the navigators, the largest of each 1; temperature (B,). Written: single (B,), and for
    each point its reference, sum and mean cost, stats_x (B, 3, n) and stats_y (B, 3, m).
    """
    batch, n, m = S.shape
    for chunk in prange(chunks):
        space = np.empty((4, min(n, max(1, BLOCK // m)), m), S.dtype)
        for k in range(chunk * batch // chunks, (chunk + 1) * batch // chunks):
            single[k] = _one_cost(
                forms, S[k], C[k], x[k], y[k], p[k], q[k], temperature[k], stats_x[k], stats_y[k], space
            )


@parallel
def transport_gradients(
    forms: tuple[int, int],
    S: Floats,
    C: Floats,
    x: Floats,
    y: Floats,
    from_x: Floats,
    from_y: Floats,
    p: Floats,
    q: Floats,
    temperature: Doubles,
    single: Booleans,
    stats_x: Floats,
    stats_y: Floats,
    grad_S: Floats,
    grad_C: Floats,
    grad_p: Floats,
    grad_q: Doubles,
    grad_temperature: Doubles,
    own_x: Floats,
    own_y: Doubles,
    chunks: int,
) -> None:  # pragma: no cover - compiled
    """Gradients of Σ_i from_x_i (forward cost of i) + Σ_j from_y_j (backward cost of j), after ``transport_costs``.

    Set: grad_S, grad_C (B, n, m) and grad_p (B, n); added to: grad_q (B, m) and grad_temperature (B, 1). One without
    entries is not wanted; grad_p and grad_q come with grad_S. grad_C is also the plan. For features, grad_S is ∂L/∂G,
    grad_C is not wanted, and own_x (B, n) and own_y (B, m) are added to: ∂L/∂x_i = Σ_j ∂L/∂G_ij y_j + own_i x_i.
    """
    batch, n, m = S.shape
    for chunk in prange(chunks):
        space = np.empty((6, min(n, max(1, BLOCK // m)), m), S.dtype)
        for k in range(chunk * batch // chunks, (chunk + 1) * batch // chunks):
            _one_gradient(
                forms,
                S[k],
                C[k],
                x[k],
                y[k],
                from_x[k],
                from_y[k],
                p[k],
                q[k],
                temperature[k],
                single[k],
                stats_x[k],
                stats_y[k],
                grad_S[k],
                grad_C[k],
                grad_p[k],
                grad_q[k],
                grad_temperature[k],
                own_x[k],
                own_y[k],
                space,
            )
