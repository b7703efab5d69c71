"""Matchings of a graph matching: constructed greedily, improved by exchanges, fused (Hutschenreiter et al., ICCV 2021).

* Construction grows from a random node over nodes that have costs with those already labelled; what a label costs is
  known from them. Greedy takes a random such node and its cheapest label, GRASP draws among the cheapest choices of all
  (Feo and Resende, J. Global Optimization 6 (1995)). It begins with nothing, or with a part of the best matching.
* A move gives a node another right node, a free one or that of another node, which takes its own or none.
* A fusion takes the best parts of two matchings: nodes where they differ hang together in paths and cycles, each is
  switched as a whole, and which ones is a binary problem, solved by enumeration where they are few.

The costs may be those of a dual (``pairwise_dual.collect`` and ``residual``): of every matching the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled, inner
from solvers.kernels.exchange import copy
from solvers.kernels.pairwise_dual import Doubles, Integers, Model
from solvers.kernels.random import Stream, below, streams, uniform
from solvers.kernels.threads import on_threads

ENUMERATED = 12  # parts up to which every fusion is tried
FUSIONS = 6  # descents where they are more
SERIAL_WORK = 20_000  # entries of tables that attempts look at below which threads cost more than they save
QUARTER = 0.25  # of the choices that GRASP draws among


class Candidates(NamedTuple):
    """The best matching of every start; the first dimension is the start."""

    x: Integers  # (starts, n): labels within their nodes, −1 before there is one
    value: Doubles  # (starts,)
    stream: Stream  # (starts, 1)


def new_candidates(starts: int, n: int, seed: int) -> Candidates:
    """Nothing yet, with a stream of random numbers for each start."""
    return Candidates(np.full((starts, n), -1), np.full(starts, np.inf), streams(seed, starts))


class _Place(NamedTuple):
    """A matching on its way, or a part of one."""

    x: Integers  # (n,): labels, −1 for a node without
    taken: Integers  # (m,): the node that has a right node, or −1
    cost: Doubles  # (labels,): what a label costs with the others as they are


@inner
def _place_nothing(model: Model) -> _Place:  # pragma: no cover - compiled
    n, m = len(model.first) - 1, model.label_of.shape[1] - 1
    return _Place(np.full(n, -1), np.full(m, -1), model.unary.copy())


@inner
def _tell(model: Model, cost: Doubles, i: int, k: int, sign: float) -> None:  # pragma: no cover - compiled
    """Add what label k of node i costs together with each label of others to theirs, or take it off."""
    for x in range(model.incidence[i], model.incidence[i + 1]):
        t = model.incident[x]
        left, right = model.ends[t]
        if left == i:
            width = model.first[right + 1] - model.first[right]
            to, start, step = model.first[right], model.start[t] + k * width, 1
        else:
            width = model.first[left + 1] - model.first[left]
            to, start, step = model.first[left], model.start[t] + k, model.first[i + 1] - model.first[i]
        for l in range(width):
            cost[to + l] += sign * model.table[start + l * step]


@inner
def _take(model: Model, place: _Place, i: int, k: int) -> None:  # pragma: no cover - compiled
    """Give node i the label k, whose right node is free."""
    place.x[i] = k
    j = model.column[model.first[i] + k]
    if j < len(place.taken):
        place.taken[j] = i
    _tell(model, place.cost, i, k, 1.0)


@inner
def _drop(model: Model, place: _Place, i: int) -> None:  # pragma: no cover - compiled
    """Take its label from node i."""
    j = model.column[model.first[i] + place.x[i]]
    if j < len(place.taken):
        place.taken[j] = -1
    _tell(model, place.cost, i, place.x[i], -1.0)
    place.x[i] = -1


@inner
def _is_free(model: Model, place: _Place, i: int, k: int) -> bool:  # pragma: no cover - compiled
    j = model.column[model.first[i] + k]
    return j >= len(place.taken) or place.taken[j] < 0


@inner
def _smallest(values: Doubles, count: int, rank: int, x: Doubles) -> float:  # pragma: no cover - compiled
    """The rank-th smallest of the first ``count`` values (Hoare's selection, in the scratch x)."""
    for k in range(count):
        x[k] = values[k]
    low, high = 0, count - 1
    while low < high:
        pivot, i, j = x[(low + high) // 2], low, high
        while i <= j:
            while x[i] < pivot:
                i += 1
            while x[j] > pivot:
                j -= 1
            if i <= j:
                x[i], x[j] = x[j], x[i]
                i += 1
                j -= 1
        if rank - 1 <= j:
            high = j
        elif rank - 1 >= i:
            low = i
        else:
            break
    return x[rank - 1]


@inner
def _construct(model: Model, place: _Place, grasp: bool, stream: Stream) -> bool:  # pragma: no cover - compiled
    """Give every node without a label one; whether that could be done."""
    x, n = place.x, len(place.x)
    near, left, count = np.zeros(n, np.bool_), np.empty(n, np.int64), 0
    for i in range(n):
        if x[i] < 0:
            for at in range(model.incidence[i], model.incidence[i + 1]):
                left_end, right_end = model.ends[model.incident[at]]
                near[i] |= x[left_end] >= 0 or x[right_end] >= 0
    sorting = np.empty(len(model.unary))
    values, nodes, labels = (
        np.empty(len(model.unary)),
        np.empty(len(model.unary), np.int64),
        np.empty(len(model.unary), np.int64),
    )
    while True:
        count = near_count = 0
        for i in range(n):
            if x[i] < 0:
                left[count] = i
                count += 1
                near_count += near[i]
        if count == 0:
            return True
        if near_count > 0:  # only those
            count = 0
            for i in range(n):
                if x[i] < 0 and near[i]:
                    left[count] = i
                    count += 1
        if not grasp or near_count == 0:
            left[0], count = left[below(stream, count)], 1
        choices = 0
        for c in range(count):
            i = left[c]
            for k in range(model.first[i + 1] - model.first[i]):
                if _is_free(model, place, i, k):
                    values[choices], nodes[choices], labels[choices] = place.cost[model.first[i] + k], i, k
                    choices += 1
        if choices == 0:
            return False
        if grasp:
            limit = _smallest(values, choices, int(np.ceil(QUARTER * choices)), sorting)
            seen, pick = 0, 0
            for c in range(choices):  # one of them, each as likely
                if values[c] <= limit:
                    seen += 1
                    if below(stream, seen) == 0:
                        pick = c
        else:
            pick = 0
            for c in range(1, choices):
                pick = c if values[c] < values[pick] else pick
        i = nodes[pick]
        _take(model, place, i, labels[pick])
        for at in range(model.incidence[i], model.incidence[i + 1]):
            left_end, right_end = model.ends[model.incident[at]]
            near[left_end] = near[right_end] = True


@inner
def _entry(model: Model, i: int, k: int, j: int, l: int) -> float:  # pragma: no cover - compiled
    """What label k of i and label l of j cost together."""
    t = model.table_of[i, j]
    if t < 0:
        return 0.0
    if model.ends[t, 0] != i:
        i, k, j, l = j, l, i, k
    return model.table[model.start[t] + k * (model.first[j + 1] - model.first[j]) + l]


@inner
def _best_move(model: Model, place: _Place, i: int) -> tuple[float, int, int]:  # pragma: no cover - compiled
    """The best change of the objective by another label of node i: (change, label, label of who had it, or −1)."""
    x, cost, first, m = place.x, place.cost, model.first, len(place.taken)
    old, here = x[i], cost[first[i] + x[i]]
    column = model.column[first[i] + old]
    best, label, other = 0.0, -1, -1
    for k in range(first[i + 1] - first[i]):
        j = model.column[first[i] + k]
        change = cost[first[i] + k] - here
        if k == old:
            continue
        owner = place.taken[j] if j < m else -1
        if owner < 0:
            if change < best:
                best, label, other = change, k, -1
            continue
        theirs = x[owner]
        there = change - cost[first[owner] + theirs] - _entry(model, i, k, owner, theirs)
        there += _entry(model, i, old, owner, theirs)
        for way in range(2):  # the owner takes what i had, or none
            l = model.label_of[owner, column if way == 0 else m]
            if l < 0 or (way == 1 and column == m):
                continue
            total = there + cost[first[owner] + l] - _entry(model, i, old, owner, l) + _entry(model, i, k, owner, l)
            if total < best:
                best, label, other = total, k, l
    return best, label, other


@inner
def _improve(model: Model, place: _Place, least: float) -> None:  # pragma: no cover - compiled
    """The best move of one node after the other, until none improves by more than ``least``."""
    n = len(place.x)
    i = since = 0
    while since < n:
        change, label, other = _best_move(model, place, i)
        if change < -least:
            j = model.column[model.first[i] + label]
            owner = place.taken[j] if j < len(place.taken) else -1
            _drop(model, place, i)
            if owner >= 0:
                _drop(model, place, owner)
                _take(model, place, owner, other)
            _take(model, place, i, label)
            since = 0
        else:
            since += 1
            i = (i + 1) % n


@compiled
def energy(model: Model, x: Integers) -> float:  # pragma: no cover - compiled
    """The objective of labels x (n,), without the constant."""
    total = 0.0
    for i in range(len(x)):
        total += model.unary[model.first[i] + x[i]]
    for t in range(len(model.ends)):
        i, j = model.ends[t]
        total += model.table[model.start[t] + x[i] * (model.first[j + 1] - model.first[j]) + x[j]]
    return total


@inner
def _parts_of(model: Model, x: Integers, y: Integers, part: Integers) -> int:  # pragma: no cover - compiled
    """Number the paths and cycles in which x and y differ, −1 for nodes alike; how many there are.

    A node that in y takes what another has in x is of its part.
    """
    n, m = len(x), model.label_of.shape[1] - 1
    had, has = np.full(m + 1, -1), np.full(m + 1, -1)
    for i in range(n):
        part[i] = -1
        had[model.column[model.first[i] + x[i]]] = i
        has[model.column[model.first[i] + y[i]]] = i
    had[m] = has[m] = -1
    count, stack = 0, np.empty(n, np.int64)
    for root in range(n):
        if part[root] >= 0 or x[root] == y[root]:
            continue
        part[root], stack[0], size = count, root, 1
        while size:
            size -= 1
            i = stack[size]
            before, after = model.column[model.first[i] + x[i]], model.column[model.first[i] + y[i]]
            for j in (had[after], has[before]):
                if j >= 0 and part[j] < 0 and x[j] != y[j]:
                    part[j] = count
                    stack[size] = j
                    size += 1
        count += 1
    return count


@inner
def _best_switch(own: Doubles, shared: Doubles, stream: Stream) -> NDArray[np.bool_]:  # pragma: no cover - compiled
    """z minimising Σ own_c z_c + Σ_{c<d} shared_cd z_c z_d over {0, 1}^C; shared is symmetric, its diagonal zero."""
    count = len(own)
    best, z, value, least = np.zeros(count, np.bool_), np.zeros(count, np.bool_), 0.0, 0.0
    if count <= ENUMERATED:
        slope = own.copy()
        for step in range(1, 1 << count):  # Gray's code: one part is switched at a time
            c = 0
            while not (step >> c) & 1:
                c += 1
            value += -slope[c] if z[c] else slope[c]
            z[c] = not z[c]
            for d in range(count):
                slope[d] += shared[c, d] if z[c] else -shared[c, d]
            if value < least:
                least = value
                copy(z, best)
        return best
    for descent in range(FUSIONS):
        slope, value = own.copy(), 0.0
        for c in range(count):
            z[c] = descent == 1 or (descent > 1 and uniform(stream) < 0.5)
            if z[c]:
                value += slope[c]
                for d in range(count):
                    slope[d] += shared[c, d]
        while True:
            flip, change = -1, -1e-12
            for c in range(count):
                step_change = -slope[c] if z[c] else slope[c]
                if step_change < change:
                    flip, change = c, step_change
            if flip < 0:
                break
            value += change
            z[flip] = not z[flip]
            for d in range(count):
                slope[d] += shared[flip, d] if z[flip] else -shared[flip, d]
        if value < least:
            least = value
            copy(z, best)
    return best


@compiled
def fuse(model: Model, x: Integers, y: Integers, stream: Stream) -> Integers:  # pragma: no cover - compiled
    """The best matching, or nearly, that takes each part either from x or from y: no worse than either."""
    part = np.empty(len(x), np.int64)
    count = _parts_of(model, x, y, part)
    own, shared = np.zeros(count), np.zeros((count, count))
    for i in range(len(x)):
        if part[i] >= 0:
            own[part[i]] += model.unary[model.first[i] + y[i]] - model.unary[model.first[i] + x[i]]
    for t in range(len(model.ends)):
        i, j = model.ends[t]
        c, d, width = part[i], part[j], model.first[j + 1] - model.first[j]
        if c < 0 and d < 0:
            continue
        row_x, row_y = model.start[t] + x[i] * width, model.start[t] + y[i] * width
        both = model.table[row_x + x[j]]
        if c == d:
            own[c] += model.table[row_y + y[j]] - both
        else:
            if c >= 0:
                own[c] += model.table[row_y + x[j]] - both
            if d >= 0:
                own[d] += model.table[row_x + y[j]] - both
            if c >= 0 and d >= 0:
                mixed = model.table[row_y + y[j]] - model.table[row_y + x[j]] - model.table[row_x + y[j]] + both
                shared[c, d] += mixed
                shared[d, c] += mixed
    z, fused = _best_switch(own, shared, stream), x.copy()
    for i in range(len(x)):
        if part[i] >= 0 and z[part[i]]:
            fused[i] = y[i]
    return fused


@inner
def _place_of(model: Model, x: Integers) -> _Place:  # pragma: no cover - compiled
    place = _place_nothing(model)
    for i in range(len(x)):
        if x[i] >= 0:
            _take(model, place, i, x[i])
    return place


@compiled
def improved(model: Model, x: Integers, least: float) -> Integers:  # pragma: no cover - compiled
    """The labels that moves lead to from x."""
    place = _place_of(model, x)
    _improve(model, place, least)
    return place.x


@inner
def _attempt(
    model: Model, best: Integers, value: float, least: float, stream: Stream
) -> float:  # pragma: no cover - compiled
    """Construct, improve, fuse with the best; returns the value of the best."""
    n = len(best)
    place = _place_nothing(model)
    if value < np.inf and uniform(stream) < 0.5:  # keep a part of it
        share = uniform(stream)
        for i in range(n):
            if uniform(stream) < share:
                _take(model, place, i, best[i])
    if not _construct(model, place, uniform(stream) < 0.5, stream):
        return value
    _improve(model, place, least)
    if value == np.inf:
        copy(place.x, best)
        return energy(model, best)
    y = fuse(model, best, place.x, stream)
    if (y == best).all():
        return value
    if not (y == place.x).all():
        y = improved(model, y, least)
    reached = energy(model, y)
    if reached < value:
        copy(y, best)
        return reached
    return value


@compiled
def _attempts(
    model: Model, candidates: Candidates, k: int, attempts: int, least: float
) -> None:  # pragma: no cover - compiled
    """So many attempts of start k."""
    best, values, stream = candidates.x[k], candidates.value[k : k + 1], candidates.stream[k]
    for _ in range(attempts):
        values[0] = _attempt(model, best, values[0], least, stream)


def attempt(model: Model, candidates: Candidates, attempts: int, least: float) -> None:
    """So many attempts of every start, on the threads there are."""
    long = attempts * len(model.table) > SERIAL_WORK
    on_threads(lambda k: _attempts(model, candidates, k, attempts, least), len(candidates.x), long)
