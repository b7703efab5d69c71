"""Local searches for the quadratic assignment by pair exchanges, many starts side by side on the cores.

* Robust tabu search (Taillard, Parallel Computing 17 (1991)): the best exchange that does not give two members partners
  they had lately; tenures are random, and an exchange that neither has seen for long is forced. After many moves
  without a new best it goes on from a random place near its best (Misevičius, "A tabu search algorithm for the
  quadratic assignment problem", Computational Optimization and Applications 30 (2005)).
* Iterated local search (Stützle, "Iterated local search for the quadratic assignment problem", EJOR 174 (2006)): the
  partners of a few random members are exchanged in a cycle and the way down is taken again; the result is kept where it
  is no worse, and the search goes back to the start's best after many failures.

A start keeps its state in arrays, so that a search can be interrupted and gone on with.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from solvers.kernels.compiling import compiled, inlined
from solvers.kernels.exchange import (
    Doubles,
    Integers,
    Position,
    Problem,
    Scratch,
    Tabu,
    allowed_exchange,
    best_exchange,
    copy,
    copy_position,
    descend,
    exchange,
    exchange_and_look,
    lay_out,
    new_position,
    new_scratch,
    objective,
    place,
)
from solvers.kernels.random import Stream, below, shuffle, streams, uniform
from solvers.kernels.threads import on_threads
from solvers.kernels.vectors import LANES, padded

DESCENT, TABU, ITERATED = 0, 1, 2
REFRESH = 1000  # moves after which the changes are computed anew: they gather rounding
TENURE = 8  # times n is the longest tenure; a fourth of it is the mean
STUCK = 30  # times n moves without a new best after which a tabu search goes back to its best, with
KICK = 0.2  # times n random exchanges, at most
FORGOTTEN = 5  # times n² moves after which an exchange is forced
SERIAL_WORK = 200_000  # entries of D moved below which threads cost more than they save
PATIENCE = 40  # times n failures of an iterated search until it goes back to its best


class Searches(NamedTuple):
    """The state of every start; the first dimension is the start."""

    p: Integers  # (starts, n): where it is
    best: Integers  # (starts, n): the best it has seen
    value: Doubles  # (starts, 2): of both
    moves: Integers  # (starts, 3): made; since the changes were fresh; those, or kicks, since the best
    kind: Integers  # (starts,)
    stream: Stream  # (starts, 1)
    tabu: Integers  # (starts, n, n): until which move i may not have the partner that j now has
    free: Doubles  # (starts, n, width): from which move i and j may be exchanged, symmetric
    b: Doubles  # (starts, n, width)
    bT: Doubles  # (starts, n, width)
    D: Doubles  # (starts, n, width)


def new_searches(p: Integers, kind: Integers, seed: int) -> Searches:
    """Searches that start from the permutations p (starts, n); ``placed`` by the first call that goes on with them."""
    starts, n = p.shape
    rows = (starts, n, padded(n, LANES))
    return Searches(
        p=p.copy(),
        best=p.copy(),
        value=np.full((starts, 2), np.inf),
        moves=np.ones((starts, 3), np.int64),
        kind=np.asarray(kind, np.int64),
        stream=streams(seed, starts),
        tabu=np.zeros((starts, n, n), np.int64),
        free=np.zeros(rows),
        b=np.zeros(rows),
        bT=np.zeros(rows),
        D=np.zeros(rows),
    )


@compiled
def _forgotten_exchange(tabu: Integers, long_ago: int) -> tuple[int, int]:  # pragma: no cover - compiled
    """An exchange that neither side has had for long; −1 when there is none."""
    n = len(tabu)
    for i in range(n - 1):
        for j in range(i + 1, n):
            if tabu[i, j] < long_ago and tabu[j, i] < long_ago:
                return i, j
    return -1, -1


@compiled
def _tabu_moves(
    problem: Problem, now: Position, k: int, all_: Searches, budget: int, scratch: Scratch
) -> None:  # pragma: no cover - compiled
    n = len(now.p)
    tabu, free, moves, value, stream = all_.tabu[k], all_.free[k], all_.moves[k], all_.value[k], all_.stream[k]
    if n == 1 or budget == 0:
        return
    change, r, s = allowed_exchange(now.D, _tabu_now(free, moves, value))
    for _ in range(budget):
        move = moves[0]
        if move % n == 0:
            i, j = _forgotten_exchange(tabu, move - FORGOTTEN * n * n)
            if i >= 0:
                change, r, s = now.D[i, j], i, j
        if r < 0:  # all are tabu
            change, r, s = best_exchange(now.D)
        value[0] += change
        for i in range(n):
            tabu[i, r], tabu[i, s] = tabu[i, s], tabu[i, r]
        for x, y in ((r, s), (s, r)):  # x's old partner is now y's
            u = uniform(stream)
            tabu[x, y] = move + 1 + np.int64(u * u * u * TENURE * n)
        for x in range(n):
            free[x, r] = free[r, x] = min(tabu[r, x], tabu[x, r])
            free[x, s] = free[s, x] = min(tabu[s, x], tabu[x, s])
        moves[0] += 1
        moves[1] += 1
        better = value[0] < value[1] - 1e-12 * abs(value[1])
        if better:
            value[1] = value[0]
        change, r, s = exchange_and_look(problem, now, r, s, scratch, _tabu_now(free, moves, value))
        moves[2] += 1
        if better:
            copy(now.p, all_.best[k])
            moves[2] = 0
        if moves[2] >= STUCK * n:
            _kick(all_.best[k], now.p, stream)
            moves[2] = 0
            moves[1] = REFRESH
        if moves[1] >= REFRESH:
            _refresh(problem, now, value, moves)
            change, r, s = allowed_exchange(now.D, _tabu_now(free, moves, value))


@inlined
def _kick(best: Integers, p: Integers, stream: Stream) -> None:  # pragma: no cover - compiled
    """The best with the partners of a few random members exchanged."""
    n = len(p)
    copy(best, p)
    for _ in range(2 + below(stream, max(1, int(KICK * n)))):
        r, s = below(stream, n), below(stream, n)
        p[r], p[s] = p[s], p[r]


@inlined
def _tabu_now(free: Doubles, moves: Integers, value: Doubles) -> Tabu:  # pragma: no cover - compiled
    """What is allowed at the next move: also whatever reaches a new best."""
    return Tabu(free, float(moves[0]), value[1] - value[0] - 1e-12 * abs(value[1]))


@compiled
def _refresh(problem: Problem, now: Position, value: Doubles, moves: Integers) -> None:  # pragma: no cover - compiled
    place(problem, now)
    value[0] = objective(problem, now.p)
    moves[1] = 0


@compiled
def _iterated_moves(
    problem: Problem, now: Position, k: int, all_: Searches, budget: int, scratch: Scratch
) -> None:  # pragma: no cover - compiled
    """Kicks and the ways down from them; ``best`` and ``value[1]`` are those of the start's best."""
    n = len(now.p)
    moves, value, stream = all_.moves[k], all_.value[k], all_.stream[k]
    members, before = np.arange(n), new_position(n)
    copy_position(now, before)
    end = moves[0] + budget
    while moves[0] < end:
        old = value[0]
        size = min(n, 2 + below(stream, max(2, n // 3)))
        shuffle(stream, members)
        change = 0.0
        for x in range(size - 1):
            r, s = members[x], members[x + 1]
            change += now.D[min(r, s), max(r, s)]
            exchange(problem, now, min(r, s), max(r, s), scratch)
        change += descend(problem, now, 1e-12 * (1 + abs(old)), scratch)
        value[0] = old + change
        moves[0] += size
        moves[1] += 2 * size
        if value[0] < value[1] - 1e-12 * abs(value[1]):
            value[1] = value[0]
            copy(now.p, all_.best[k])
            moves[2] = 0
        moves[2] += 1
        if moves[2] > PATIENCE * n:
            if uniform(stream) < 0.5:
                copy(all_.best[k], now.p)
            moves[2] = 0
            for _ in range(0 if uniform(stream) < 0.5 else n):  # far away
                r, s = below(stream, n), below(stream, n)
                now.p[r], now.p[s] = now.p[s], now.p[r]
            _refresh(problem, now, value, moves)
            copy_position(now, before)
        elif value[0] > old:
            copy_position(before, now)
            value[0] = old
        else:
            if moves[1] >= REFRESH:
                _refresh(problem, now, value, moves)
            copy_position(now, before)


@compiled
def _go_on(problem: Problem, all_: Searches, k: int, budget: int) -> None:  # pragma: no cover - compiled
    """About ``budget`` moves of start k."""
    now = Position(all_.p[k], all_.b[k], all_.bT[k], all_.D[k])
    value, scratch = all_.value[k], new_scratch(len(now.p))
    if value[0] == np.inf:
        _refresh(problem, now, value, all_.moves[k])
        value[1] = value[0]
    if all_.kind[k] == TABU:
        _tabu_moves(problem, now, k, all_, budget, scratch)
        return
    value[0] += descend(problem, now, 1e-12 * (1 + abs(value[0])), scratch)
    if value[0] < value[1]:
        value[1] = value[0]
        copy(now.p, all_.best[k])
    if all_.kind[k] == ITERATED and len(now.p) > 1:
        _iterated_moves(problem, now, k, all_, budget, scratch)


def go_on(problem: Problem, searches: Searches, budget: int) -> None:
    """About ``budget`` moves of every start (a descent goes to its end), on the threads there are."""
    starts, n = searches.p.shape
    on_threads(lambda k: _go_on(problem, searches, k, budget), starts, starts * budget * n * n > SERIAL_WORK)


def compile_searches() -> None:
    """Compile the searches, or find them compiled."""
    nothing = np.zeros((2, 2))
    problem = lay_out(nothing, nothing, nothing)
    searches = new_searches(np.array([[0, 1]]), np.array([ITERATED]), 0)
    _go_on(problem, searches, 0, 0)
