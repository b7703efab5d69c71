"""Batched exact linear assignment.

Jonker and Volgenant, "A shortest augmenting path algorithm for dense and sparse linear assignment problems", Computing
38 (1987): column reduction, reduction transfer and augmenting row reduction, the last bounded in steps so that ties and
rounding noise cannot make it cycle, then shortest augmenting paths (Dijkstra on the reduced costs) for the rows that
are still free.  Rectangular problems follow Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Trans.
Aerospace and Electronic Systems 52(4) (2016): without column reduction the potentials of the columns start at zero and
only matched columns ever lower theirs.  The row potentials come last, u_i = min_j (C_ij - v_j), feasible by
construction.

Every pass over a row is branch free, so that it vectorises: scanned columns stay in place at infinite distance, and a
key (j for a free column, m + j for a matched one) lets the search for a minimum prefer free columns among equals.
The inner functions take pointers (which numba indexes like arrays): views would be reference counted in the inner loop.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled, inner, parallel
from solvers.kernels.intrinsics import at, smaller

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

LANES = 8  # small problems are copied to rows padded to a multiple of this
IN_PLACE = 32  # from this many columns on, float64 problems are not copied
SWEEPS, STEPS = 2, 2  # of the augmenting row reduction: at most, and steps per free row in each
SERIAL_WORK = 50_000  # entries of the batch below which threads cost more than they save
CHUNKS_PER_THREAD = 4


@intrinsic
def _double_at(typing_context: Any, array: Any, index: Any) -> Any:
    """The same as a pointer to float64, whatever the array holds: only to be read where it holds float64."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.bitcast(builder.gep(data, [arguments[1]]), context.get_value_type(signature.return_type))

    return types.CPointer(types.float64)(array, types.intp), emit


@inner
def _minimum(cost: Doubles, row: int, v: Doubles, m: int) -> float:  # pragma: no cover - compiled
    """Minimum of the row (m,) that starts at cost[row] less v (m,)."""
    best = np.inf
    for j in range(m):
        best = smaller(cost[row + j] - v[j], best)
    return best


@inner
def _two_minima(
    cost: Doubles, row: int, v: Doubles, m: int, key: Integers, reduced: Doubles
) -> tuple[float, float, int]:  # pragma: no cover - compiled
    """The two smallest entries of the row that starts at cost[row] less v, and the column of the first of them."""
    first = np.inf
    for j in range(m):
        value = cost[row + j] - v[j]
        reduced[j] = value
        first = smaller(value, first)
    second, found, ties = np.inf, 2 * m - 1, 0
    for j in range(m):
        equal = reduced[j] == first
        found = min(found, key[j] if equal else found)
        ties += equal
        second = smaller(np.inf if equal else reduced[j], second)
    return first, first if ties > 1 else second, found - m if found >= m else found


@inner
def _lower_columns(
    cost: Doubles, row: int, m: int, i: int, lowest: Doubles, argument: Integers
) -> None:  # pragma: no cover - compiled
    """Lower the column minima (m,) to the row that starts at cost[row], with i as the argument where it does."""
    for j in range(m):
        old = lowest[j]
        new = cost[row + j]
        argument[j] = i if new < old else argument[j]
        lowest[j] = smaller(new, old)


@inner
def _relax_row(
    cost: Doubles, row: int, v: Doubles, m: int, offset: float, i: int, distance: Doubles, parent: Integers
) -> float:  # pragma: no cover - compiled
    """Lower distance (m,) to offset + row - v, with i as the parent where it does; return the new minimum."""
    best = np.inf
    for j in range(m):
        old = distance[j]
        new = offset + (cost[row + j] - v[j])
        parent[j] = i if new < old else parent[j]
        new = smaller(new, old)
        distance[j] = new
        best = smaller(new, best)
    return best


@inner
def _find(values: Doubles, m: int, target: float, key: Integers) -> int:  # pragma: no cover - compiled
    """Column with the smallest key (m,) among the entries of values (m,) equal to target."""
    found = 2 * m - 1
    for j in range(m):
        found = min(found, key[j] if values[j] == target else found)
    return found - m if found >= m else found


@inner
def _reduce_columns(
    cost: Doubles,
    n: int,
    m: int,
    v: Doubles,
    row_to_col: Integers,
    col_to_row: Integers,
    key: Integers,
    argument: Integers,
    wins: Integers,
    reduced: Doubles,
) -> None:  # pragma: no cover - compiled
    """Column reduction and reduction transfer of a square problem (n, m), with m - n columns of padding."""
    for j in range(m):
        v[j] = np.inf
        argument[j] = 0
    for i in range(n):
        _lower_columns(cost, i * m, m, i, v, argument)
        wins[i] = 0
    for j in range(n, m):
        v[j] = 0.0
    for j in range(n - 1, -1, -1):
        i = argument[j]
        wins[i] += 1
        if wins[i] == 1:
            row_to_col[i] = j
            col_to_row[j] = i
            key[j] = j + m
    for i in range(n):
        if wins[i] == 1:
            first, second, _ = _two_minima(cost, i * m, v, m, key, reduced)
            v[row_to_col[i]] -= second - first


