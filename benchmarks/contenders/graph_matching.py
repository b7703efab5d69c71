"""Graph matching with sparse pairs: both solvers take a `GraphMatchingProblem` to its value.

The instances are of the kind that keypoints of two photographs give: each point may be matched with a few others, and
neighbours are rewarded for keeping their distance.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
from scipy.spatial import KDTree

from benchmarks import common
from benchmarks.contenders import Array, Call

CANDIDATES, NEIGHBOURS, NOISE = 6, 4, 0.02


@cache
def graph_matching_instance(size: str) -> tuple[Array, Array, Array]:
    """(linear (n, m), pairs (E, 4), their costs (E,)) for a size "n x m", m ≥ n.

    n points of the unit square, and the same points moved by a little noise among m − n others. A point may be matched
    with the six nearest to it in a noisy descriptor, and each pair of neighbours that keeps its distance is paid for.
    """
    n, m = map(int, size.split("x"))
    rng = np.random.default_rng(5)
    x = rng.random((n, 2))
    y = np.concatenate([x + NOISE * rng.standard_normal(x.shape), rng.random((m - n, 2))])
    descriptors = rng.standard_normal((m, 8))
    order = rng.permutation(m)
    seen = (descriptors[:n] + 0.5 * rng.standard_normal((n, 8)), descriptors[order])
    distance, near = KDTree(seen[1]).query(seen[0], min(CANDIDATES, m))
    linear = np.full((n, m), np.inf)
    np.put_along_axis(linear, near, 0.1 * distance - 1, 1)
    y = y[order]
    neighbours = KDTree(x).query(x, NEIGHBOURS + 1)[1][:, 1:]
    edges = sorted({(min(i, j), max(i, j)) for i in range(n) for j in neighbours[i].tolist()})
    pairs = np.array([(i, s, j, t) for i, j in edges for s in near[i] for t in near[j] if s != t], np.int64)
    i, s, j, t = pairs.T
    changes = np.linalg.norm(x[i] - x[j], axis=-1) - np.linalg.norm(y[s] - y[t], axis=-1)
    return linear, pairs, -np.exp(-((changes / 0.1) ** 2))


def prepared(solver: str, size: str) -> Call:
    """The function to be timed: from the arrays to the value.

    Raises:
        NotImplementedError: this commit or machine has not the solver.
    """
    (problem,) = common.of_commit("solvers", "GraphMatchingProblem")
    made, arrays = SOLVERS[solver](), graph_matching_instance(size)
    return lambda: common.solved(made.solve(problem(*arrays)), "ITERATION_LIMIT").value


@cache
def best_value(size: str) -> float:
    """The best value known: of a run ten times as long."""
    (problem,) = common.of_commit("solvers", "GraphMatchingProblem")
    solver = common.ours("mpopt", max_iterations=5000, attempts=100, seed=12345)
    return float(solver.solve(problem(*graph_matching_instance(size))).value)


SOLVERS: dict[str, Any] = {
    "mpopt": partial(common.ours, "mpopt"),
    "pylibmgm": partial(common.ours, "pylibmgm"),
}
