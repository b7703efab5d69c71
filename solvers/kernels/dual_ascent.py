"""The level-1 RLT dual of a quadratic assignment, factorised, and Hahn and Grant's way up.

With pair costs A[i, k] B[j, l] + A[k, i] B[l, j] between the choices (i, j) and (k, l), i ≠ k, j ≠ l, the dual
variables U_ij,k and V_ij,l reprice the choice (i, j) against every row k and every column l:

    leader        λ_ij    = L_ij + A_ii B_jj + Σ_k U_ij,k + Σ_l V_ij,l
    residual      R_ij,kl = A_ik B_jl + A_ki B_lj − U_ij,k − V_ij,l − U_kl,i − V_kl,j    (= R_kl,ij)

Repricing leaves the objective of every permutation as it is. While R ≥ 0, the cheapest assignment of the leaders is a
lower bound (Hahn and Grant, "Lower bounds for the quadratic assignment problem based upon a dual formulation",
Operations Research 46 (1998); factorised by Schnaus, Araslanov and Cremers, "It's a (Blind) Match!", CVPR 2025). Only
U and V are kept, O(n³) numbers: U[k, i, j] is U_ij,k and V[l, i, j] is V_ij,l, so that what one visit to (i, j) takes
from the others, U[i] and V[j], lies together.

The published ascent spreads the leaders over their rows and then, choice by choice, moves the duals of the assignment
problem on R_ij into the leader. It stalls, as coordinate ascent on a polyhedral function may; ``smoothed_dual`` does
not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from solvers.kernels.assignment import shortest_augmenting_path
from solvers.kernels.compiling import compiled, summing
from solvers.kernels.intrinsics import smaller

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


class Dual(NamedTuple):
    """A problem and where its dual variables stand; every array is C-contiguous float64.

    ``leaders`` are reduced: what the assignment of the leaders has given so far is in ``bound`` instead.
    """

    A: Doubles  # (n, n)
    AT: Doubles
    B: Doubles  # (n, n)
    BT: Doubles
    U: Doubles  # (n, n, n)
    V: Doubles  # (n, n, n)
    leaders: Doubles  # (n, n)
    bound: Doubles  # (1,)


def new_dual(A: Doubles, B: Doubles, L: Doubles, U: Doubles | None = None, V: Doubles | None = None) -> Dual:
    """The dual of a problem, at zero or at the U and V given, which it takes over."""
    n = len(A)
    A, B = (np.ascontiguousarray(M, np.float64) for M in (A, B))
    U = np.zeros((n, n, n)) if U is None else U
    V = np.zeros((n, n, n)) if V is None else V
    leaders = L + np.outer(np.diag(A), np.diag(B)) + U.sum(0) + V.sum(0)
    return Dual(A, np.ascontiguousarray(A.T), B, np.ascontiguousarray(B.T), U, V, leaders, np.zeros(1))


class Scratch(NamedTuple):
    """For the assignment problems of one thread."""

    cost: Doubles  # (n − 1, n − 1)
    p: Integers  # (n,)
    q: Integers
    u: Doubles
    v: Doubles
    values: Doubles  # (3, n)
    indices: Integers  # (4, n)


@compiled
def _new_scratch(n: int) -> Scratch:  # pragma: no cover - compiled
    p, q = np.empty(n, np.int64), np.empty(n, np.int64)
    return Scratch(
        np.empty((max(1, n - 1), max(1, n - 1))),
        p,
        q,
        np.empty(n),
        np.empty(n),
        np.empty((3, n)),
        np.empty((4, n), np.int64),
    )


@compiled
def _assign_leaders(dual: Dual, scratch: Scratch) -> None:  # pragma: no cover - compiled
    """Move the optimal duals of the leaders into the bound; their assignment is left in ``scratch.p``."""
    leaders = dual.leaders
    n = len(leaders)
    shortest_augmenting_path(leaders, True, scratch.p, scratch.q, scratch.u, scratch.v, scratch.values, scratch.indices)
    for i in range(n):
        dual.bound[0] += scratch.u[i] + scratch.v[i]
        for j in range(n):
            leaders[i, j] -= scratch.u[i] + scratch.v[j]


@compiled
def residuals(dual: Dual, i: int, j: int, cost: Doubles) -> None:  # pragma: no cover - compiled
    """R_ij without row i and column j, to ``cost`` (n − 1, n − 1)."""
    A, AT, B, BT, U, V, _, _ = dual
    n = len(A)
    for k in range(n):
        row = k - (k > i)
        if k == i:
            continue
        for l in range(n):
            if l != j:
                cost[row, l - (l > j)] = (
                    A[i, k] * B[j, l] + AT[i, k] * BT[j, l] - U[k, i, j] - V[l, i, j] - U[i, k, l] - V[j, k, l]
                )


@compiled
def move_to_duals(dual: Dual, i: int, j: int, u: Doubles, v: Doubles) -> float:  # pragma: no cover - compiled
    """Take the duals u, v of R_ij from it; their sum is what the leader of (i, j) gains."""
    gain = 0.0
    for k in range(len(dual.A) - 1):
        gain += u[k] + v[k]
        dual.U[k + (k >= i), i, j] += u[k]
        dual.V[k + (k >= j), i, j] += v[k]
    return gain


@compiled
def _visit(dual: Dual, i: int, j: int, scratch: Scratch) -> None:  # pragma: no cover - compiled
    """Move the optimal duals of the assignment problem on R_ij into the leader of (i, j)."""
    cost, m = scratch.cost, len(dual.A) - 1
    residuals(dual, i, j, cost)
    shortest_augmenting_path(
        cost, True, scratch.p[:m], scratch.q[:m], scratch.u[:m], scratch.v[:m], scratch.values, scratch.indices
    )
    dual.leaders[i, j] += move_to_duals(dual, i, j, scratch.u, scratch.v)


@compiled
def _spread(dual: Dual) -> None:  # pragma: no cover - compiled
    """Give every leader back to the rows of its residuals, in equal parts."""
    U, leaders = dual.U, dual.leaders
    n = len(leaders)
    for i in range(n):
        for j in range(n):
            for k in range(n):
                if k != i:
                    U[k, i, j] -= leaders[i, j] / (n - 1)
            leaders[i, j] = 0.0


@compiled
def note(permutation: Integers, i: int, j: int, p: Integers) -> None:  # pragma: no cover - compiled
    """i → j and the assignment p of the others."""
    permutation[i] = j
    for k in range(len(permutation) - 1):
        permutation[k + (k >= i)] = p[k] + (p[k] >= j)


@compiled
def exact_sweep(dual: Dual, permutations: Integers) -> None:  # pragma: no cover - compiled
    """A sweep as published: assign the leaders, spread what is left, visit the choices by increasing leader.

    ``permutations`` (n² + 1, n) gets the assignment of the leaders and those of the visits, each with its choice.
    """
    n = len(dual.A)
    scratch = _new_scratch(n)
    _assign_leaders(dual, scratch)
    permutations[0] = scratch.p
    order = np.argsort(dual.leaders.ravel(), kind="mergesort")
    _spread(dual)
    for turn in range(n * n if n > 1 else 0):
        i, j = order[turn] // n, order[turn] % n
        _visit(dual, i, j, scratch)
        note(permutations[1 + turn], i, j, scratch.p)
    if n == 1:
        permutations[1] = 0


@summing
def _visit_by_minima(dual: Dual, i: int, j: int, R: Doubles, low: Doubles) -> None:  # pragma: no cover - compiled
    """Move the minima of the rows of R_ij into its leader, then those of the columns: R_ij is non-negative after it.

    Cheaper than an assignment, and near enough where the smoothed ascent has been; scratch R (n, n) and low (n,).
    """
    A, AT, B, BT, U, V, leaders, _ = dual
    n = len(A)
    own = R[i]
    for l in range(n):
        own[l] = V[l, i, j]
        low[l] = np.inf
    own[j] = -np.inf  # no pair lies in column j
    moved = 0.0
    for k in range(n):
        if k == i:
            continue
        a, a_, u, best = A[i, k], AT[i, k], U[k, i, j], np.inf
        for l in range(n):
            R[k, l] = (a * B[j, l] + a_ * BT[j, l]) - (U[i, k, l] + V[j, k, l]) - own[l] - u
            best = smaller(R[k, l], best)
        for l in range(n):
            low[l] = smaller(R[k, l] - best, low[l])
        U[k, i, j] = u + best
        moved += best
    for l in range(n):
        if l != j:
            V[l, i, j] += low[l]
            moved += low[l]
    leaders[i, j] += moved


@compiled
def finish(dual: Dual, p: Integers) -> None:  # pragma: no cover - compiled
    """Visit every choice, then assign the leaders, to p (n,): makes a bound of dual variables nearly feasible."""
    n = len(dual.A)
    scratch = _new_scratch(n)
    R, low = np.empty((n, n)), np.empty(n)
    for i in range(n if n > 1 else 0):
        for j in range(n):
            _visit_by_minima(dual, i, j, R, low)
    _assign_leaders(dual, scratch)
    p[:] = scratch.p
