"""Descent of E(T) = ⟨A T Bᵀ, T⟩ + ⟨L, T⟩ over the couplings T of weights a (n,) and b (m,).

Everything rests on the linear map H(X) = A X Bᵀ + Aᵀ X B: the gradient is G = H(T) + L, and along T + α D the energy
is E + α ⟨G, D⟩ + α²/2 ⟨H(D), D⟩, minimised in closed form. Both methods move towards a coupling S that minimises the
linearised energy, exactly (an assignment or a vertex from outside) or with an entropy (Sinkhorn), and keep H(T) up to
date instead of computing it anew.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from solvers.kernels.assignment import LANES, shortest_augmenting_path
from solvers.kernels.compiling import compiled, parallel, summing
from solvers.kernels.sinkhorn import solve_in_cache, space_for

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

RUNNING, CONVERGED, NON_FINITE = 0, 1, 2
ATOMS = 32  # vertices remembered; when they are all in use the plan itself becomes the new start
INNER_SHARE = 0.1  # the marginals of a step are good to this share of the last one's length: looser ones lead elsewhere


class Descent(NamedTuple):
    """One problem on its way: the energy, the coupling T, and where T came from. Arrays are float64.

    left (n, s n) and right (s, m, m) make H(X) = left · [X right₀; X right₁], with s = 1 where A or B is symmetric.
    T = weights[0] · start + Σ_v weights[v] · (vertex v); vertex v is sparse, ``mass[v]`` at (``rows[v]``,
    ``columns[v]``), and slot 0 holds the vertex to move to. ``G`` may have columns of padding,
    ``stacked`` is [X right₀; X right₁], and ``X`` is what the step leads to or away from.
    """

    left: Doubles
    right: Doubles
    L: Doubles
    T: Doubles
    HT: Doubles
    G: Doubles
    start: Doubles
    H_start: Doubles
    rows: Integers
    columns: Integers
    mass: Doubles
    weights: Doubles
    stacked: Doubles
    X: Doubles
    HX: Doubles


@compiled
def begin(
    A: Doubles, B: Doubles, L: Doubles, T: Doubles, width: int, entries: int
) -> Descent:  # pragma: no cover - compiled
    """The descent that starts at T (n, m), which is updated in place; vertices have at most ``entries`` entries."""
    n, m = T.shape
    s = 1 if (A == A.T).all() or (B == B.T).all() else 2
    left, right = np.empty((n, s * n)), np.empty((s, m, m))
    if s == 1:
        left[:, :n] = (A + A.T) / 2
        right[0] = B + B.T
    else:
        left[:, :n] = A
        left[:, n:] = A.T
        right[0] = B.T
        right[1] = B
    G = np.full((n, width), np.inf)
    slots = (ATOMS + 1, entries)
    state = Descent(
        left, right, L, T, np.empty((n, m)), G, T.copy(), np.empty((n, m)),
        np.zeros(slots, np.int64), np.zeros(slots, np.int64), np.zeros(slots), np.zeros(ATOMS + 1),
        np.empty((s * n, m)), np.empty((n, m)), np.empty((n, m)),
    )  # fmt: skip
    _curvature(state, T, state.HT)
    _start_here(state)
    return state


@compiled
def _curvature(state: Descent, X: Doubles, out: Doubles) -> None:  # pragma: no cover - compiled
    """H(X) of a dense X (n, m)."""
    n = len(X)
    for r in range(len(state.right)):
        np.dot(X, state.right[r], state.stacked[r * n : (r + 1) * n])
    np.dot(state.left, state.stacked, out)


@compiled
def _curvature_of_vertex(state: Descent, v: int) -> None:  # pragma: no cover - compiled
    """H(X) of vertex ``v``, into state.HX: the first product only adds up rows."""
    n, m = state.T.shape
    state.stacked[:] = 0.0
    for r in range(len(state.right)):
        for e in range(state.mass.shape[1]):
            w, i, j = state.mass[v, e], state.rows[v, e], state.columns[v, e]
            for k in range(m):
                state.stacked[r * n + i, k] += w * state.right[r, j, k]
    np.dot(state.left, state.stacked, state.HX)


@summing
def _inner(X: Doubles, Y: Doubles) -> float:  # pragma: no cover - compiled
    """⟨X, Y⟩ of X (n, m) and the first m columns of Y."""
    total = 0.0
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            total += X[i, j] * Y[i, j]
    return total


@compiled
def _inner_with_vertex(state: Descent, v: int) -> float:  # pragma: no cover - compiled
    """⟨G, X⟩ of vertex ``v``."""
    total = 0.0
    for e in range(state.mass.shape[1]):
        total += state.mass[v, e] * state.G[state.rows[v, e], state.columns[v, e]]
    return total


@compiled
def _start_here(state: Descent) -> None:  # pragma: no cover - compiled
    """T becomes the start, and the vertices it was made of are forgotten."""
    state.start[:] = state.T
    state.H_start[:] = state.HT
    state.weights[:] = 0.0
    state.weights[0] = 1.0


@summing
def gradient(state: Descent) -> bool:  # pragma: no cover - compiled
    """G = H(T) + L; returns whether it is finite."""
    n, m = state.T.shape
    total = 0.0
    for i in range(n):
        for j in range(m):
            g = state.HT[i, j] + state.L[i, j]
            state.G[i, j] = g
            total += abs(g)
    return total < np.inf


@summing
def _curvature_along(state: Descent) -> float:  # pragma: no cover - compiled
    """½ ⟨H(D), D⟩ for D = X − T."""
    total = 0.0
    for i in range(state.T.shape[0]):
        for j in range(state.T.shape[1]):
            total += (state.X[i, j] - state.T[i, j]) * (state.HX[i, j] - state.HT[i, j])
    return total / 2


@compiled
def _move(state: Descent, step: float) -> None:  # pragma: no cover - compiled
    """T += step (X − T), H(T) likewise; a whole step lands on X exactly."""
    if step == 1.0:
        state.T[:] = state.X
        state.HT[:] = state.HX
        return
    for i in range(state.T.shape[0]):
        for j in range(state.T.shape[1]):
            t = state.T[i, j] + step * (state.X[i, j] - state.T[i, j])
            state.T[i, j] = t if t > 0.0 else 0.0
            state.HT[i, j] += step * (state.HX[i, j] - state.HT[i, j])


@compiled
def advance(state: Descent, limit: float) -> bool:  # pragma: no cover - compiled
    """One step of the conditional gradient method with away steps (Guélat and Marcotte, Math. Programming 35, 1986).

    Slot 0 holds S, a vertex that minimises ⟨G, ·⟩. The step goes towards S, or away from the vertex of T with the
    largest ⟨G, ·⟩ where that is steeper, which spares the method its zigzag when the minimum is not a vertex. Returns
    whether T was already good: the gap ⟨G, T − S⟩ is at most ``limit``.
    """
    here = _inner(state.T, state.G)
    gap = here - _inner_with_vertex(state, 0)
    if gap <= limit:
        return True
    v, away = 0, -np.inf
    for slot in range(ATOMS + 1):
        if state.weights[slot] > 0.0:
            value = _inner(state.start, state.G) if slot == 0 else _inner_with_vertex(state, slot)
            if value - here > away:
                v, away = slot, value - here
    forward = gap >= away
    if v == 0 and not forward:
        state.X[:] = state.start
        state.HX[:] = state.H_start
    else:
        v = 0 if forward else v
        state.X[:] = 0.0
        for e in range(state.mass.shape[1]):
            state.X[state.rows[v, e], state.columns[v, e]] += state.mass[v, e]
        _curvature_of_vertex(state, v)
    curvature = _curvature_along(state)
    # A step t along X − T: forward for t > 0, away for t < 0, at most until the weight of X is used up.
    longest = 1.0 if forward else state.weights[v] / (1.0 - state.weights[v])
    step = max(gap, away) / (2.0 * curvature) if curvature > 0.0 else np.inf
    whole = step >= longest
    step = min(step, longest)
    if forward:
        _forward_weights(state, step)
    else:
        state.weights[:] *= 1.0 + step
        state.weights[v] = 0.0 if whole else state.weights[v] - step
    _move(state, step if forward else -step)
    if state.weights[1:].min() > 0.0:
        _start_here(state)
    return False


@compiled
def _forward_weights(state: Descent, step: float) -> None:  # pragma: no cover - compiled
    """T ← (1 − step) T + step S: S takes its old slot, or a free one, of which there always is one."""
    state.weights[:] *= 1.0 - step
    slot = 0
    for v in range(ATOMS, 0, -1):
        if state.weights[v] <= 0.0:
            slot = v
    for v in range(1, ATOMS + 1):
        if (
            state.weights[v] > 0.0
            and (state.columns[v] == state.columns[0]).all()
            and (state.rows[v] == state.rows[0]).all()
        ):
            slot = v
    state.rows[slot], state.columns[slot], state.mass[slot] = state.rows[0], state.columns[0], state.mass[0]
    state.weights[slot] += step


@compiled
def _conditional_gradient(
    A: Doubles, B: Doubles, L: Doubles, mass: float, T: Doubles, limit: float, first: int, last: int
) -> tuple[int, int]:  # pragma: no cover - compiled
    """Iterations ``first`` … ``last`` of one problem with n = m and equal weights; see conditional_gradient."""
    n = len(A)
    width = n if n >= 4 * LANES else (n + LANES - 1) // LANES * LANES
    state = begin(A, B, L, T, width, n)
    state.rows[:] = np.arange(n)
    state.mass[:] = mass
    column_to_row, u, v = np.empty(width, np.int64), np.empty(n), np.empty(width)
    values, indices = np.empty((3, width)), np.empty((4, width), np.int64)
    for iteration in range(first, last):
        if not gradient(state):
            return iteration, NON_FINITE
        shortest_augmenting_path(state.G, True, state.columns[0], column_to_row, u, v, values, indices)
        if advance(state, limit):
            return iteration, CONVERGED
    return last, RUNNING


@parallel
def conditional_gradient(
    A: Doubles,
    B: Doubles,
    L: Doubles,
    mass: Doubles,
    T: Doubles,
    limit: Doubles,
    last: int,
    iterations: Integers,
    states: Integers,
    chunks: int,
) -> None:  # pragma: no cover - compiled
    """Conditional gradient with away steps where all weights equal ``mass``, until iteration ``last``.

    Each problem stops by itself, when its gap ⟨G, T − S⟩ is at most its ``limit`` (batch,). A, B, L and T are
    (batch, n, n) and mass (batch,), float64; updated in place: T, iterations (batch,) and states (batch,), RUNNING,
    CONVERGED or NON_FINITE. Called again with a larger ``last`` it goes on from T.
    """
    batch = len(A)
    for chunk in prange(chunks):
        for k in range(chunk * batch // chunks, (chunk + 1) * batch // chunks):
            if states[k] == RUNNING:
                iterations[k], states[k] = _conditional_gradient(
                    A[k], B[k], L[k], mass[k], T[k], limit[k], iterations[k], last
                )


@summing
def _distance(T: Doubles, S: Doubles) -> float:  # pragma: no cover - compiled
    """‖S − T‖₁."""
    total = 0.0
    for i in range(T.shape[0]):
        for j in range(T.shape[1]):
            total += abs(S[i, j] - T[i, j])
    return total


@compiled
def _divergence(T: Doubles, S: Doubles) -> float:  # pragma: no cover - compiled
    """KL(T | S) = Σ T log(T/S) − T + S, by its series where T is close to S, so that it does not cancel."""
    total = 0.0
    for i in range(T.shape[0]):
        for j in range(T.shape[1]):
            t, s = T[i, j], S[i, j]
            d = t - s
            if abs(d) < 1e-4 * s:
                total += d * d / s * (0.5 - d / s / 6.0)
            else:
                total += t * np.log(t / s) - d if t > 0.0 else s
    return total


@compiled
def _projected_gradient(
    A: Doubles,
    B: Doubles,
    L: Doubles,
    a: Doubles,
    b: Doubles,
    reg: float,
    T: Doubles,
    f: Doubles,
    g: Doubles,
    limit: float,
    first: int,
    last: int,
    inner: int,
) -> tuple[int, int]:  # pragma: no cover - compiled
    """Iterations ``first`` … ``last`` of one problem; see projected_gradient."""
    state, space = begin(A, B, L, T, T.shape[1], 1), space_for(T)
    distance = a.sum()
    for iteration in range(first, last):
        if not gradient(state):
            return iteration, NON_FINITE
        target = INNER_SHARE * max(distance, limit)
        reached = solve_in_cache(state.G, a, b, reg, target, 0, inner, f, g, state.X, space)[1]
        distance = _distance(T, state.X)
        if not distance < np.inf:
            return iteration, NON_FINITE
        _curvature(state, state.X, state.HX)
        curvature, step = _curvature_along(state), 1.0
        if curvature > 0.0:  # with log S = (f + g − G)/ε, the objective falls at the rate ε KL(T | S)
            step = min(reg * _divergence(T, state.X) / (2.0 * curvature), 1.0)
        _move(state, step)
        if reached and distance <= limit:
            return iteration + 1, CONVERGED
    return last, RUNNING


@parallel
def projected_gradient(
    A: Doubles,
    B: Doubles,
    L: Doubles,
    a: Doubles,
    b: Doubles,
    reg: float,
    T: Doubles,
    f: Doubles,
    g: Doubles,
    limit: Doubles,
    last: int,
    inner: int,
    iterations: Integers,
    states: Integers,
    chunks: int,
) -> None:  # pragma: no cover - compiled
    """Projected gradient on E(T) + ε Σ T log T, until iteration ``last`` (Peyré, Cuturi and Solomon, ICML 2016).

    One iteration is S = argmin ⟨G, S⟩ + ε Σ S log S by at most ``inner`` Sinkhorn iterations from the last potentials,
    then T ← S. That is monotone where E is concave along S − T (distances of Euclidean type); elsewhere the step is
    cut to the minimum of the upper bound that the convexity of the entropy gives. Each problem stops by itself, when
    ‖S − T‖₁ and the error of the marginals are at most its ``limit`` (batch,). A (batch, n, n), B (batch, m, m),
    L (batch, n, m), a (batch, n), b (batch, m), float64; updated in place: T (batch, n, m), the potentials f (batch, n)
    and g (batch, m), iterations and states (batch,), as in conditional_gradient.
    """
    batch = len(A)
    for chunk in prange(chunks):
        for k in range(chunk * batch // chunks, (chunk + 1) * batch // chunks):
            if states[k] == RUNNING:
                iterations[k], states[k] = _projected_gradient(
                    A[k], B[k], L[k], a[k], b[k], reg, T[k], f[k], g[k], limit[k], iterations[k], last, inner
                )
