"""Linear assignment as it was solved before ``assignment``: the plain Hungarian method, and the auction.

All return potentials u, v of the minimum with u_i + v_j ≤ C_ij: the Hungarian's are optimal, though others than those
of Jonker and Volgenant's method; the auction's fall short of the optimal value by at most n ε.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

NEW, FORWARD, REVERSE, DONE = 0, 1, 2, 3  # how far an auction is
FINEST = 1e-10  # ε is at least this share of the largest cost, or bids would not move prices


@compiled
def hungarian(
    cost: Doubles, p: Integers, q: Integers, u: Doubles, v: Doubles, distance: Doubles, path: Integers
) -> None:  # pragma: no cover - compiled
    """Shortest augmenting paths row by row from u = v = 0, O(n³), without any initialisation.

    cost (n, n); outputs: the column p (n,) of each row, the row q (n,) of each column, u and v (n,); scratch (n,).
    """
    n = len(cost)
    for j in range(n):
        u[j], v[j], q[j] = 0.0, 0.0, -1
    scanned = np.empty(n, np.bool_)
    for start in range(n):
        for j in range(n):
            distance[j], scanned[j] = np.inf, False
        i, low, sink = start, 0.0, -1
        while sink < 0:
            lowest, nearest = np.inf, -1
            for j in range(n):
                if scanned[j]:
                    continue
                d = low + cost[i, j] - u[i] - v[j]
                if d < distance[j]:
                    distance[j], path[j] = d, i
                if distance[j] < lowest or (distance[j] == lowest and q[j] < 0):
                    lowest, nearest = distance[j], j
            low, scanned[nearest] = lowest, True
            if q[nearest] < 0:
                sink = nearest
            else:
                i = q[nearest]
        u[start] += low
        for j in range(n):
            if scanned[j]:
                if q[j] >= 0:
                    u[q[j]] += low - distance[j]
                v[j] -= low - distance[j]
        j, i = sink, -1
        while i != start:
            i = path[j]
            q[j] = i
            p[i], j = j, p[i]


@compiled
def _bid(
    cost: Doubles, eps: float, own: Integers, other: Integers, prices: Doubles, raises: Doubles, bidders: Integers
) -> int:  # pragma: no cover - compiled
    """One round of bids by all that have no partner: how many more have one after it.

    cost (n, n) seen from the bidders' side; ``own`` is the bidders' partners, ``other`` those of what they bid for,
    which lose in price what the highest bid offers.
    """
    n, more = len(cost), 0
    for j in range(n):
        raises[j], bidders[j] = 0.0, -1
    for i in range(n):
        if own[i] >= 0:
            continue
        first, second, best = np.inf, np.inf, -1
        for j in range(n):
            value = cost[i, j] - prices[j]
            if value < first:
                first, second, best = value, first, j
            elif value < second:
                second = value
        offer = (second - first if n > 1 else 0.0) + eps
        if offer > raises[best]:
            raises[best], bidders[best] = offer, i
    for j in range(n):
        i = bidders[j]
        if i >= 0:
            prices[j] -= raises[j]
            if other[j] >= 0:
                own[other[j]] = -1
            else:
                more += 1
            own[i], other[j] = j, i
    return more


@compiled
def _lowest(cost: Doubles, prices: Doubles, values: Doubles) -> None:  # pragma: no cover - compiled
    """min_j C_ij − prices_j, to ``values``: with the prices these are feasible potentials."""
    for i in range(len(cost)):
        least = np.inf
        for j in range(len(cost)):
            least = min(least, cost[i, j] - prices[j])
        values[i] = least


@compiled
def auction(
    cost: Doubles,
    transposed: Doubles,
    eps: float,
    p: Integers,
    q: Integers,
    u: Doubles,
    v: Doubles,
    raises: Doubles,
    bidders: Integers,
    state: Integers,
    rounds: int,
) -> bool:  # pragma: no cover - compiled
    """Forward/reverse auction from zero prices, all bidders at once; whether it ended within so many rounds.

    Sides change whenever another pair has been made (Bertsekas, "Auction algorithms for network flow problems: a
    tutorial introduction", Computational Optimization and Applications 1 (1992), sec. 4). Arguments as in
    ``hungarian``, with the cost transposed besides. ``state`` (2,) is how far it is and how many pairs there are: NEW
    begins, anything else goes on from what p, q, u and v hold.
    """
    n, largest = len(cost), 0.0
    if state[0] == NEW:
        for j in range(n):
            p[j], q[j], u[j], v[j] = -1, -1, 0.0, 0.0
        state[0], state[1] = FORWARD, 0
    for i in range(n):
        for j in range(n):
            largest = max(largest, abs(cost[i, j]))
    step = max(eps, FINEST * largest, 1e-300)
    for _ in range(rounds):
        forward = state[0] == FORWARD
        more = _bid(cost, step, p, q, v, raises, bidders) if forward else (
            _bid(transposed, step, q, p, u, raises, bidders)
        )  # fmt: skip
        if more == 0:
            continue
        state[1] += more
        if forward:
            _lowest(cost, v, u)
        else:
            _lowest(transposed, u, v)
        state[0] = DONE if state[1] == n else (REVERSE if forward else FORWARD)
        if state[0] == DONE:
            return True
    return False
