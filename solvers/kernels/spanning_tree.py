"""The basis of the network simplex on a dense bipartite graph: a spanning tree with flows and potentials.

A node is a column j or width + i for row i; rows are sources, columns sinks, and a node beyond all is the parent of the
root. ``potential`` is u_i for a row and −v_j for a column: both shift alike, and the reduced cost of an arc is
C_ij − potential_i + potential_j, zero within the tree. The tree is held by parents, subtree sizes and a ring in
preorder (Király and Kovács, "Efficient implementations of minimum-cost flow algorithms", Acta Univ. Sapientiae,
Informatica 4(1) (2012)); of the two parts that a pivot shifts against each other, the smaller gets new potentials.

It is kept strongly feasible (Cunningham, "A network simplex method", Mathematical Programming 11 (1976)): an arc
without flow points towards the root. Flows are integers, so that ties are exact and degenerate problems end.

The functions take pointers (see ``intrinsics.at``), which numba indexes like arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from solvers.kernels.compiling import inner
from solvers.kernels.intrinsics import smaller
from solvers.kernels.vectors import LANES, constant, first_equal, least, load, store
from solvers.kernels.vectors import lowest as lowest_lane

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]
Nodes = NDArray[np.int32]

NOISE = 2.0**-46  # a reduced cost this small against the potentials is rounding


class Tree(NamedTuple):
    """A rooted spanning tree; each array is over the nodes."""

    width: int  # of a row of the cost, a multiple of LANES, and the node of the first row
    beyond: int  # the parent of the root, followed by the root in the ring
    parent: Nodes
    size: Nodes  # of the subtree
    after: Nodes  # the ring, in preorder
    before: Nodes
    last: Nodes  # of the subtree, in preorder
    flow: Integers  # on the arc to the parent
    potential: Doubles
    price: Doubles  # the potential, moved against entering by what may be rounding
    noise: Doubles  # (1,): what that is at least, for potentials that are small because large costs cancel


@inner
def lowest(cost: Doubles, start: int, shift: Doubles, width: int) -> float:  # pragma: no cover - compiled
    """Minimum of the row that starts at cost[start] plus shift (width,)."""
    best = constant(np.inf)
    for j in range(0, width, LANES):
        best = least(load(cost, start + j) + load(shift, j), best)
    return lowest_lane(best)


@inner
def find(cost: Doubles, start: int, shift: Doubles, width: int, target: float) -> int:  # pragma: no cover - compiled
    """The first column with cost[start + j] + shift[j] == target, or width."""
    wanted, found = constant(target), width
    for j in range(width - LANES, -1, -LANES):  # to the end: where to stop is what a processor cannot foresee
        lane = first_equal(load(cost, start + j) + load(shift, j), wanted)
        found = j + lane if lane < LANES else found
    return found


@inner
def _second_lowest(
    cost: Doubles, start: int, shift: Doubles, width: int, smallest: float
) -> float:  # pragma: no cover - compiled
    """The smallest but one entry of that row, where ``smallest`` is the smallest."""
    j = find(cost, start, shift, width, smallest)
    kept, shift[j] = shift[j], np.inf
    second = lowest(cost, start, shift, width)
    shift[j] = kept
    return second


@inner
def _lower(best: Doubles, cost: Doubles, start: int, width: int) -> None:  # pragma: no cover - compiled
    """Lower best (width,) to the row that starts at cost[start]."""
    for j in range(0, width, LANES):
        store(best, j, least(load(cost, start + j), load(best, j)))


@inner
def _sort(order: Nodes, key: Doubles, n: int) -> None:  # pragma: no cover - compiled
    """Sort order (n,) by descending key, by Shell's method: in place, and fast where n is small."""
    gap = n // 2
    while gap > 0:
        for k in range(gap, n):
            x, h = order[k], k
            while h >= gap and key[order[h - gap]] < key[x]:
                order[h] = order[h - gap]
                h -= gap
            order[h] = x
        gap = gap // 2 if gap < 5 else gap * 5 // 11


@inner
def greedy_tree(
    tree: Tree, cost: Doubles, n: int, left: Integers, order: Nodes, key: Doubles
) -> int:  # pragma: no cover - compiled
    """Set the parents and flows of a first tree; returns its number of nodes, those with mass.

    ``left`` holds the masses of the nodes, ``order`` and ``key`` are scratch over the nodes; the cost is inf where a
    node has no mass. On costs less the minimum of their column, the rows are served in the order of what they would
    lose by waiting (as in Vogel's rule). Where a row meets a column, the one with less mass left is closed and hung on
    the other; in a tie it is the column, and the row goes on with nothing: its arc without flow points to the root.
    """
    width, shift, closed = tree.width, tree.price, tree.before
    for j in range(width):
        shift[j] = np.inf
    rows = 0
    for i in range(n):
        if left[width + i] > 0:
            order[rows] = i
            rows += 1
            _lower(shift, cost, i * width, width)
    for j in range(width):
        shift[j] = -shift[j] if left[j] > 0 else np.inf
    for k in range(rows):
        i = order[k]
        smallest = lowest(cost, i * width, shift, width)
        key[i] = _second_lowest(cost, i * width, shift, width, smallest) - smallest
    _sort(order, key, rows)
    nodes = 0
    for k in range(rows):
        start, x = order[k] * width, width + order[k]
        while True:
            smallest = lowest(cost, start, shift, width)
            if smallest == np.inf:  # the last row has closed the last column: it is the root
                break
            y = find(cost, start, shift, width, smallest)
            mass = min(left[x], left[y])
            row_ends = left[x] < left[y]
            left[x] -= mass
            left[y] -= mass
            child, other = (x, y) if row_ends else (y, x)
            tree.parent[child] = other
            tree.flow[child] = mass
            closed[nodes] = child
            nodes += 1
            if row_ends:
                break
            shift[y] = np.inf
    root = width + order[rows - 1]
    tree.parent[root] = tree.beyond
    tree.flow[root] = 0
    closed[nodes] = root
    return nodes + 1


