"""Dual of a graph matching: every pair of nodes with costs between them is bounded by itself, messages share the costs.

A label of node i is a choice i → s, or to leave i unmatched. For messages a from table t = {i, j} to the labels of i
and j,

    min_x E(x) ≥ Σ_t min_{k,l} (θ_t[k, l] − a_ti[k] − a_tj[l]) + min_x Σ_i (θ_i + Σ_t a_ti)[x_i],

where the last is a linear assignment (Hutschenreiter et al., "Fusion Moves for Graph Matching", ICCV 2021, with the
assignment whole instead of node by node). Ascent on it stalls as coordinate ascent on polyhedra does; here every
minimum is −ε log Σ exp(−·/ε) while ε falls, for which the exact step of all messages to one node is to make the soft
minima of its tables, label by label, and its own cost all equal (Meshi and Globerson, ECML PKDD 2011).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled, inlined, inner, summing
from solvers.kernels.exponential import exp64
from solvers.kernels.intrinsics import smaller

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


class Model(NamedTuple):
    """A graph matching as labels of nodes and tables between them (see ``solvers.pairwise_model``)."""

    first: Integers  # (n + 1,): the labels of node i are first[i] … first[i + 1] − 1
    column: Integers  # (labels,): the right node, m for staying unmatched
    unary: Doubles  # (labels,): θ_i
    ends: Integers  # (tables, 2): i < j
    start: Integers  # (tables + 1,): of the table in ``table``: a row for each label of i
    table: Doubles  # θ_t; prohibitive where both take one right node
    message: Integers  # (tables + 1,): of the messages of a table: first those to i, then those to j
    incidence: Integers  # (n + 1,): of node i in ``incident``
    incident: Integers  # (2 · tables,)
    label_of: Integers  # (n, m + 1): the number of a label within its node, or −1
    table_of: Integers  # (n, n): of two nodes, or −1
    prohibitive: float  # more than any matching can save


@inlined
def _soft(low: float, total: float, eps: float) -> float:  # pragma: no cover - compiled
    return low - eps * np.log(total)


@summing
def _soften_rows(
    table: Doubles, rows: int, columns: int, b: Doubles, eps: float, out: Doubles
) -> None:  # pragma: no cover - compiled
    """Soft minima (rows,) of the rows of table − b."""
    inverse = 1 / eps
    for k in range(rows):
        row = table[k * columns : (k + 1) * columns]
        low = np.inf
        for l in range(columns):
            low = smaller(row[l] - b[l], low)
        total = 0.0
        for l in range(columns):
            total += exp64((low - row[l] + b[l]) * inverse)
        out[k] = _soft(low, total, eps)


@summing
def _soften_columns(
    table: Doubles, rows: int, columns: int, a: Doubles, eps: float, out: Doubles, total: Doubles
) -> None:  # pragma: no cover - compiled
    """Soft minima (columns,) of the columns of table − a."""
    inverse = 1 / eps
    for l in range(columns):
        out[l], total[l] = np.inf, 0.0
    for k in range(rows):
        for l in range(columns):
            out[l] = smaller(table[k * columns + l] - a[k], out[l])
    for k in range(rows):
        for l in range(columns):
            total[l] += exp64((out[l] - table[k * columns + l] + a[k]) * inverse)
    for l in range(columns):
        out[l] = _soft(out[l], total[l], eps)


@inner
def _parts(model: Model, t: int, messages: Doubles) -> tuple[Doubles, Doubles, Doubles]:  # pragma: no cover - compiled
    """A table and the messages to its two sides."""
    i = model.ends[t, 0]
    middle = model.message[t] + model.first[i + 1] - model.first[i]
    table = model.table[model.start[t] : model.start[t + 1]]
    return table, messages[model.message[t] : middle], messages[middle : model.message[t + 1]]


@inner
def _equalise(
    model: Model, i: int, eps: float, theta: Doubles, messages: Doubles, soft: Doubles, total: Doubles
) -> None:  # pragma: no cover - compiled
    """The exact step of all messages to node i; theta holds what its labels cost now, messages included."""
    begin, end = model.first[i], model.first[i + 1]
    size, tables = end - begin, model.incident[model.incidence[i] : model.incidence[i + 1]]
    if not len(tables):
        return
    level = theta[begin:end]
    for x in range(len(tables)):
        table, a, b = _parts(model, tables[x], messages)
        if model.ends[tables[x], 0] == i:
            _soften_rows(table, len(a), len(b), b, eps, soft[x])
            mine = a
        else:
            _soften_columns(table, len(a), len(b), a, eps, soft[x], total)
            mine = b
        for k in range(size):
            soft[x, k] -= mine[k]
            level[k] += soft[x, k]
    for k in range(size):
        level[k] /= len(tables) + 1
    for x in range(len(tables)):
        _, a, b = _parts(model, tables[x], messages)
        mine = a if model.ends[tables[x], 0] == i else b
        for k in range(size):
            mine[k] += soft[x, k] - level[k]


@inner
def _scale(model: Model, theta: Doubles, free: Doubles, eps: float) -> None:  # pragma: no cover - compiled
    """Take the soft minimum off every node's labels, then off every right node's: the smoothed assignment's dual step.

    ``free`` (m,) is what it costs to leave a right node free, infinite where none may be.
    """
    n, m = len(model.first) - 1, len(free)
    low, total = free.copy(), np.zeros(m)
    for i in range(n):
        mine = theta[model.first[i] : model.first[i + 1]]
        least, s = np.inf, 0.0
        for k in range(len(mine)):
            least = smaller(mine[k], least)
        for k in range(len(mine)):
            s += np.exp((least - mine[k]) / eps)
        height = _soft(least, s, eps)
        for k in range(len(mine)):
            mine[k] -= height
            j = model.column[model.first[i] + k]
            if j < m:
                low[j] = min(low[j], mine[k])
    for j in range(m):
        total[j] = np.exp((low[j] - free[j]) / eps) if free[j] < np.inf else 0.0
    for k in range(len(theta)):
        j = model.column[k]
        if j < m:
            total[j] += np.exp((low[j] - theta[k]) / eps)
    for j in range(m):
        low[j] = _soft(low[j], total[j], eps) if total[j] > 0 else 0.0
        free[j] -= low[j]
    for k in range(len(theta)):
        if model.column[k] < m:
            theta[k] -= low[model.column[k]]


@compiled
def smoothed_sweeps(
    model: Model, orders: Integers, eps: Doubles, theta: Doubles, messages: Doubles, free: Doubles
) -> None:  # pragma: no cover - compiled
    """A sweep for each row of ``orders`` (sweeps, n): every node once, at its temperature ε (sweeps,).

    theta, messages and free are moved.
    """
    degree = size = 0
    for i in range(orders.shape[1]):
        degree = max(degree, model.incidence[i + 1] - model.incidence[i])
        size = max(size, model.first[i + 1] - model.first[i])
    soft, total = np.empty((degree, size)), np.empty(size)
    for k in range(len(orders)):
        for i in orders[k]:
            _equalise(model, i, eps[k], theta, messages, soft, total)
            _scale(model, theta, free, eps[k])


@compiled
def pull(model: Model, messages: Doubles) -> None:  # pragma: no cover - compiled
    """Move what every table still holds to its nodes: the least entries of its rows, then of its columns, become zero.

    Afterwards no table adds to the bound, or takes from it.
    """
    for t in range(len(model.ends)):
        table, a, b = _parts(model, t, messages)
        rows, columns = len(a), len(b)
        for k in range(rows):
            low = np.inf
            for l in range(columns):
                low = smaller(table[k * columns + l] - b[l], low)
            a[k] = low
        for l in range(columns):
            low = np.inf
            for k in range(rows):
                low = smaller(table[k * columns + l] - a[k], low)
            b[l] = low


@compiled
def collect(model: Model, messages: Doubles) -> Doubles:  # pragma: no cover - compiled
    """What the labels cost with their messages: θ_i + Σ_t a_ti, (labels,)."""
    theta = model.unary.copy()
    for t in range(len(model.ends)):
        _, a, b = _parts(model, t, messages)
        i, j = model.ends[t]
        for k in range(len(a)):
            theta[model.first[i] + k] += a[k]
        for l in range(len(b)):
            theta[model.first[j] + l] += b[l]
    return theta


@compiled
def residual(model: Model, messages: Doubles) -> Doubles:  # pragma: no cover - compiled
    """The tables less the messages: with ``collect`` the same costs of matchings, told otherwise.

    Zero where both nodes would take one right node.
    """
    out, m = np.empty(len(model.table)), model.label_of.shape[1] - 1
    for t in range(len(model.ends)):
        table, a, b = _parts(model, t, messages)
        i, j = model.ends[t]
        for k in range(len(a)):
            s = model.column[model.first[i] + k]
            for l in range(len(b)):
                x = k * len(b) + l
                conflict = s < m and s == model.column[model.first[j] + l]
                out[model.start[t] + x] = 0.0 if conflict else table[x] - a[k] - b[l]
    return out
