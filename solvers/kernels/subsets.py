"""Tabu search for the subsets of given size with the least sum of pairwise costs, many starts side by side.

A swap of u in the subset for v outside changes the sum by h_v − h_u − 2 c_uv, where c is symmetric without a diagonal
and h_i = d_i + 2 Σ_{j in S} c_ij; h is kept up to date, so that each of the N (n − N) swaps is read off in O(1). Each
start keeps the best subsets it has looked at, swaps that it did not make included.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled, inner
from solvers.kernels.exchange import copy
from solvers.kernels.random import Stream, below
from solvers.kernels.threads import on_threads

Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]

SERIAL_WORK = 200_000  # swaps looked at below which threads cost more than they save
TENURE = 0.4  # of the smaller of N and n − N, at most, is how many moves a member may not come back


@inner
def _keep(pool: Bools, values: Doubles, subset: Bools, out: int, into: int, value: float) -> bool:  # pragma: no cover
    """Put the subset, with ``out`` swapped for ``into``, in its place among the best, unless it is there.

    Sums differ by rounding: equal members are what makes subsets equal.
    """
    last = len(values) - 1
    if not value < values[last]:
        return False
    for k in range(last + 1):
        if values[k] < np.inf and pool[k, into] and (out == into or not pool[k, out]):
            same = True
            for i in range(len(subset)):
                same &= pool[k, i] == subset[i] or i in (out, into)
            if same:
                return False
    k = last
    while k > 0 and values[k - 1] > value:
        values[k] = values[k - 1]
        copy(pool[k - 1], pool[k])
        k -= 1
    values[k] = value
    copy(subset, pool[k])
    if out != into:
        pool[k, out], pool[k, into] = False, True
    return True


@inner
def _slopes(c: Doubles, d: Doubles, subset: Bools, h: Doubles) -> float:  # pragma: no cover - compiled
    """h of a subset; returns its sum Σ d_i + Σ c_ij."""
    value = 0.0
    for i in range(len(d)):
        pairs = 0.0
        for j in range(len(d)):
            if subset[j]:
                pairs += c[i, j]
        h[i] = d[i] + 2 * pairs
        if subset[i]:
            value += d[i] + pairs
    return value


@inner
def _swap(c: Doubles, subset: Bools, h: Doubles, u: int, v: int) -> None:  # pragma: no cover - compiled
    subset[u], subset[v] = False, True
    for i in range(len(h)):
        h[i] += 2 * (c[i, v] - c[i, u])


@compiled
def _search(
    c: Doubles, d: Doubles, size: int, moves: int, pool: Bools, values: Doubles, stream: Stream
) -> None:  # pragma: no cover - compiled
    """One start: a random subset, then the best swap that is not tabu, or that reaches a new best."""
    n = len(d)
    subset, h, free = np.zeros(n, np.bool_), np.empty(n), np.zeros(n, np.int64)
    left = size
    for i in range(n):  # each subset as likely
        if below(stream, n - i) < left:
            subset[i] = True
            left -= 1
    value = _slopes(c, d, subset, h)
    _keep(pool, values, subset, 0 if subset[0] else np.argmax(subset), 0 if subset[0] else np.argmax(subset), value)
    longest = 1 + int(TENURE * min(size, n - size))
    for move in range(moves):
        best, u, v, ties = np.inf, -1, -1, 0
        for i in range(n):
            if not subset[i]:
                continue
            for j in range(n):
                if subset[j]:
                    continue
                change = h[j] - h[i] - 2 * c[i, j]
                if value + change < values[len(values) - 1]:
                    _keep(pool, values, subset, i, j, value + change)
                if (free[i] > move or free[j] > move) and not value + change < values[0]:
                    continue
                if change < best:
                    best, u, v, ties = change, i, j, 1
                elif change == best:
                    ties += 1
                    if below(stream, ties) == 0:
                        u, v = i, j
        if u < 0:
            continue  # all is tabu for this move
        _swap(c, subset, h, u, v)
        value += best
        free[u], free[v] = move + 2 + below(stream, longest), move + 2 + below(stream, longest)
        if move % 1000 == 999:
            value = _slopes(c, d, subset, h)  # without the rounding gathered


def search_subsets(
    c: Doubles, d: Doubles, size: int, moves: int, pools: Bools, values: Doubles, streams: Stream
) -> None:
    """So many moves of every start from a new random subset; pools (starts, count, n) with values (starts, count)."""
    on_threads(
        lambda k: _search(c, d, size, moves, pools[k], values[k], streams[k]),
        len(pools),
        moves * size * (len(d) - size) > SERIAL_WORK,
    )


@compiled
def subset_sum(cost: Doubles, members: NDArray[np.int64]) -> float:  # pragma: no cover - compiled
    """Σ_ij cost[i, j] over the members."""
    total = 0.0
    for i in members:
        for j in members:
            total += cost[i, j]
    return total