@inner
def _sort(order: Integers, values: Doubles, n: int, sign: float) -> None:  # pragma: no cover - compiled
    """Sort order (n,) by sign * values, stably, by insertion: a few hundred steps at the sizes that matter."""
    for k in range(n):
        order[k] = k
        h = k
        while h > 0 and sign * values[order[h]] < sign * values[order[h - 1]]:
            order[h], order[h - 1] = order[h - 1], order[h]
            h -= 1


@inner
def _is_rank_one(cost: Doubles, n: int, m: int, x: Doubles, y: Doubles) -> bool:  # pragma: no cover - compiled
    """Whether the square cost is x y^T to rounding; x (n,) and y (n,) are filled where it is.

    Most matrices are ruled out by a single minor.
    """
    if n < 3 or abs(cost[0] * cost[m + 1] - cost[1] * cost[m]) > 1e-12 * abs(cost[1] * cost[m]):
        return False
    q = 0
    for j in range(n):
        q = j if abs(cost[j]) > abs(cost[q]) else q
    pivot = cost[q]
    if pivot == 0.0:
        return False
    for k in range(n):
        x[k] = cost[k * m + q]
        y[k] = cost[k] / pivot
    for i in range(n):
        for j in range(n):
            if abs(cost[i * m + j] - x[i] * y[j]) > 1e-14 * abs(cost[i * m + j]):
                return False
    return True


@inner
def _match_sorted(
    cost: Doubles,
    n: int,
    m: int,
    v: Doubles,
    row_to_col: Integers,
    col_to_row: Integers,
    key: Integers,
    x: Doubles,
    y: Doubles,
    rows: Integers,
    columns: Integers,
) -> None:  # pragma: no cover - compiled
    """The optimum of a rank-one cost x y^T: x ascending meets y descending (the rearrangement inequality).

    Sorted so, the cost is a Monge matrix and the potentials follow from entries beside the diagonal.  Otherwise such
    costs, with which a Hahn-Grant ascent begins, take long price wars.  Pairs that rounding left slack stay free.
    """
    _sort(rows, x, n, 1.0)
    _sort(columns, y, n, -1.0)
    v[columns[0]] = 0.0
    for k in range(n - 1):
        row = rows[k] * m
        v[columns[k + 1]] = v[columns[k]] + (cost[row + columns[k + 1]] - cost[row + columns[k]])
    for k in range(n):
        i, j = rows[k], columns[k]
        entry = cost[i * m + j]
        if entry - v[j] - _minimum(cost, i * m, v, m) <= 1e-15 * (abs(entry) + abs(v[j])):
            row_to_col[i] = j
            col_to_row[j] = i
            key[j] = j + m


@inner
def _reduce_rows(
    cost: Doubles,
    n: int,
    m: int,
    v: Doubles,
    row_to_col: Integers,
    col_to_row: Integers,
    key: Integers,
    reduced: Doubles,
    free: Integers,
) -> int:  # pragma: no cover - compiled
    """Augmenting row reduction, n >= 2; the rows it leaves free go to free (n,), their number is returned."""
    n_free = 0
    for i in range(n):
        if row_to_col[i] < 0:
            free[n_free] = i
            n_free += 1
    for _ in range(SWEEPS):
        n_left, budget = 0, STEPS * n_free
        for k in range(n_free):
            i = free[k]
            while True:
                budget -= 1
                first, second, j = _two_minima(cost, i * m, v, m, key, reduced)
                old = col_to_row[j]
                if old >= 0 and not first < second:
                    break
                v[j] -= second - first
                row_to_col[i] = j
                col_to_row[j] = i
                key[j] = j + m
                i = old
                if old < 0:
                    break
                row_to_col[old] = -1
                if budget <= 0:
                    break
            if i >= 0:
                free[n_left] = i
                n_left += 1
        progress = 2 * n_left < n_free
        n_free = n_left
        if not progress:
            break
    return n_free


