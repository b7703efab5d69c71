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

from solvers.kernels.compiling import compiled, inlined, inner, summing
from solvers.kernels.intrinsics import at
from solvers.kernels.vectors import (
    LANES,
    constant,
    least,
    load,
    lowest,
    multiply_add,
    padded,
    spread,
    store,
    total,
    where_positive,
)

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


class Problem(NamedTuple):
    """The matrices of one problem, C-contiguous float64; AT is A transposed.

    ``symmetric`` says that A and B both are: rows then say what columns would.
    """

    A: Doubles  # (n, width), zero in the padding
    AT: Doubles
    B: Doubles  # (n, n)
    L: Doubles
    symmetric: bool


def lay_out(A: NDArray, B: NDArray, L: NDArray) -> Problem:
    """A problem from matrices of any floating dtype and layout."""
    A, B, L = (np.ascontiguousarray(M, np.float64) for M in (A, B, L))
    symmetric = np.array_equal(A, A.T) and np.array_equal(B, B.T)
    padding = ((0, 0), (0, padded(len(A), LANES) - len(A)))
    return Problem(np.pad(A, padding), np.ascontiguousarray(np.pad(A.T, padding)), B, L, symmetric)


class Position(NamedTuple):
    """A permutation p (n,), b and its transpose, and D: rows (n, width).

    D is infinite on the diagonal and in the padding; each row is kept up to date from the vector on that holds its
    diagonal. Where the problem is symmetric, bT is not.
    """

    p: Integers
    b: Doubles
    bT: Doubles
    D: Doubles


@compiled
def new_position(n: int) -> Position:  # pragma: no cover - compiled
    """The identity, not yet placed."""
    width = padded(n, LANES)
    return Position(np.arange(n), np.zeros((n, width)), np.zeros((n, width)), np.zeros((n, width)))


@summing
def objective(problem: Problem, p: Integers) -> float:  # pragma: no cover - compiled
    """Σ_ij A[i, j] B[p(i), p(j)] + Σ_i L[i, p(i)]."""
    A, B, L = problem.A, problem.B, problem.L
    value = 0.0
    for i in range(len(p)):
        value += L[i, p[i]]
        for j in range(len(p)):
            value += A[i, j] * B[p[i], p[j]]
    return value


@compiled
def objectives(problem: Problem, permutations: Integers) -> Doubles:  # pragma: no cover - compiled
    """The objective of each permutation (count, n)."""
    values = np.empty(len(permutations))
    for k in range(len(permutations)):
        values[k] = objective(problem, permutations[k])
    return values


@inlined
def _whole_change(
    problem: Problem, now: Position, r: int, s: int, rows: float, columns: float
) -> float:  # pragma: no cover - compiled
    """D_rs from the sums of its definition over all k, those of the rows and of the columns."""
    A, AT, L = problem.A, problem.AT, problem.L
    b, p = now.b, now.p
    alone = (L[r, p[s]] - L[r, p[r]]) + (L[s, p[r]] - L[s, p[s]])
    alone += (A[r, r] - A[s, s]) * (b[s, s] - b[r, r])
    # From the sums is taken what they have too much, k = r and k = s.
    if problem.symmetric:
        rows -= (A[r, r] - A[r, s]) * (b[r, s] - b[r, r]) + (A[r, s] - A[s, s]) * (b[s, s] - b[r, s])
        return 2 * rows + alone
    for k in (r, s):
        rows -= (A[r, k] - A[s, k]) * (b[s, k] - b[r, k]) + (AT[r, k] - AT[s, k]) * (b[k, s] - b[k, r])
    return rows + columns + (A[r, s] - A[s, r]) * (b[s, r] - b[r, s]) + alone


@inner
def _changes(
    A: Doubles, b: Doubles, r: int, s: int, to_r: Doubles, to_s: Doubles
) -> None:  # pragma: no cover - compiled
    """Σ_k (a_rk − a_xk)(b_xk − b_rk) for every x, and the same of s: (n,) each."""
    n, width = A.shape
    A_r, A_s, b_r, b_s = at(A, r * width), at(A, s * width), at(b, r * width), at(b, s * width)
    for x in range(n):
        A_x, b_x, sum_r, sum_s = at(A, x * width), at(b, x * width), constant(0.0), constant(0.0)
        for k in range(0, width, LANES):
            a, c = load(A_x, k), load(b_x, k)
            sum_r = multiply_add(load(A_r, k) - a, c - load(b_r, k), sum_r)
            sum_s = multiply_add(load(A_s, k) - a, c - load(b_s, k), sum_s)
        to_r[x], to_s[x] = total(sum_r), total(sum_s)