@inner
def thread_tree(tree: Tree, nodes: int, order: Nodes) -> None:  # pragma: no cover - compiled
    """Sizes and ring from the parents and ``before``, where the nodes stand in the order of their closing."""
    parent, closed, position, free = tree.parent, tree.before, tree.after, tree.last
    for k in range(nodes):
        tree.size[closed[k]] = 1
    for k in range(nodes - 1):
        tree.size[parent[closed[k]]] += tree.size[closed[k]]
    free[tree.beyond] = 0
    for k in range(nodes - 1, -1, -1):  # every node after its parent
        x = closed[k]
        position[x] = free[parent[x]]
        free[parent[x]] += tree.size[x]
        free[x] = position[x] + 1
    for k in range(nodes):
        order[position[closed[k]]] = closed[k]
    for k in range(nodes):
        x = order[k]
        tree.last[x] = order[k + tree.size[x] - 1]
        tree.after[x] = order[k + 1 if k + 1 < nodes else 0]
        tree.before[x] = order[k - 1 if k > 0 else nodes - 1]
    tree.after[tree.beyond] = order[0]
    tree.last[tree.beyond] = tree.beyond


@inner
def _shift(tree: Tree, x: int, amount: float) -> None:  # pragma: no cover - compiled
    value = tree.potential[x] + amount
    noise = -smaller(-NOISE * abs(value), -tree.noise[0])
    tree.potential[x] = value
    tree.price[x] = value + (noise if x < tree.width else -noise)


@inner
def refresh_potentials(tree: Tree, cost: Doubles, nodes: int) -> None:  # pragma: no cover - compiled
    """Potentials from the tree alone, without the rounding that the pivots have gathered; zero at the root."""
    x, width = tree.after[tree.beyond], tree.width
    tree.potential[x] = 0.0
    largest = 0.0
    for _ in range(nodes - 1):
        x = tree.after[x]
        p = tree.parent[x]
        step = cost[(x - width) * width + p] if x >= width else -cost[(p - width) * width + x]
        tree.potential[x] = tree.potential[p] + step
        largest = -smaller(-abs(tree.potential[x]), -largest)
    tree.noise[0] = NOISE * largest
    for _ in range(nodes):
        x = tree.after[x]
        _shift(tree, x, 0.0)


@inner
def pivot(tree: Tree, i: int, j: int, reduced: float, nodes: int) -> None:  # pragma: no cover - compiled
    """Let the arc from row node i to column node j enter, whose reduced cost is negative.

    Of several arcs that block, the last one on the cycle leaves, seen from where its two sides meet: with that the tree
    stays strongly feasible.
    """
    parent, size, after, before, last, flow = tree.parent, tree.size, tree.after, tree.before, tree.last, tree.flow
    width = tree.width
    # The cycle: flow shrinks on the arcs above rows on the side of i, above columns on that of j.
    x, y, row_leaves, column_leaves = i, j, i, j
    least_row = least_column = np.int64(2**62)
    while x != y:
        if size[x] < size[y]:
            if x >= width and flow[x] < least_row:
                least_row, row_leaves = flow[x], x
            x = parent[x]
        else:
            if y < width and flow[y] <= least_column:
                least_column, column_leaves = flow[y], y
            y = parent[y]
    join = x
    if least_column <= least_row:
        leaving, inner, outer, amount, shift = column_leaves, j, i, least_column, -reduced
    else:
        leaving, inner, outer, amount, shift = row_leaves, i, j, least_row, reduced
    # Flow around the cycle, and the subtree of the leaving arc from one side to the other.
    moved = size[leaving]
    x, change = i, -moved if inner == i else moved
    while x != join:
        flow[x] += -amount if x >= width else amount
        size[x] += change
        x = parent[x]
    x = j
    while x != join:
        flow[x] += amount if x >= width else -amount
        size[x] -= change
        x = parent[x]
    # Take the subtree of the leaving arc out of the ring.
    end, previous = last[leaving], before[leaving]
    following = after[end]
    after[previous], before[following] = following, previous
    x = parent[leaving]
    while last[x] == end:
        last[x] = previous
        x = parent[x]
    # Root it anew at the inner end of the entering arc: what of each node on the way up is not yet in order follows.
    x, above, onto, carried, taken = inner, parent[inner], outer, amount, 0
    end = tail = last[inner]
    previous, following = before[inner], after[end]
    while True:
        parent[x], onto = onto, x
        flow[x], carried = carried, flow[x]
        size[x], taken = moved - taken, size[x] + moved
        if x == leaving:
            break
        x, above = above, parent[above]
        after[tail] = x
        tail, previous, before[x] = previous, before[x], tail
        if last[x] != end:
            after[tail], before[following] = following, tail
            end = tail = last[x]
            following = after[end]
    while x != inner:
        last[x] = tail
        x = parent[x]
    last[inner] = tail
    # Put it in behind the outer end.
    following = after[outer]
    after[outer], before[inner] = inner, outer
    after[tail], before[following] = following, tail
    x = outer
    while last[x] == outer:
        last[x] = tail
        x = parent[x]
    if 2 * moved <= nodes:
        x = inner
        for _ in range(moved):
            _shift(tree, x, shift)
            x = after[x]
    else:
        x = following
        for _ in range(nodes - moved):
            _shift(tree, x, -shift)
            x = after[x]