@inner
def _augment(
    cost: Doubles,
    n: int,
    m: int,
    start: int,
    v: Doubles,
    row_to_col: Integers,
    col_to_row: Integers,
    key: Integers,
    distance: Doubles,
    parent: Integers,
    blocked: Doubles,
    scanned: Integers,
    reached: Doubles,
) -> None:  # pragma: no cover - compiled
    """Match row ``start`` along a shortest augmenting path and lower v (m,) on the columns scanned on the way.

    ``blocked`` is v, -inf on scanned columns.  Scans are counted, so that even costs whose differences overflow end.
    """
    for j in range(m):
        distance[j] = np.inf
        blocked[j] = v[j]
        parent[j] = start
    offset, lowest, i, j, n_scanned = 0.0, 0.0, start, 0, 0
    while i >= 0 and n_scanned < n:
        lowest = _relax_row(cost, i * m, blocked, m, offset, i, distance, parent)
        j = _find(distance, m, lowest, key)
        i = col_to_row[j]
        if i >= 0:
            offset = lowest - (cost[i * m + j] - v[j])
            distance[j] = np.inf
            blocked[j] = -np.inf
            scanned[n_scanned] = j
            reached[n_scanned] = lowest
            n_scanned += 1
    if i >= 0:
        return
    for k in range(n_scanned):
        v[scanned[k]] += min(reached[k] - lowest, 0.0)
    key[j] = j + m
    while i != start:
        i = parent[j]
        col_to_row[j] = i
        j, row_to_col[i] = row_to_col[i], j


@inner
def _solve(
    cost: Doubles,
    n: int,
    m: int,
    square: bool,
    row_to_col: Integers,
    col_to_row: Integers,
    u: Doubles,
    v: Doubles,
    distance: Doubles,
    blocked: Doubles,
    reached: Doubles,
    key: Integers,
    parent: Integers,
    scanned: Integers,
    free: Integers,
    warm: bool,
) -> None:  # pragma: no cover - compiled
    """Solve one problem: see shortest_augmenting_path, here on pointers."""
    for j in range(m):
        v[j] = v[j] if warm else 0.0
        col_to_row[j] = -1
        key[j] = j
    for i in range(n):
        row_to_col[i] = -1
        free[i] = i
    n_free = n
    if n > 1:
        if warm:
            pass
        elif square and _is_rank_one(cost, n, m, distance, blocked):
            _match_sorted(cost, n, m, v, row_to_col, col_to_row, key, distance, blocked, parent, scanned)
        elif square:
            _reduce_columns(cost, n, m, v, row_to_col, col_to_row, key, parent, free, distance)
        n_free = _reduce_rows(cost, n, m, v, row_to_col, col_to_row, key, distance, free)
    for k in range(n_free):
        _augment(
            cost, n, m, free[k], v, row_to_col, col_to_row, key, distance, parent, blocked, scanned, reached
        )  # fmt: skip
    for i in range(n):
        u[i] = _minimum(cost, i * m, v, m)


@inner
def shortest_augmenting_path(
    cost: Doubles,
    square: bool,
    row_to_col: Integers,
    col_to_row: Integers,
    u: Doubles,
    v: Doubles,
    values: Doubles,
    indices: Integers,
    warm: bool = False,
) -> None:  # pragma: no cover - compiled
    """Solve one problem, for other kernels: no allocation, every array C-contiguous.

    cost (n, m) with n <= m, read only; columns of padding, if any, come last and are +inf, and ``square`` says whether
    n columns are left without them.  Outputs: row_to_col (n,), col_to_row (m,) with -1 on unmatched columns, the
    potentials u (n,) and v (m,).  Scratch: values (3, m), indices (4, m).  A ``warm`` start begins from the v given,
    those of a similar problem (square, and n == m but for padding: there any potentials may end up optimal).
    """
    n, m = cost.shape
    _solve(
        at(cost, 0), n, m, square, at(row_to_col, 0), at(col_to_row, 0), at(u, 0), at(v, 0),
        at(values, 0), at(values, m), at(values, 2 * m),
        at(indices, 0), at(indices, m), at(indices, 2 * m), at(indices, 3 * m), warm,
    )  # fmt: skip


@inner
def _load(source: NDArray, n: int, m: int, matrix: Doubles, width: int) -> None:  # pragma: no cover - compiled
    """Copy the problem source (n, m), transposed where n > m, to matrix (min(n, m), width)."""
    if n <= m:
        for i in range(n):
            for j in range(m):
                matrix[i * width + j] = source[i * m + j]
    else:
        for i in range(n):
            for j in range(m):
                matrix[j * width + i] = source[i * m + j]


