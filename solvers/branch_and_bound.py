"""Branch and bound: quadratic assignments solved to proven optimality on the bounds of the level-1 RLT dual."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from solvers.dual_bound import COLD, WARM, Matrices, centred, settled, spread, warmest
from solvers.integrality import lattice
from solvers.kernels.exchange import lay_out, objective
from solvers.kernels.smoothed_dual import Smoothed, new_smoothed, smoothed_sweeps
from solvers.local_search import best_permutation, prepare
from solvers.problems import QuadraticAssignmentProblem, default_tolerance
from solvers.solution import Progress, Status
from solvers.solver import Answer, Clock, Solver
from solvers.symmetry import orbits

Doubles = NDArray[np.float64]
Singles = NDArray[np.float32]
Integers = NDArray[np.int64]

ENUMERATED = 4  # members left below which all permutations are tried
REWARM = 0.01  # the temperature that a node starts again from
ROOT_SWEEPS, SWEEPS = 600, 8  # at the root; at a node between two checks of its bound
HOPE = 8  # a node is branched on when so many checks like the last would not close its gap
STARTS, MOVES = 8, 1000  # of the search for the incumbent; moves a start and member
SAVE_EVERY = 10.0  # seconds between two checkpoints
SHARE = 0.2  # of the time limit that this search may take
SHARE_OF_SWEEPS = 0.5  # of the time left that the sweeps before a check may take
STRETCH = 100_000_000  # pair costs that sweeps visit between two looks at the clock, about


@dataclass
class _Node:
    """A problem with some choices made: what is left of it, and where its parent's dual variables stood."""

    rows: Integers  # not yet matched
    columns: Integers
    made: tuple[tuple[int, int], ...]
    bound: float
    A: Doubles = field(repr=False)
    B: Doubles = field(repr=False)
    L: Doubles = field(repr=False)
    constant: float = 0.0
    U: Singles | None = field(default=None, repr=False)
    V: Singles | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class BranchAndBound(Solver):
    """Minimises a quadratic assignment exactly: depth first, each node bounded by the smoothed dual of its parent's.

    A node fixes some choices i → j; what is left is again a quadratic assignment, and the parent's dual variables,
    restricted to it, are where its own ascent begins. It is branched on the row or column with the fewest choices whose
    reduced leader does not exceed the gap (ties: the largest sum of reduced leaders), and one of several choices that a
    symmetry of what is left maps onto each other is enough. Choices beyond the gap are forbidden below. Ended early,
    the answer is the best permutation found, with the least bound of the open nodes.

    Attributes:
        max_iterations: nodes that are bounded.
        checkpoint: a file that keeps the open nodes and the incumbent, written every few seconds and at the end; a
            search of the same problem that finds it goes on from there. For single problems.
    """

    name: ClassVar = "branch_and_bound"
    problem_types: ClassVar = (QuadraticAssignmentProblem,)
    exact: ClassVar = True
    gives_bound: ClassVar = True
    batched: ClassVar = True
    anytime: ClassVar = True
    reference: ClassVar = "Hahn, Grant and Hall, A Branch-and-Bound Algorithm for the Quadratic Assignment, 1998"

    max_iterations: int = 100_000_000
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_counts("max_iterations")

    def _prepare(self, problem: QuadraticAssignmentProblem) -> list[Matrices]:
        if self.checkpoint is not None and problem.batch_shape.numel() != 1:
            raise ValueError(f"checkpoint is for one problem, and this is a batch of {problem.batch_shape.numel()}")
        square = (np.zeros((2, 2)),) * 3
        smoothed_sweeps(new_smoothed(*square), np.zeros((0, 2), np.int64), np.zeros(0))
        settled(square, new_smoothed(*square), 1.0)
        objective(lay_out(*square), np.arange(2))
        return prepare(problem)

    def _run(self, problem: QuadraticAssignmentProblem, prepared: list[Matrices], clock: Clock) -> Answer:
        n, batch = problem.A.shape[-1], problem.batch_shape
        constants = problem.constant.detach().double().reshape(-1).tolist()
        trees = []
        for k, matrices in enumerate(prepared):
            share = clock.elapsed + clock.remaining / (len(prepared) - k)
            tree = _Tree(self, matrices, constants[k], problem.dtype, clock, share)
            tree.search()
            trees.append(tree)
        bounds = torch.tensor([tree.lower_bound for tree in trees], dtype=torch.float64)
        return Answer(
            permutation=torch.from_numpy(np.stack([tree.p for tree in trees])).reshape(*batch, n),
            lower_bound=bounds.reshape(batch),
            iterations=torch.tensor([tree.nodes for tree in trees]).reshape(batch),
            statuses=[tree.status for tree in trees],
            history=tuple(trees[0].history) if not batch else (),
        )