@compiled
def place(problem: Problem, now: Position) -> None:  # pragma: no cover - compiled
    """Compute b and D of the permutation in ``now``."""
    B, p, n = problem.B, now.p, len(now.p)
    scratch = np.zeros((3, n))
    for i in range(n):
        for j in range(n):
            now.b[i, j] = B[p[i], p[j]]
            now.bT[j, i] = now.b[i, j]
    for k in range(now.D.size):
        now.D.flat[k] = np.inf
    for r in range(n):
        _changes(problem.A, now.b, r, r, scratch[0], scratch[0])
        if not problem.symmetric:
            _changes(problem.AT, now.bT, r, r, scratch[1], scratch[1])
        for s in range(n):
            if s != r:
                now.D[r, s] = _whole_change(problem, now, r, s, scratch[0, s], scratch[1, s])


class Scratch(NamedTuple):
    """What an exchange of r and s does to the others: α, β, α', β' (width,), and the new rows r and s of D."""

    alpha: Doubles
    beta: Doubles
    alpha_: Doubles
    beta_: Doubles
    to_r: Doubles
    to_s: Doubles
    columns_r: Doubles
    columns_s: Doubles


@compiled
def new_scratch(n: int) -> Scratch:  # pragma: no cover - compiled
    """For exchanges on problems of this size."""
    x = np.zeros((8, padded(n, LANES)))
    x[4:6] = np.inf
    return Scratch(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7])


@inner
def _swap(problem: Problem, now: Position, r: int, s: int, scratch: Scratch) -> None:  # pragma: no cover - compiled
    """Exchange the partners of r and s in p and b, and fill ``scratch``."""
    A, AT, b, bT, p, n = problem.A, problem.AT, now.b, now.bT, now.p, len(now.p)
    p[r], p[s] = p[s], p[r]
    for k in range(n):
        b[r, k], b[s, k] = b[s, k], b[r, k]
    for k in range(n):
        b[k, r], b[k, s] = b[k, s], b[k, r]
    twice = 2.0 if problem.symmetric else 1.0
    for x in range(n):
        scratch.alpha[x] = twice * (A[r, x] - A[s, x])
        scratch.beta[x] = b[s, x] - b[r, x]
    _changes(A, b, r, s, scratch.to_r, scratch.to_s)
    if not problem.symmetric:
        for k in range(n):
            bT[r, k], bT[s, k] = bT[s, k], bT[r, k]
        for k in range(n):
            bT[k, r], bT[k, s] = bT[k, s], bT[k, r]
        for x in range(n):
            scratch.alpha_[x] = AT[r, x] - AT[s, x]
            scratch.beta_[x] = bT[s, x] - bT[r, x]
        _changes(AT, bT, r, s, scratch.columns_r, scratch.columns_s)
    for x in range(n):
        if x != r:
            scratch.to_r[x] = _whole_change(problem, now, r, x, scratch.to_r[x], scratch.columns_r[x])
        if x != s:
            scratch.to_s[x] = _whole_change(problem, now, s, x, scratch.to_s[x], scratch.columns_s[x])
    scratch.to_r[r] = scratch.to_s[s] = np.inf
    scratch.to_s[r] = scratch.to_r[s]


class Tabu(NamedTuple):
    """Which exchanges are allowed: those free before a move, and those that lower the objective below ``wanted``."""

    free: Doubles  # (n, width), symmetric: the move from which on two members may be exchanged
    move: float
    wanted: float


