"""Graph matchings and quadratic assignments as the labels and tables that the kernels of MPOpt work on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.dual_bound import Matrices
from solvers.graph_matching import GraphMatchingProblem
from solvers.kernels.pairwise_dual import Model

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

LARGEST = 2**28  # numbers in all tables: 2 GiB, and as much again for the repriced ones


def of_graph_matching(problem: GraphMatchingProblem) -> Model:
    """The model of a graph matching; its tables are those of the node pairs that ``pairs`` names, in order."""
    L = problem.linear.detach().double().cpu().numpy()
    pairs, costs = problem.pairs.cpu().numpy().copy(), problem.pair_costs.detach().double().cpu().numpy()
    turned = pairs[:, 0] > pairs[:, 2]
    pairs[turned] = pairs[turned][:, [2, 3, 0, 1]]
    labels = _Labels(L, bool(problem.complete))
    n = len(L)
    keys, which = np.unique(pairs[:, 0] * n + pairs[:, 2], return_inverse=True)
    model = labels.with_tables(np.stack([keys // n, keys % n], -1).astype(np.int64))
    i, s, j, t = pairs.T
    width = np.diff(model.first)[j]
    np.add.at(model.table, model.start[which] + model.label_of[i, s] * width + model.label_of[j, t], costs)
    return _with_conflicts(model)


def of_quadratic_assignment(matrices: Matrices) -> Model:
    """The model of a quadratic assignment: a table for every two rows, all columns for labels."""
    A, B, L = matrices
    n = len(A)
    left, right = np.triu_indices(n, 1)
    labels = _Labels(L + np.outer(np.diag(A), np.diag(B)), True)
    model = labels.with_tables(np.stack([left, right], -1).astype(np.int64))
    tables = model.table.reshape(-1, n, n)
    np.multiply(A[left, right][:, None, None], B, out=tables)
    if (A == A.T).all() and (B == B.T).all():
        tables *= 2
    else:
        tables += A[right, left][:, None, None] * B.T
    return _with_conflicts(model)


class _Labels:
    """The labels of every left node: those that L (n, m) allows, then staying unmatched unless all are matched."""

    def __init__(self, L: Doubles, complete: bool) -> None:
        n, m = L.shape
        wide = L if complete else np.concatenate([L, np.zeros((n, 1))], 1)
        allowed = np.isfinite(wide)
        self.first = np.concatenate([[0], allowed.sum(1).cumsum()]).astype(np.int64)
        self.column = allowed.nonzero()[1].astype(np.int64)
        self.unary = wide[allowed]
        self.label_of = np.full((n, m + 1), -1, np.int64)
        self.label_of[:, : wide.shape[1]] = np.where(allowed, allowed.cumsum(1) - 1, -1)

    def with_tables(self, ends: Integers) -> Model:
        """The model with tables of zeros between these nodes (tables, 2)."""
        sizes, n = np.diff(self.first), len(self.label_of)
        table_of = np.full((n, n), -1, np.int64)
        table_of[ends[:, 0], ends[:, 1]] = table_of[ends[:, 1], ends[:, 0]] = np.arange(len(ends))
        start = np.concatenate([[0], (sizes[ends[:, 0]] * sizes[ends[:, 1]]).cumsum()]).astype(np.int64)
        if start[-1] > LARGEST:
            raise ValueError(
                f"the costs of all pairs of choices are {start[-1]:,} numbers, {8 * start[-1] / 2**30:.1f} GiB, and "
                f"mpopt takes {LARGEST:,} at most; use 'local_search' for large quadratic assignments"
            )
        message = np.concatenate([[0], (sizes[ends[:, 0]] + sizes[ends[:, 1]]).cumsum()]).astype(np.int64)
        return Model(
            self.first,
            self.column,
            self.unary,
            ends,
            start,
            np.zeros(start[-1]),
            message,
            np.concatenate([[0], (table_of >= 0).sum(1).cumsum()]).astype(np.int64),
            table_of[table_of >= 0],
            self.label_of,
            table_of,
            0.0,
        )


def _with_conflicts(model: Model) -> Model:
    """Make it prohibitive, in every table, that both nodes take the same right node."""
    m = model.label_of.shape[1] - 1
    sizes = np.diff(model.first)
    heights = np.maximum.reduceat(np.abs(model.table), model.start[:-1]) if len(model.ends) else np.zeros(0)
    alone = np.maximum.reduceat(np.abs(model.unary), model.first[:-1])
    prohibitive = 4 * float(heights.sum() + alone.sum()) or 1.0
    for i in range(len(sizes)):
        tables = model.incident[model.incidence[i] : model.incidence[i + 1]]
        mine = model.column[model.first[i] : model.first[i + 1]]
        for t in tables[model.ends[tables, 0] == i]:
            j = model.ends[t, 1]
            other = model.label_of[j, mine]
            k = np.flatnonzero((other >= 0) & (mine < m))
            model.table[model.start[t] + k * sizes[j] + other[k]] = prohibitive
    return model._replace(prohibitive=prohibitive)