class _Tree:
    """The search tree of one problem, on as many threads as numba has."""

    def __init__(
        self,
        solver: BranchAndBound,
        matrices: Matrices,
        constant: float,
        dtype: torch.dtype,
        clock: Clock,
        until: float,
    ) -> None:
        self.solver, self.clock, self.until = solver, clock, until
        self.lattice, centre = lattice(*matrices, constant), centred(matrices)
        matrices, constant = centre.matrices, constant + centre.constant
        A, B, L = matrices
        n = len(A)
        self.costs, self.constant, self.matrices = lay_out(*matrices), constant, matrices
        self.scale = tuple(spread(M) for M in (A, B))
        self.random = np.random.default_rng([abs(solver.seed), solver.seed < 0])
        self.tolerance = 0.5 * default_tolerance(dtype)
        self.nodes, self.status, self.history = 0, Status.OPTIMAL, list[Progress]()
        self.p, self.value = np.arange(n), objective(self.costs, np.arange(n)) + constant
        self.proven = np.inf  # the least bound of a node that was closed by its bound
        root = _Node(np.arange(n), np.arange(n), (), -np.inf, A, B, L, constant)
        self.open, self.busy, self.lock = [root], dict[int, _Node](), threading.Condition()
        self.saved = time.monotonic()
        if solver.checkpoint is not None and Path(solver.checkpoint).exists():
            self._resume(Path(solver.checkpoint))

    @property
    def lower_bound(self) -> float:
        """No permutation is below: the least of the open nodes, the closed ones and the incumbent."""
        return min([self.value, self.proven, *(node.bound for node in [*self.open, *self.busy.values()])])

    @property
    def expired(self) -> bool:
        return self.clock.expired or self.clock.elapsed >= self.until

    @property
    def cutoff(self) -> float:
        """A node whose bound reaches it holds nothing better than the incumbent."""
        return self.value - self.tolerance * abs(self.value)

    def search(self) -> None:
        """Find an incumbent, then search the tree until it is empty or the clock expires."""
        n = len(self.p)
        share = self.clock.elapsed + SHARE * (self.until - self.clock.elapsed)
        self.consider(best_permutation(self.matrices, STARTS, MOVES * n, self.solver.seed, self.clock, share))
        threads = numba.get_num_threads()
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(self._work) for _ in range(threads)]:
                done.result()
        if self.open:
            self.status = Status.TIME_LIMIT if self.expired else Status.ITERATION_LIMIT
        if self.solver.checkpoint is not None:
            self._save(Path(self.solver.checkpoint))
        self.note()

    def consider(self, p: Integers) -> None:
        """Take a permutation for the incumbent if it is better."""
        value = objective(self.costs, p) + self.constant
        with self.lock:
            if value < self.value:
                self.p, self.value = np.array(p), value

    def note(self) -> None:
        """A point of the anytime curve."""
        value, bound = (torch.tensor(x, dtype=torch.float64) for x in (self.value, self.lower_bound))
        self.history.append(Progress(self.clock.elapsed, value, bound))

    def _work(self) -> None:
        """One thread: take the latest node, bound it, put its children back."""
        me = threading.get_ident()
        while True:
            with self.lock:
                while not self.open and self.busy:
                    self.lock.wait(0.05)
                if not self.open or self.expired or self.nodes >= self.solver.max_iterations:
                    return
                node = self.open.pop()
                if node.bound >= self.cutoff:
                    self.proven = min(self.proven, node.bound)
                    continue
                self.busy[me] = node
                self.nodes += 1
            try:
                children = self._bounded(node)
            except BaseException:
                children = [node]
                raise
            finally:
                with self.lock:
                    self.open += children
                    del self.busy[me]
                    if len(node.made) <= 1:
                        self.note()
                    if self.solver.checkpoint is not None and time.monotonic() - self.saved > SAVE_EVERY:
                        self._save(Path(self.solver.checkpoint))
                    self.lock.notify_all()

    def _bounded(self, node: _Node) -> list[_Node]:
        """Raise the bound of a node; its children, the most promising last, or none when it is closed."""
        m = len(node.rows)
        if m <= ENUMERATED:
            self._enumerate(node)
            return []
        unit = self.scale[0] * self.scale[1]
        state = new_smoothed(node.A / self.scale[0], node.B / self.scale[1], node.L / unit, node.U, node.V)
        root = node.U is None
        sweeps, eps = (ROOT_SWEEPS, WARM) if root else (SWEEPS, REWARM)
        last = node.bound
        while True:
            self._ascend(state, m, sweeps, eps)
            found = settled((node.A, node.B, node.L), state, unit)
            self.consider(self._whole(node, found.permutations[0]))
            bound = self.lattice.round_up(node.constant + found.bound)
            node.bound = max(node.bound, bound)
            if node.bound >= self.cutoff:
                self._close(node.bound)
                return []
            if self.expired:
                return [node]
            gain, gap = bound - last, self.cutoff - bound
            if not gain * HOPE > gap and not (root and gain > 1e-3 * gap):
                break
            last, eps, sweeps = bound, max(COLD, 0.3 * eps), SWEEPS if not root else ROOT_SWEEPS // 2
        return self._children(node, found.leaders, state.U[..., :m], state.V[..., :m])

    def _ascend(self, state: Smoothed, m: int, sweeps: int, eps: float) -> None:
        """So many sweeps, from temperature ``eps`` down; fewer, from a higher one, where time is short."""
        began, allowed = self.clock.elapsed, SHARE_OF_SWEEPS * (self.until - self.clock.elapsed)
        done, cooled, warm = 0, 0.0, eps
        while done == 0 or (done < sweeps and cooled < 1 and not self.expired):
            part = np.arange(done, min(sweeps, done + max(1, STRETCH // m**4)))
            done += len(part)
            temperatures = warm * (COLD / warm) ** np.maximum(cooled, part / max(1, sweeps - 1))
            smoothed_sweeps(state, np.stack([self.random.permutation(m) for _ in part]), temperatures)
            spent = self.clock.elapsed - began
            cooled = spent / allowed if allowed > 0 else 1.0
            if eps == WARM:
                warm = warmest(done / max(cooled, 1e-9)) if cooled > 0 else warm

    def _children(self, node: _Node, leaders: Doubles, U: Singles, V: Singles) -> list[_Node]:
        """One node a choice of the row or column with the fewest choices left, those alike counted once."""
        m, gap = len(node.rows), self.cutoff - node.bound
        left = leaders < gap  # a leader is what its choice adds to the bound
        L = np.where(left, node.L, node.L + 2 * gap)  # what is beyond is not worth choosing further down
        row_orbits, column_orbits = orbits(node.A, node.L), orbits(node.B, node.L.T)
        choices = [(len(set(column_orbits[left[i]])), -leaders[i].sum(), 0, i) for i in range(m)]
        choices += [(len(set(row_orbits[left[:, j]])), -leaders[:, j].sum(), 1, j) for j in range(m)]
        _, _, side, line = min(choices)
        if side == 0:
            pairs = [(line, j) for j in _one_of_each(column_orbits, left[line])]
        else:
            pairs = [(i, line) for i in _one_of_each(row_orbits, left[:, line])]
        of_line = leaders[line] if side == 0 else leaders[:, line]
        if not (of_line < gap).all():
            self._close(node.bound + float(of_line[of_line >= gap].min()))
        pairs.sort(key=lambda pair: -leaders[pair])
        return [self._child(node, i, j, L, float(leaders[i, j]), U, V) for i, j in pairs]

    def _child(self, node: _Node, i: int, j: int, L: Doubles, leader: float, U: Singles, V: Singles) -> _Node:
        """The node below, with the choice i → j of those that are left."""
        A, B = node.A, node.B
        rows, columns = np.delete(np.arange(len(A)), i), np.delete(np.arange(len(A)), j)
        pair, grid = (np.ix_(rows, rows), np.ix_(columns, columns)), np.ix_(rows, columns)
        extra = np.outer(A[i], B[j]) + np.outer(A[:, i], B[:, j])
        return _Node(
            rows=node.rows[rows],
            columns=node.columns[columns],
            made=(*node.made, (int(node.rows[i]), int(node.columns[j]))),
            bound=self.lattice.round_up(node.bound + leader),
            A=A[pair[0]],
            B=B[pair[1]],
            L=(L + extra)[grid],
            constant=node.constant + float(L[i, j] + A[i, i] * B[j, j]),
            U=U[np.ix_(rows, rows, columns)],
            V=V[np.ix_(columns, rows, columns)],
        )

    def _enumerate(self, node: _Node) -> None:
        """Try all permutations of what is left."""
        best, p = np.inf, np.arange(len(node.rows))
        for q in itertools.permutations(range(len(node.rows))):
            x = list(q)
            value = (node.A * node.B[np.ix_(x, x)]).sum() + node.L[np.arange(len(x)), x].sum()
            if value < best:
                best, p = value, np.array(x, np.int64)
        self.consider(self._whole(node, p))
        self._close(max(node.bound, self.lattice.round_up(node.constant + float(best))))

    def _whole(self, node: _Node, q: Integers) -> Integers:
        """The permutation of all, where q matches what is left."""
        p = np.empty(len(self.p), np.int64)
        for i, j in node.made:
            p[i] = j
        p[node.rows] = node.columns[q]
        return p

    def _save(self, path: Path) -> None:
        """Write what is open, whole or not at all."""
        kept = {
            "problem": self._fingerprint(),
            "permutation": self.p.tolist(),
            "proven": self.proven,
            "nodes": self.nodes,
            "open": [[list(node.made), node.bound] for node in [*self.open, *self.busy.values()]],
        }
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(kept))
        partial.replace(path)
        self.saved = time.monotonic()

    def _resume(self, path: Path) -> None:
        """Go on from a checkpoint."""
        try:
            kept = json.loads(path.read_text())
            known = kept["problem"] == self._fingerprint()
            self.p, self.proven, self.nodes = np.array(kept["permutation"], np.int64), kept["proven"], kept["nodes"]
            self.open = [self._node_of(tuple(map(tuple, made)), bound) for made, bound in kept["open"]]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path} is no checkpoint of branch_and_bound ({error}); remove it first") from None
        if not known:
            raise ValueError(f"the checkpoint {path} is of another problem; remove it or name another file")
        self.value = objective(self.costs, self.p) + self.constant

    def _node_of(self, made: tuple[tuple[int, int], ...], bound: float) -> _Node:
        """The node with these choices, without what its parents knew."""
        A, B, L = self.matrices
        everything = np.arange(len(A))
        i, j = (np.array([choice[side] for choice in made], np.int64) for side in (0, 1))
        rows, columns = np.setdiff1d(everything, i), np.setdiff1d(everything, j)
        extra = A[np.ix_(i, rows)].T @ B[np.ix_(j, columns)] + A[np.ix_(rows, i)] @ B[np.ix_(columns, j)].T
        fixed = L[i, j].sum() + (A[np.ix_(i, i)] * B[np.ix_(j, j)]).sum()
        return _Node(
            rows=rows,
            columns=columns,
            made=made,
            bound=bound,
            A=A[np.ix_(rows, rows)],
            B=B[np.ix_(columns, columns)],
            L=L[np.ix_(rows, columns)] + extra,
            constant=self.constant + float(fixed),
        )

    def _fingerprint(self) -> str:
        whole = b"".join(M.tobytes() for M in self.matrices) + np.float64(self.constant).tobytes()
        return hashlib.sha256(whole).hexdigest()

    def _close(self, bound: float) -> None:
        with self.lock:
            self.proven = min(self.proven, bound)


def _one_of_each(orbit: Integers, left: NDArray[np.bool_]) -> list[int]:
    """The first of every orbit, of those left."""
    members = np.flatnonzero(left)
    return members[np.unique(orbit[members], return_index=True)[1]].tolist()
