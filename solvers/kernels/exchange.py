"""Pair exchanges on a quadratic assignment: all n(n − 1)/2 changes of the objective, kept up to date move by move.

Let p match i with p(i), and b_xy = B[p(x), p(y)]. Exchanging the partners of r and s changes the objective by

    D_rs = (a_rr − a_ss)(b_ss − b_rr) + (a_rs − a_sr)(b_sr − b_rs)
           + Σ_{k ≠ r, s} (a_rk − a_sk)(b_sk − b_rk) + (a_kr − a_ks)(b_ks − b_kr)
           + L[r, p(s)] + L[s, p(r)] − L[r, p(r)] − L[s, p(s)].

After that exchange every D_ij with i, j ∉ {r, s} has grown by (α_i − α_j)(β_i − β_j) + (α'_i − α'_j)(β'_i − β'_j),
where α = a_r· − a_s·, β = b_s· − b_r·, and α', β' are the same of the columns (Taillard, "Robust taboo search for the
quadratic assignment problem", Parallel Computing 17 (1991), factored): a move costs O(n²) in all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled, summing

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


class Problem(NamedTuple):
    """The matrices of one problem, (n, n), C-contiguous float64; AT is A transposed.

    ``symmetric`` says that A and B both are: rows then say what columns would.
    """

    A: Doubles
    AT: Doubles
    B: Doubles
    L: Doubles
    symmetric: bool


def lay_out(A: NDArray, B: NDArray, L: NDArray) -> Problem:
    """A problem from matrices of any floating dtype and layout."""
    A, B, L = (np.ascontiguousarray(M, np.float64) for M in (A, B, L))
    symmetric = np.array_equal(A, A.T) and np.array_equal(B, B.T)
    return Problem(A, np.ascontiguousarray(A.T), B, L, symmetric)


class Position(NamedTuple):
    """A permutation p (n,), b (n, n) and its transpose, and D (n, n) above the diagonal."""

    p: Integers
    b: Doubles
    bT: Doubles
    D: Doubles


@compiled
def new_position(n: int) -> Position:  # pragma: no cover - compiled
    """The identity, not yet placed."""
    return Position(np.arange(n), np.empty((n, n)), np.empty((n, n)), np.zeros((n, n)))


@summing
def objective(problem: Problem, p: Integers) -> float:  # pragma: no cover - compiled
    """Σ_ij A[i, j] B[p(i), p(j)] + Σ_i L[i, p(i)]."""
    A, B, L = problem.A, problem.B, problem.L
    total = 0.0
    for i in range(len(p)):
        total += L[i, p[i]]
        for j in range(len(p)):
            total += A[i, j] * B[p[i], p[j]]
    return total


@compiled
def objectives(problem: Problem, permutations: Integers) -> Doubles:  # pragma: no cover - compiled
    """The objective of each permutation (count, n)."""
    values = np.empty(len(permutations))
    for k in range(len(permutations)):
        values[k] = objective(problem, permutations[k])
    return values


@summing
def _change(problem: Problem, now: Position, r: int, s: int) -> float:  # pragma: no cover - compiled
    """D_rs from its definition."""
    A, AT, L = problem.A, problem.AT, problem.L
    b, bT, p = now.b, now.bT, now.p
    total = 0.0
    for k in range(len(p)):
        total += (A[r, k] - A[s, k]) * (b[s, k] - b[r, k])
    if problem.symmetric:
        total += total
    else:
        for k in range(len(p)):
            total += (AT[r, k] - AT[s, k]) * (bT[s, k] - bT[r, k])
    for k in (r, s):  # what the sums have too much
        total -= (A[r, k] - A[s, k]) * (b[s, k] - b[r, k]) + (AT[r, k] - AT[s, k]) * (bT[s, k] - bT[r, k])
    total += (A[r, r] - A[s, s]) * (b[s, s] - b[r, r]) + (A[r, s] - A[s, r]) * (b[s, r] - b[r, s])
    return total + ((L[r, p[s]] - L[r, p[r]]) + (L[s, p[r]] - L[s, p[s]]))


@compiled
def place(problem: Problem, now: Position) -> None:  # pragma: no cover - compiled
    """Compute b and D of the permutation in ``now``."""
    B, p, n = problem.B, now.p, len(now.p)
    for i in range(n):
        for j in range(n):
            now.b[i, j] = B[p[i], p[j]]
            now.bT[j, i] = now.b[i, j]
    for r in range(n):
        for s in range(r + 1, n):
            now.D[r, s] = _change(problem, now, r, s)


@summing
def _update(problem: Problem, now: Position, r: int, s: int, scratch: Doubles) -> None:  # pragma: no cover - compiled
    """D of the pairs, all of them, as if none met the exchanged r and s; scratch (4, n)."""
    A, AT, b, bT, D = problem.A, problem.AT, now.b, now.bT, now.D
    n = len(now.p)
    alpha, beta, alpha_, beta_ = scratch
    if problem.symmetric:
        for x in range(n):
            alpha[x] = 2 * (A[r, x] - A[s, x])
            beta[x] = b[s, x] - b[r, x]
        for i in range(n):
            a, c = alpha[i], beta[i]
            for j in range(i + 1, n):
                D[i, j] += (a - alpha[j]) * (c - beta[j])
        return
    for x in range(n):
        alpha[x] = A[r, x] - A[s, x]
        beta[x] = b[s, x] - b[r, x]
        alpha_[x] = AT[r, x] - AT[s, x]
        beta_[x] = bT[s, x] - bT[r, x]
    for i in range(n):
        a, c, a_, c_ = alpha[i], beta[i], alpha_[i], beta_[i]
        for j in range(i + 1, n):
            D[i, j] += (a - alpha[j]) * (c - beta[j]) + (a_ - alpha_[j]) * (c_ - beta_[j])


@compiled
def exchange(problem: Problem, now: Position, r: int, s: int, scratch: Doubles) -> None:  # pragma: no cover - compiled
    """Exchange the partners of r and s; scratch (4, n)."""
    b, bT, p, n = now.b, now.bT, now.p, len(now.p)
    p[r], p[s] = p[s], p[r]
    for k in range(n):
        b[r, k], b[s, k] = b[s, k], b[r, k]
        bT[r, k], bT[s, k] = bT[s, k], bT[r, k]
    for k in range(n):
        b[k, r], b[k, s] = b[k, s], b[k, r]
        bT[k, r], bT[k, s] = bT[k, s], bT[k, r]
    _update(problem, now, r, s, scratch)
    for x in range(n):
        if x != r:
            now.D[min(r, x), max(r, x)] = _change(problem, now, r, x)
        if x not in (r, s):
            now.D[min(s, x), max(s, x)] = _change(problem, now, s, x)


@compiled
def best_exchange(D: Doubles) -> tuple[float, int, int]:  # pragma: no cover - compiled
    """The lowest change and its pair."""
    n = len(D)
    lowest, row = np.inf, 0
    for i in range(n - 1):
        low = np.inf
        for j in range(i + 1, n):
            low = D[i, j] if D[i, j] < low else low
        if low < lowest:
            lowest, row = low, i
    for j in range(row + 1, n):
        if D[row, j] == lowest:
            return lowest, row, j
    return np.inf, 0, 0


@compiled
def descend(problem: Problem, now: Position, threshold: float, scratch: Doubles) -> float:  # pragma: no cover
    """Make the best exchange until none lowers the objective by more than ``threshold``; the change in all."""
    total = 0.0
    while True:
        change, r, s = best_exchange(now.D)
        if not change < -threshold:
            return total
        exchange(problem, now, r, s, scratch)
        total += change


@compiled
def copy_position(source: Position, target: Position) -> None:  # pragma: no cover - compiled
    """Write one position over another."""
    target.p[:], target.b[:], target.bT[:], target.D[:] = source.p, source.b, source.bT, source.D
