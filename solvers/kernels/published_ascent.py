"""Hahn and Grant's ascent with the assignment solvers it has been run with, a few visits at a time.

``dual_ascent`` is the factorised form; here each visit may solve its assignment problem by another method, and every
assignment may be tried as a permutation (Schnaus, Araslanov and Cremers, "It's a (Blind) Match!", CVPR 2025, Alg. 2).
The dense form stores every C_ij,kl instead, O(n⁴), as Hahn and Grant did.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from solvers.kernels.assignment import shortest_augmenting_path
from solvers.kernels.classical_assignment import DONE, NEW, auction, hungarian
from solvers.kernels.compiling import compiled
from solvers.kernels.dual_ascent import Dual, move_to_duals, note, residuals
from solvers.kernels.exchange import Problem, exchange, new_position, new_scratch, objective, place

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

HUNGARIAN, AUCTION, JONKER_VOLGENANT = 0, 1, 2
BETTER = 1e-8  # by which a permutation must be below the best


class Scratch(NamedTuple):
    """For assignment problems of one size m; ``state`` (2,) is that of an auction under way."""

    cost: Doubles  # (m, m)
    transposed: Doubles
    p: Integers  # (m,)
    q: Integers
    u: Doubles
    v: Doubles
    values: Doubles  # (3, m)
    indices: Integers  # (4, m)
    state: Integers


def new_assignment_scratch(m: int) -> Scratch:
    """Scratch for assignment problems of this size."""
    (cost, transposed), (p, q), (u, v) = np.empty((2, m, m)), np.empty((2, m), np.int64), np.empty((2, m))
    values, indices, state = np.empty((3, m)), np.empty((4, m), np.int64), np.full(2, NEW, np.int64)
    return Scratch(cost, transposed, p, q, u, v, values, indices, state)


class Best(NamedTuple):
    """The best permutation so far."""

    p: Integers  # (n,)
    value: Doubles  # (1,)


@compiled
def assign(method: int, eps: float, rounds: int, scratch: Scratch) -> bool:  # pragma: no cover - compiled
    """Solve ``scratch.cost``; False where an auction is still open after so many rounds of bids."""
    cost, transposed, p, q, u, v, values, indices, state = scratch
    if method == HUNGARIAN:
        hungarian(cost, p, q, u, v, values[0], indices[0])
    elif method == JONKER_VOLGENANT:
        shortest_augmenting_path(cost, True, p, q, u, v, values, indices)
    else:
        if state[0] == NEW or state[0] == DONE:
            state[0] = NEW
            for i in range(len(cost)):
                for j in range(len(cost)):
                    transposed[j, i] = cost[i, j]
        return auction(cost, transposed, eps, p, q, u, v, values[0], indices[0], state, rounds)
    return True


@compiled
def consider(problem: Problem, p: Integers, best: Best) -> None:  # pragma: no cover - compiled
    """Keep a permutation (n,) that is better than the best."""
    value = objective(problem, p)
    if value + BETTER < best.value[0]:
        best.value[0] = value
        for k in range(len(p)):
            best.p[k] = p[k]


@compiled
def visit_some(
    dual: Dual,
    order: Integers,
    begin: int,
    end: int,
    method: int,
    eps: float,
    rounds: int,
    scratch: Scratch,
    problem: Problem,
    try_all: bool,
    best: Best,
) -> int:  # pragma: no cover - compiled
    """The visits begin … end − 1 of a sweep in this order of the choices (n²,); which is the next.

    A visit moves the duals of the assignment problem on R_ij to (i, j), whose leader is then their sum; ``try_all``
    makes each assignment with its choice a candidate for ``best``. It stops early in an auction that takes more than
    ``rounds``, and goes on with it when called again.
    """
    n, whole = len(dual.A), np.empty(len(dual.A), np.int64)
    for turn in range(begin, end):
        i, j = order[turn] // n, order[turn] % n
        if scratch.state[0] == NEW or scratch.state[0] == DONE:
            residuals(dual, i, j, scratch.cost)
        if not assign(method, eps, rounds, scratch):
            return turn
        dual.leaders[i, j] = move_to_duals(dual, i, j, scratch.u, scratch.v)
        if try_all:
            note(whole, i, j, scratch.p)
            consider(problem, whole, best)
    return end


@compiled
def dense_costs(A: Doubles, B: Doubles) -> Doubles:  # pragma: no cover - compiled
    """C[i, j, k, l] = A_ik B_jl, of the pairs of choices (i, j) and (k, l): 8 n⁴ bytes."""
    n = len(A)
    C = np.empty((n, n, n, n))
    for i in range(n):
        for j in range(n):
            for k in range(n):
                for l in range(n):
                    C[i, j, k, l] = A[i, k] * B[j, l]
    return C


@compiled
def spread_leaders(C: Doubles, leaders: Doubles) -> None:  # pragma: no cover - compiled
    """Add every leader in n − 1 equal parts to all n² entries of its submatrix, its own included."""
    n = len(C)
    for i in range(n):
        for j in range(n):
            part = leaders[i, j] / (n - 1)
            for k in range(n):
                for l in range(n):
                    C[i, j, k, l] += part


@compiled
def visit_some_dense(
    C: Doubles, order: Integers, begin: int, end: int, scratch: Scratch
) -> None:  # pragma: no cover - compiled
    """The visits begin … end − 1 of a sweep over the dense costs, each an assignment problem of size n.

    A visit takes the complementary costs to C_ij, and moves the duals of the assignment problem on all of C_ij to the
    leader C_ij,ij. The entries of row i and column j, which no permutation can pay, are not forbidden: the bound that
    results is true, but weaker than with them out of the way.
    """
    n, cost = len(C), scratch.cost
    for turn in range(begin, end):
        i, j = order[turn] // n, order[turn] % n
        for k in range(n):
            for l in range(n):
                cost[k, l] = C[i, j, k, l] + C[k, l, i, j]
                C[k, l, i, j] = 0.0
        cost[i, j] = 0.0  # what the leader held has been spread
        assign(HUNGARIAN, 0.0, 1, scratch)
        total = 0.0
        for k in range(n):
            total += scratch.u[k] + scratch.v[k]
        cost[i, j] = total
        for k in range(n):
            for l in range(n):
                C[i, j, k, l] = cost[k, l] - (scratch.u[k] + scratch.v[l])


@compiled
def descend_by_first(
    problem: Problem, p: Integers, threshold: float, best: Best
) -> None:  # pragma: no cover - compiled
    """2-opt: exchange the first pair, in lexicographic order, that lowers the objective; ends when none does.

    p (n,) is where it begins; changes below ``threshold`` are rounding.
    """
    n = len(p)
    now, scratch = new_position(n), new_scratch(n)
    for k in range(n):
        now.p[k] = p[k]
    place(problem, now)
    found = True
    while found:
        found = False
        for r in range(n):
            for s in range(r + 1, n):
                if not found and now.D[r, s] < -threshold:
                    found = True
                    exchange(problem, now, r, s, scratch)
            if found:
                break
    consider(problem, now.p, best)