@inner
def _solve_with(
    cost: NDArray,
    begin: int,
    end: int,
    permutation: Integers,
    u: Doubles,
    v: Doubles,
    matrix: Doubles,
    width: int,
    values: Doubles,
    indices: Integers,
) -> None:  # pragma: no cover - compiled
    """Solve problems begin..end with the scratch of _solve_range, which keeps it alive; no matrix: in place."""
    n, m = cost.shape[1], cost.shape[2]
    rows, columns = min(n, m), max(n, m)
    match, spare, dual = at(indices, 4 * width), at(indices, 5 * width), at(values, 3 * width)
    for b in range(begin, end):
        problem = _double_at(cost, b * n * m)
        if matrix.size > 0:
            problem = at(matrix, 0)
            _load(at(cost, b * n * m), n, m, problem, width)
        row_to_col, short, long = at(permutation, b * n), at(u, b * n), at(v, b * m)
        if n > m:
            row_to_col, short, long = spare, long, short
        _solve(
            problem, rows, width, n == m, row_to_col, match, short, dual,
            at(values, 0), at(values, width), at(values, 2 * width),
            at(indices, 0), at(indices, width), at(indices, 2 * width), at(indices, 3 * width), False,
        )  # fmt: skip
        for j in range(columns):
            long[j] = dual[j]
        if n > m:
            for i in range(n):
                permutation[b, i] = match[i]


@inner
def _solve_range(
    cost: NDArray, begin: int, end: int, permutation: Integers, u: Doubles, v: Doubles
) -> None:  # pragma: no cover - compiled
    """Solve problems begin..end of cost (batch, n, m) into permutation, u (batch, n) and v (batch, m)."""
    n, m = cost.shape[1], cost.shape[2]
    in_place = cost.itemsize == 8 and n <= m and (m >= IN_PLACE or m % LANES == 0)
    width = m if in_place else (max(n, m) + LANES - 1) // LANES * LANES
    matrix = np.empty(0 if in_place else min(n, m) * width)
    for k in range(matrix.size):
        matrix[k] = np.inf
    _solve_with(
        cost, begin, end, permutation, u, v, matrix, width, np.empty(4 * width), np.empty(6 * width, np.int64)
    )  # fmt: skip


@compiled
def _solve_serial(cost: NDArray, permutation: Integers, u: Doubles, v: Doubles) -> None:  # pragma: no cover - compiled
    """Solve every problem of cost (batch, n, m) on the calling thread."""
    _solve_range(cost, np.int64(0), np.int64(cost.shape[0]), permutation, u, v)


@parallel
def _solve_parallel(
    cost: NDArray, permutation: Integers, u: Doubles, v: Doubles, chunks: int
) -> None:  # pragma: no cover - compiled
    """Solve every problem of cost (batch, n, m), in chunks over the threads."""
    batch = cost.shape[0]
    for chunk in numba.prange(chunks):
        begin, end = np.int64(chunk * batch // chunks), np.int64((chunk + 1) * batch // chunks)
        _solve_range(cost, begin, end, permutation, u, v)


def _is_serial(cost: NDArray) -> bool:
    """Whether threads would cost this batch more than they save."""
    return cost.shape[0] == 1 or cost.size < SERIAL_WORK or numba.get_num_threads() == 1


def compile_assignment(cost: NDArray[np.float32] | Doubles) -> None:
    """Compile, or load from the cache, what ``solve_assignment`` would run for this batch."""
    permutation, dual = np.empty((0, cost.shape[1]), np.int64), np.empty((0, 0))
    if _is_serial(cost):
        _solve_serial(cost[:0], permutation, dual, dual)
    else:
        _solve_parallel(cost[:0], permutation, dual, dual, 1)


def solve_assignment(cost: NDArray[np.float32] | Doubles) -> tuple[Integers, Doubles, Doubles]:
    """Solve a batch of linear assignment problems exactly, on at most numba.get_num_threads() threads.

    cost (batch, n, m), finite, float32 or float64, rectangular either way.  Returns the permutation (batch, n), the
    column of each row or -1 where n > m leaves it unmatched, and optimal potentials u (batch, n) and v (batch, m):
    u_i + v_j <= C_ij everywhere, equal on matched pairs, sum(u) + sum(v) the optimal value; where n < m, v <= 0 and
    zero on unmatched columns, where n > m the same of u.
    """
    cost = np.ascontiguousarray(cost, None if cost.dtype == np.float32 else np.float64)
    batch, n, m = cost.shape
    permutation = np.empty((batch, n), np.int64)
    u, v = np.empty((batch, n)), np.empty((batch, m))
    if _is_serial(cost):
        _solve_serial(cost, permutation, u, v)
    else:
        _solve_parallel(cost, permutation, u, v, min(batch, CHUNKS_PER_THREAD * numba.get_num_threads()))
    return permutation, u, v
