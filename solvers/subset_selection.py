"""Subset selection: the members that together cost least (the p-dispersion-sum problem), and the runners-up."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

from solvers import validation
from solvers.kernels.random import streams
from solvers.kernels.subsets import search_subsets, subset_sum
from solvers.solution import Status
from solvers.solver import Clock, threads_of_torch
from solvers.validation import ArrayLike, InvalidProblem

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

STARTS = 8
STRETCH = 2_000_000  # swaps looked at by a start between two looks at the clock
Method = Literal["local_search", "gurobi", "highs"]


@dataclass(frozen=True)
class Subsets:
    """The best subsets found, best first.

    Attributes:
        members: shape ``(count, size)``, increasing; fewer rows where there are fewer subsets.
        values: Σ_ij cost[i, j] over the members of each, shape ``(count,)``.
        status: OPTIMAL where these are proven to be the best, CONVERGED where a search has ended without a proof,
            TIME_LIMIT where it was ended.
    """

    members: Integers
    values: Doubles
    status: Status


def select_subsets(
    cost: ArrayLike,
    size: int,
    count: int = 10,
    method: Method = "local_search",
    time_limit: float | None = None,
    seed: int = 0,
    moves: int = 2000,
) -> Subsets:
    """The ``count`` subsets S of ``size`` members with the least Σ_{i,j in S} cost[i, j].

    (Kuby, "Programming models for facility dispersion", Geographical Analysis 19, 1987; with a maximum there: negate.)
    "It's a (Blind) Match!" chooses in this way the classes whose alignment is best.

    Args:
        cost: shape ``(n, n)``, finite, symmetric or not; the diagonal counts once.
        size: members of a subset, 1 … n.
        count: how many subsets.
        method: "local_search", tabu search by swaps from random subsets; or exactly by "gurobi" (its pool of best
            solutions) or "highs" (linearised, one best solution after the other is cut off).
        time_limit: seconds; the best until then are returned.
        seed: of the search.
        moves: swaps of each of the search's starts.

    Raises:
        InvalidProblem: a cost that is no finite square matrix.
        ValueError: a number out of range, an unknown method.
        ImportError: the engine is not installed.
    """
    C = validation.matrix("cost", cost, "(n, n)").double().numpy()
    if C.ndim != 2 or C.shape[0] != C.shape[1]:
        raise InvalidProblem(f"cost must be one square matrix (n, n), but its shape is {C.shape}")
    n = len(C)
    for name, value, most in (("size", size, n), ("count", count, None), ("moves", moves, None)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1 or value > (most or value):
            allowed = f"1 … {most}" if most else "at least 1"
            raise ValueError(f"{name} must be an integer, {allowed}, not {value!r}")
    if time_limit is not None and not time_limit >= 0:
        raise ValueError(f"time_limit must be a number of seconds ≥ 0 or None, not {time_limit!r}")
    found = {"local_search": _searched, "gurobi": _by_gurobi, "highs": _by_highs}
    if method not in found:
        raise ValueError(f"method must be one of {', '.join(map(repr, found))}, not {method!r}")
    count = min(count, math.comb(n, size))
    c, d = (C + C.T) / 2, np.diag(C).copy()
    np.fill_diagonal(c, 0)
    clock = Clock(time_limit)
    with clock.interruptible():
        if method == "local_search" or count == math.comb(n, size) == 1:
            members, status = _searched(c, d, size, count, clock, seed, moves)
        else:
            members, status = found[method](c, d, size, count, clock, seed, moves)
    values = np.array([subset_sum(C, x) for x in members])
    order = np.argsort(values, kind="stable")
    return Subsets(members[order], values[order], status)


def _searched(
    c: Doubles, d: Doubles, size: int, count: int, clock: Clock, seed: int, moves: int
) -> tuple[Integers, Status]:
    """The best that tabu search has seen; all of them, proven, where there are no more than are asked for."""
    n = len(d)
    if math.comb(n, size) <= count:
        return np.array(list(itertools.combinations(range(n), size))), Status.OPTIMAL
    pools, values = np.zeros((STARTS, count, n), np.bool_), np.full((STARTS, count), np.inf)
    step = max(1, STRETCH // (size * max(1, n - size)))
    random, done = streams(seed, STARTS), 0
    with threads_of_torch():
        while done < moves:
            search_subsets(c, d, size, min(step, moves - done), pools, values, random)
            done += step
            if clock.expired:
                break
    best = dict[tuple[int, ...], float]()
    for pool, value in zip(pools.reshape(-1, n), values.ravel(), strict=True):
        if value < np.inf:
            best[tuple(np.flatnonzero(pool).tolist())] = float(value)
    chosen = sorted(best, key=lambda members: best[members])[:count]
    return np.array(chosen, np.int64), Status.TIME_LIMIT if done < moves else Status.CONVERGED


def _by_gurobi(
    c: Doubles, d: Doubles, size: int, count: int, clock: Clock, seed: int, moves: int
) -> tuple[Integers, Status]:
    """The engine's pool of best solutions, started from those of the search."""
    import gurobipy as gp

    known, _ = _searched(
        c, d, size, count, Clock(None if clock.time_limit is None else clock.remaining / 10), seed, moves
    )
    with gp.Env(params={"OutputFlag": 0}) as environment, gp.Model(env=environment) as model:
        model.Params.PoolSearchMode, model.Params.PoolSolutions, model.Params.MIPGap = 2, count, 0.0
        model.Params.PreQLinearize = 2  # without it the pool of small problems takes minutes
        model.Params.Seed = abs(seed) % 2_000_000_000
        if clock.time_limit is not None:
            model.Params.TimeLimit = clock.remaining
        x = model.addMVar(len(d), vtype=gp.GRB.BINARY)
        model.addConstr(x.sum() == size)
        model.setObjective(x @ c @ x + d @ x)
        start = np.zeros(len(d))
        start[known[0]] = 1
        x.setAttr("Start", start)
        model.optimize(lambda model, where: model.terminate() if clock.expired else None)
        proven = model.Status == gp.GRB.OPTIMAL and model.SolCount >= count
        found = list[tuple[int, ...]]()
        for k in range(model.SolCount):
            model.Params.SolutionNumber = k
            found.append(tuple(np.flatnonzero(np.asarray(x.Xn) > 0.5).tolist()))
    return _merged(found, [] if proven else known.tolist(), c, d, count), (
        Status.OPTIMAL if proven else Status.TIME_LIMIT
    )