@inlined
def _allowed(D: Doubles, free: Doubles, i: int, width: int, move: float, wanted: float) -> float:  # pragma: no cover
    """The lowest allowed change in row i."""
    best, infinite, before, below = constant(np.inf), constant(np.inf), constant(move), constant(wanted)
    for k in range(i * width + i // LANES * LANES, (i + 1) * width, LANES):
        change = load(D, k)
        allowed = where_positive(before - load(free, k), change, infinite)
        best = least(where_positive(below - change, change, allowed), best)
    return lowest(best)


@inner
def _update(
    problem: Problem, now: Position, r: int, s: int, scratch: Scratch, tabu: Tabu, look: bool
) -> tuple[float, int]:  # pragma: no cover - compiled
    """D after an exchange; the lowest allowed change and its row, where they are looked for."""
    (n, width), symmetric = now.D.shape, problem.symmetric
    D, free, to_r, to_s = at(now.D, 0), at(tabu.free, 0), at(scratch.to_r, 0), at(scratch.to_s, 0)
    alpha, beta, alpha_, beta_ = (
        at(scratch.alpha, 0),
        at(scratch.beta, 0),
        at(scratch.alpha_, 0),
        at(scratch.beta_, 0),
    )
    best, best_row = np.inf, -1
    for i in range(n):
        begin, row = i // LANES * LANES, i * width
        if i in (r, s):
            for j in range(begin, width, LANES):
                store(D, row + j, load(to_r if i == r else to_s, j))
        else:
            a, c = spread(alpha, i), spread(beta, i)
            for j in range(begin, width, LANES):
                store(D, row + j, multiply_add(a - load(alpha, j), c - load(beta, j), load(D, row + j)))
            if not symmetric:
                a, c = spread(alpha_, i), spread(beta_, i)
                for j in range(begin, width, LANES):
                    store(D, row + j, multiply_add(a - load(alpha_, j), c - load(beta_, j), load(D, row + j)))
            if r >= begin:
                D[row + r] = to_r[i]
            if s >= begin:
                D[row + s] = to_s[i]
        if look:
            low = _allowed(D, free, i, width, tabu.move, tabu.wanted)
            if low < best:
                best, best_row = low, i
    return best, best_row


@compiled
def exchange(problem: Problem, now: Position, r: int, s: int, scratch: Scratch) -> None:  # pragma: no cover - compiled
    """Exchange the partners of r and s."""
    _swap(problem, now, r, s, scratch)
    _update(problem, now, r, s, scratch, Tabu(now.D, 0.0, 0.0), False)


@compiled
def exchange_and_look(
    problem: Problem, now: Position, r: int, s: int, scratch: Scratch, tabu: Tabu
) -> tuple[float, int, int]:  # pragma: no cover - compiled
    """``exchange`` and then ``allowed_exchange``, in one reading of D."""
    _swap(problem, now, r, s, scratch)
    best, row = _update(problem, now, r, s, scratch, tabu, True)
    return _find_allowed(now.D, tabu, best, row)


@inner
def _find_allowed(D: Doubles, tabu: Tabu, low: float, i: int) -> tuple[float, int, int]:  # pragma: no cover - compiled
    """The pair in row i with that change; −1 where there is no row."""
    if i >= 0:
        for j in range(i // LANES * LANES, D.shape[1]):
            if D[i, j] == low and (tabu.free[i, j] < tabu.move or low < tabu.wanted):
                return low, min(i, j), max(i, j)
    return np.inf, -1, -1


@compiled
def allowed_exchange(D: Doubles, tabu: Tabu) -> tuple[float, int, int]:  # pragma: no cover - compiled
    """The lowest allowed change and its pair; the row is −1 when there is none."""
    best, row = np.inf, -1
    for i in range(len(D)):
        low = _allowed(at(D, 0), at(tabu.free, 0), i, D.shape[1], tabu.move, tabu.wanted)
        if low < best:
            best, row = low, i
    return _find_allowed(D, tabu, best, row)


@compiled
def best_exchange(D: Doubles) -> tuple[float, int, int]:  # pragma: no cover - compiled
    """The lowest change and its pair."""
    n, width = D.shape
    best, row = np.inf, 0
    for i in range(n):
        low = load(D, i * width + i // LANES * LANES)
        for j in range(i // LANES * LANES + LANES, width, LANES):
            low = least(load(D, i * width + j), low)
        smallest = lowest(low)
        if smallest < best:
            best, row = smallest, i
    for j in range(row // LANES * LANES, width):
        if D[row, j] == best and j != row:
            return best, min(row, j), max(row, j)
    return np.inf, 0, 0


@compiled
def descend(
    problem: Problem, now: Position, threshold: float, scratch: Scratch
) -> float:  # pragma: no cover - compiled
    """Make the best exchange until none lowers the objective by more than ``threshold``; the change in all."""
    whole = 0.0
    while True:
        change, r, s = best_exchange(now.D)
        if not change < -threshold:
            return whole
        exchange(problem, now, r, s, scratch)
        whole += change


@inlined
def copy(source: NDArray, target: NDArray) -> None:  # pragma: no cover - compiled
    """Write one row over another (numba's own assignment takes seconds to compile)."""
    for k in range(len(source)):
        target[k] = source[k]


@compiled
def copy_position(source: Position, target: Position) -> None:  # pragma: no cover - compiled
    """Write one position over another."""
    copy(source.p, target.p)
    for i in range(len(source.p)):
        copy(source.b[i], target.b[i])
        copy(source.bT[i], target.bT[i])
        copy(source.D[i], target.D[i])
