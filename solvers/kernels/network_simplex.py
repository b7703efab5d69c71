"""Batched dense transportation problems by the primal network simplex.

Entering arcs come from a block search (Bonneel et al., "Displacement interpolation using Lagrangian mass transport",
ACM Trans. Graphics 30(6) (2011); Király and Kovács, 2012) that reads the cost matrix itself, four rows at a time, and
goes on where it stopped. When it finds none, the potentials are computed anew from the tree and searched once more:
those that once were large have kept the rounding of it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import NDArray

from solvers.kernels.assignment import shortest_augmenting_path
from solvers.kernels.compiling import compiled, inner, parallel
from solvers.kernels.intrinsics import at, smaller
from solvers.kernels.spanning_tree import (
    Doubles,
    Integers,
    Nodes,
    Tree,
    greedy_tree,
    lowest,
    pivot,
    refresh_potentials,
    thread_tree,
)
from solvers.kernels.vectors import LANES, aligned_zeros, constant, first_equal, least, load, padded, spread
from solvers.kernels.vectors import lowest as lowest_lane

BAND = 4  # rows that are priced together
SEGMENT = 1024  # columns that are priced together, at most
BLOCK = 1024  # entries priced for a pivot, about, where a band within a segment has fewer
BITS = 60  # of the total mass as an integer
HUGE, SHRINK = 1e280, 2.0**-100  # costs beyond are shrunk
SERIAL_WORK = 20_000  # entries of the batch below which threads cost more than they save
CHUNKS_PER_THREAD = 4

OPTIMAL, ITERATION_LIMIT, UNFINISHED, NOT_BEGUN = 0, 1, 2, 3
UNLIMITED = 2**62


class Batch(NamedTuple):
    """The problems, and what is known of their solutions (see ``Transport``)."""

    C: NDArray
    a: NDArray
    b: NDArray
    plan: NDArray
    f: NDArray
    g: NDArray
    pivots: Integers
    outcome: NDArray[np.int8]


class Work(NamedTuple):
    """The problem that each chunk of the batch is at; the first dimension of every array is the chunk."""

    cost: Doubles  # (chunks, rows * width): transposed where n > m, padded with inf
    nodes: Nodes  # (chunks, 6, nodes): of the tree, and scratch
    masses: Integers  # (chunks, 4, nodes): flows, what is left to send, and scratch
    reals: Doubles  # (chunks, 3, nodes): potentials, prices, and scratch
    scale: Doubles  # (chunks, 4): a unit of mass is the product of the first two, one of cost the third; noise
    state: Integers  # (chunks, 6): where to search, row and column; pivots since fresh; all; problem; its nodes


@inner
def _cheapest(
    cost: Doubles, row: int, rows: int, begin: int, end: int, price: Doubles, width: int
) -> float:  # pragma: no cover - compiled
    """The least reduced cost in rows row…rows, a multiple of four, and columns begin…end."""
    none = constant(np.inf)
    best = none
    for i in range(row, rows, BAND):
        k0 = i * width
        k1, k2, k3 = k0 + width, k0 + 2 * width, k0 + 3 * width
        best0, best1, best2, best3 = none, none, none, none
        for j in range(begin, end, LANES):
            p = load(price, j)
            best0 = least(load(cost, k0 + j) + p, best0)
            best1 = least(load(cost, k1 + j) + p, best1)
            best2 = least(load(cost, k2 + j) + p, best2)
            best3 = least(load(cost, k3 + j) + p, best3)
        k = width + i
        best0, best1 = best0 - spread(price, k), best1 - spread(price, k + 1)
        best2, best3 = best2 - spread(price, k + 2), best3 - spread(price, k + 3)
        best = least(least(least(best0, best1), least(best2, best3)), best)
    return lowest_lane(best)


@inner
def _locate(
    cost: Doubles, row: int, rows: int, begin: int, end: int, price: Doubles, width: int, reduced: float
) -> tuple[int, int]:  # pragma: no cover - compiled
    """Where that least reduced cost is: its row and column."""
    wanted = constant(reduced)
    for i in range(row, rows):
        price_i = spread(price, width + i)
        for j in range(begin, end, LANES):
            lane = first_equal(load(cost, i * width + j) + load(price, j) - price_i, wanted)
            if lane < LANES:
                return i, j + lane
    return -1, 0


@inner
def _search(tree: Tree, cost: Doubles, n: int, state: Integers) -> tuple[int, int]:  # pragma: no cover - compiled
    """An entering arc, the best of the first unit that has any; the row is −1 when none has.

    A unit is at least a band of four rows within a segment of columns, and about BLOCK entries; the search starts at
    the first row and column in ``state`` and leaves there where to go on.
    """
    width, row, first = tree.width, state[0], state[1]
    height = max(1, BLOCK // (BAND * min(width, SEGMENT))) * BAND
    padded_n = padded(n, BAND)
    for _ in range((n + height - 1) // height * ((width + SEGMENT - 1) // SEGMENT)):
        rows, end, begin, top = min(row + height, padded_n), min(first + SEGMENT, width), first, row
        reduced = _cheapest(cost, row, rows, first, end, tree.price, width)
        first += SEGMENT
        if first >= width:
            first = 0
            row = row + height if row + height < n else 0
        if reduced < 0.0:
            state[0], state[1] = row, first
            return _locate(cost, top, rows, begin, end, tree.price, width, reduced)
    return -1, 0


@inner
def _load(
    C: NDArray, a: NDArray, b: NDArray, n: int, m: int, tree: Tree, cost: Doubles, left: Integers, scale: Doubles
) -> None:  # pragma: no cover - compiled
    """Copy a problem C (n, m), transposed where n > m: its cost, inf where a node has no mass, and masses as integers.

    ``scale`` gives their units, which are powers of two. Costs are scaled only to keep potentials from overflowing. The
    totals differ by rounding, which the largest column takes.
    """
    width = tree.width
    peak = 0.0
    for i in range(n):
        for j in range(m):
            peak = -smaller(-abs(np.float64(C[i * m + j])), -peak)
        if n <= m:
            for j in range(m):
                cost[i * width + j] = C[i * m + j]
        else:
            for j in range(m):
                cost[j * width + i] = C[i * m + j]
    if n > m:
        n, m, a, b = m, n, b, a
    scale[2] = 1.0
    if peak > HUGE:
        scale[2] = 1.0 / SHRINK
        for k in range(n * width):
            cost[k] *= SHRINK
    total_a, total_b = 0.0, 0.0
    for i in range(n):
        total_a += a[i]
    for j in range(m):
        total_b += b[j]
    bits = BITS - math.frexp(total_a)[1]
    first, second = math.ldexp(1.0, bits // 2), math.ldexp(1.0, bits - bits // 2)
    scale[0], scale[1] = 1.0 / first, 1.0 / second
    for x in range(tree.beyond):
        left[x] = 0
        tree.potential[x] = 0.0
        tree.price[x] = 0.0
    surplus = np.int64(0)
    for i in range(n):
        if a[i] > 0:
            left[width + i] = np.int64(max(1.0, a[i] * first * second + 0.5))
            surplus += left[width + i]
        else:
            for j in range(m):
                cost[i * width + j] = np.inf
    ratio, largest = total_a / total_b, 0
    for j in range(m):
        if b[j] > 0:
            left[j] = np.int64(max(1.0, b[j] * ratio * first * second + 0.5))
            surplus -= left[j]
            largest = j if left[j] > left[largest] else largest
        else:
            for i in range(n):
                cost[i * width + j] = np.inf
    left[largest] += surplus


@inner
def _unload(
    tree: Tree, cost: Doubles, nodes: int, scale: Doubles, u: NDArray, v: NDArray
) -> None:  # pragma: no cover - compiled
    """Potentials that any tree proves: v (m,) as they are, u (n,) by a c-transform; none where there is no mass."""
    x, width = tree.beyond, tree.width
    for _ in range(nodes):
        x = tree.after[x]
        if x >= width:
            u[x - width] = lowest(cost, (x - width) * width, tree.potential, width) * scale[2]
        else:
            v[x] = -tree.potential[x] * scale[2]


@inner
def _write_plan(
    tree: Tree, nodes: int, scale: Doubles, n: int, m: int, plan: NDArray
) -> None:  # pragma: no cover - compiled
    """The flows of the tree as a plan (n, m), zero until now."""
    x, width = tree.after[tree.beyond], tree.width
    for _ in range(nodes - 1):
        x = tree.after[x]
        row, column = max(x, tree.parent[x]) - width, min(x, tree.parent[x])
        plan[row * m + column if n <= m else column * m + row] = tree.flow[x] * scale[0] * scale[1]


@inner
def _close_massless(
    C: NDArray, a: NDArray, b: NDArray, n: int, m: int, f: NDArray, g: NDArray
) -> None:  # pragma: no cover - compiled
    """The largest potentials of nodes without mass that leave the others feasible: columns first, then rows."""
    for j in range(m):
        if not b[j] > 0:
            g[j] = np.inf
            for i in range(n):
                if a[i] > 0:
                    g[j] = min(g[j], C[i * m + j] - f[i])
    for i in range(n):
        if not a[i] > 0:
            f[i] = np.inf
            for j in range(m):
                f[i] = min(f[i], C[i * m + j] - g[j])


@inner
def _is_uniform(weights: NDArray, size: int) -> bool:  # pragma: no cover - compiled
    equal = 0
    for i in range(size):
        equal += weights[i] == weights[0]
    return equal == size


@inner
def _optimise(
    tree: Tree, cost: Doubles, n: int, nodes: int, state: Integers, pivots: int
) -> bool:  # pragma: no cover - compiled
    """At most so many pivots; whether the tree is optimal."""
    width = tree.width
    for _ in range(pivots):
        i, j = _search(tree, cost, n, state)
        if i < 0 and state[2] > 0:
            refresh_potentials(tree, cost, nodes)
            state[2] = 0
            i, j = _search(tree, cost, n, state)
        if i < 0:
            return True
        reduced = cost[i * width + j] - tree.potential[width + i] + tree.potential[j]
        pivot(tree, width + i, j, reduced, nodes)
        state[2] += 1
        state[3] += 1
    return False


@inner
def _assign(
    chunk: int, width: int, work: Work, a: NDArray, plan: NDArray, f: NDArray, g: NDArray
) -> None:  # pragma: no cover - compiled
    """Solve the loaded problem, square with uniform weights: its vertices are the permutations (Birkhoff)."""
    n, masses, reals = len(a), work.masses[chunk], work.reals[chunk]
    p, match, u, v = masses[3, :n], masses[3, n:], reals[2, width:], reals[2, :width]
    cost = work.cost[chunk].reshape(-1, width)[:n]
    shortest_augmenting_path(cost, True, p, match, u, v, reals, masses)
    for i in range(n):
        plan[i, p[i]] = a[i]
        f[i] = u[i] * work.scale[chunk, 2]
        g[i] = v[i] * work.scale[chunk, 2]


@inner
def _run_chunk(chunk: int, problems: Batch, work: Work, limit: int, budget: int) -> None:  # pragma: no cover - compiled
    """Go on with the problems of one chunk for about ``budget`` pivots."""
    C, a, b, plan, f, g, pivots, outcome = problems
    batch, n, m = C.shape
    rows, width, size = min(n, m), padded(max(n, m), LANES), work.masses.shape[2]
    nodes, masses, reals = chunk * 6 * size, chunk * 4 * size, chunk * 3 * size
    tree = Tree(
        width,
        size - 1,
        at(work.nodes, nodes),
        at(work.nodes, nodes + size),
        at(work.nodes, nodes + 2 * size),
        at(work.nodes, nodes + 3 * size),
        at(work.nodes, nodes + 4 * size),
        at(work.masses, masses),
        at(work.reals, reals),
        at(work.reals, reals + size),
        at(work.scale, chunk * 4 + 3),
    )
    order, left, key = (
        at(work.nodes, nodes + 5 * size),
        at(work.masses, masses + size),
        at(work.reals, reals + 2 * size),
    )
    cost, scale, state = at(work.cost, chunk * work.cost.shape[1]), at(work.scale, chunk * 4), at(work.state, chunk * 6)
    end = (chunk + 1) * batch // len(work.cost)
    while state[4] < end and budget > 0:
        k = state[4]
        problem, a_k, b_k, f_k, g_k = at(C, k * n * m), at(a, k * n), at(b, k * m), at(f, k * n), at(g, k * m)
        if state[5] == 0:
            _load(problem, a_k, b_k, n, m, tree, cost, left, scale)
            budget -= n * m // (BAND * min(width, SEGMENT))
            if n == m and _is_uniform(a_k, n) and _is_uniform(b_k, m):
                _assign(chunk, width, work, a[k], plan[k], f[k], g[k])
                outcome[k] = OPTIMAL
                state[4] += 1
                continue
            state[5] = greedy_tree(tree, cost, rows, left, order, key)
            thread_tree(tree, state[5], order)
            refresh_potentials(tree, cost, state[5])
            state[0], state[1], state[2], state[3] = 0, 0, 0, 0
        before = state[3]
        optimal = _optimise(tree, cost, rows, state[5], state, max(0, min(budget, limit - before)))
        budget -= state[3] - before + 1
        pivots[k] = state[3]
        outcome[k] = OPTIMAL if optimal else ITERATION_LIMIT if state[3] >= limit else UNFINISHED
        _unload(tree, cost, state[5], scale, f_k if n <= m else g_k, g_k if n <= m else f_k)
        if state[5] < n + m:
            _close_massless(problem, a_k, b_k, n, m, f_k, g_k)
        if optimal:
            _write_plan(tree, state[5], scale, n, m, at(plan, k * n * m))
        if outcome[k] != UNFINISHED:
            state[4] += 1
            state[5] = 0


@compiled
def _run_serial(problems: Batch, work: Work, limit: int, budget: int) -> None:  # pragma: no cover - compiled
    """Go on with every chunk, on the calling thread."""
    for chunk in range(len(work.cost)):
        _run_chunk(chunk, problems, work, limit, budget)


@parallel
def _run_parallel(problems: Batch, work: Work, limit: int, budget: int) -> None:  # pragma: no cover - compiled
    """Go on with every chunk, over the threads."""
    for chunk in prange(len(work.cost)):
        _run_chunk(np.int64(chunk), problems, work, limit, budget)


_COMPILED: set[tuple[bool, np.dtype]] = set()


class Transport:
    """A batch of transportation problems being solved: ``run`` goes on for a while, the arrays hold what is known.

    C (batch, n, m), a (batch, n) and b (batch, m), C-contiguous, float32 or float64; finite, non-negative weights, some
    of them positive on each side, totals equal to rounding (b is scaled to a's). The attributes below have the dtype of
    C, the arithmetic is float64 and int64.

    Attributes:
        plan (batch, n, m): the optimal vertex, zero where a problem is not solved.
        f (batch, n), g (batch, m): potentials of the last tree, feasible: f_i + g_j <= C_ij; NaN before there is one.
        pivots (batch,): made so far.
        outcome (batch,): OPTIMAL, ITERATION_LIMIT, UNFINISHED or NOT_BEGUN.
    """

    def __init__(self, C: NDArray, a: NDArray, b: NDArray, limit: int) -> None:
        batch, n, m = C.shape
        self.limit = limit
        self.plan, self.f, self.g = np.zeros_like(C), np.full_like(a, np.nan), np.full_like(b, np.nan)
        self.pivots, self.outcome = np.zeros(batch, np.int64), np.full(batch, NOT_BEGUN, np.int8)
        self.problems = Batch(C, a, b, self.plan, self.f, self.g, self.pivots, self.outcome)
        threads = get_num_threads()
        self.serial = batch == 1 or threads == 1 or C.size < SERIAL_WORK
        chunks = 1 if self.serial else min(batch, CHUNKS_PER_THREAD * threads)
        rows, width = padded(min(n, m), BAND), padded(max(n, m), LANES)
        size = padded(width + rows + 1, LANES)
        cost = aligned_zeros(chunks * rows * width, np.float64)
        cost[:] = np.inf
        self.work = Work(
            cost=cost.reshape(chunks, rows * width),
            nodes=np.empty((chunks, 6, size), np.int32),
            masses=np.empty((chunks, 4, size), np.int64),
            reals=aligned_zeros(chunks * 3 * size, np.float64).reshape(chunks, 3, size),
            scale=np.empty((chunks, 4)),
            state=np.zeros((chunks, 6), np.int64),
        )
        self.work.state[:, 4] = [chunk * batch // chunks for chunk in range(chunks)]

    def compile(self) -> None:
        """Compile, or load from the cache, what ``run`` needs; nothing where that has been done."""
        kind = (self.serial, self.plan.dtype)
        if kind not in _COMPILED:
            self.run(0)
            _COMPILED.add(kind)

    def run(self, budget: int = UNLIMITED) -> bool:
        """About ``budget`` pivots in each part of the batch; whether all problems have ended."""
        run = _run_serial if self.serial else _run_parallel
        run(self.problems, self.work, self.limit, budget)
        return bool((self.outcome <= ITERATION_LIMIT).all())

    def pivots_of(self, entries: int) -> int:
        """How many pivots look at about so many cost entries or nodes."""
        nodes = self.work.masses.shape[2]
        return 1 + entries // (BAND * min(nodes, SEGMENT) + nodes)