def _by_highs(
    c: Doubles, d: Doubles, size: int, count: int, clock: Clock, seed: int, moves: int
) -> tuple[Integers, Status]:
    """One best subset after the other: y_ij = x_i x_j is linear where every i of S has size − 1 partners."""
    n = len(d)
    pairs = np.array(list(itertools.combinations(range(n), 2)), np.int64).reshape(-1, 2)
    e = np.arange(len(pairs))
    costs = np.concatenate([d, 2 * c[pairs[:, 0], pairs[:, 1]]])
    both = sparse.csr_matrix((np.ones(2 * len(e)), (pairs.T.ravel(), np.tile(e, 2))), (n, len(e)))
    within = sparse.hstack([-(size - 1) * sparse.eye(n), both])  # Σ_j y_ij = (size − 1) x_i
    one = sparse.csr_matrix((np.ones(n), (np.zeros(n, int), np.arange(n))), (1, n + len(e)))
    below = [
        sparse.hstack([-sparse.csr_matrix((np.ones(len(e)), (e, pairs[:, side])), (len(e), n)), sparse.eye(len(e))])
        for side in (0, 1)
    ]
    rows = [
        optimize.LinearConstraint(within, 0, 0),
        optimize.LinearConstraint(one, size, size),
        *(optimize.LinearConstraint(part, -np.inf, 0) for part in below),
    ]
    found = list[tuple[int, ...]]()
    integral = np.concatenate([np.ones(n), np.zeros(len(e))])
    while len(found) < count and not clock.expired:
        options: Any = {"mip_rel_gap": 0.0} | ({} if clock.time_limit is None else {"time_limit": clock.remaining})
        result = optimize.milp(
            costs, constraints=rows, integrality=integral, bounds=optimize.Bounds(0, 1), options=options
        )
        if result.status != 0:
            break
        members = np.flatnonzero(result.x[:n] > 0.5)
        found.append(tuple(members.tolist()))
        cut = sparse.csr_matrix((np.ones(size), (np.zeros(size, int), members)), (1, n + len(e)))
        rows.append(optimize.LinearConstraint(cut, -np.inf, size - 1))
    proven = len(found) == count
    known = np.zeros((0, size), np.int64)
    if not proven:
        known, _ = _searched(c, d, size, count, clock, seed, moves)
    return _merged(found, known.tolist(), c, d, count), Status.OPTIMAL if proven else Status.TIME_LIMIT


def _merged(found: list[tuple[int, ...]], known: list[list[int]], c: Doubles, d: Doubles, count: int) -> Integers:
    """The best of two lists of subsets."""
    cost = c + np.diag(d)
    every = {tuple(members) for members in [*found, *known]}
    chosen = sorted(every, key=lambda members: subset_sum(cost, np.array(members)))[:count]
    return np.array(chosen, np.int64)
