"""pylibmgm: graph matching by the library of the authors of the fusion moves, an optional engine under the GPL."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch

from solvers.graph_matching import GraphMatchingProblem
from solvers.problems import Problem, QuadraticAssignmentProblem
from solvers.solution import Status
from solvers.solver import Answer, Clock, Solver


@dataclass(frozen=True, kw_only=True)
class PyLibMGM(Solver):
    """Greedy and fused matchings with libmpopt's dual ascent, as pylibmgm runs them; it gives no bound and no limit.

    The library knows partial matchings alone: where all are to be matched, every cost is lowered until none gains by
    staying unmatched, as "It's a (Blind) Match!" does. A quadratic assignment is written out pair by pair. Where it
    still leaves a node unmatched that must be, the rest is filled in order. It cannot be stopped, the clock is
    looked at before each problem of a batch; and the seed does not reach all of its random choices.

    Attributes:
        max_iterations: batches of ten dual sweeps and ten constructed matchings, at most.
        patience: batches without progress after which it stops; the library's own rule when left out.
    """

    name: ClassVar = "pylibmgm"
    problem_types: ClassVar = (GraphMatchingProblem, QuadraticAssignmentProblem)
    batched: ClassVar = True
    reference: ClassVar = "Kahl et al., Unlocking the Potential of Operations Research for Multi-Graph Matching, 2024"

    max_iterations: int = 100
    patience: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_counts("max_iterations", *(["patience"] if self.patience is not None else []))

    @classmethod
    def unavailable(cls, problem: Problem | None = None) -> str | None:
        """Why the library is missing."""
        if find_spec("pylibmgm") is None:
            return "pylibmgm is not installed (pip install 'matchmark[pylibmgm]'; it is under the GPL)"
        return None

    def _run(self, problem: GraphMatchingProblem | QuadraticAssignmentProblem, prepared: None, clock: Clock) -> Answer:
        found, statuses = [], []
        for one in _each(problem.detach()):
            expired = clock.expired
            if expired:  # the choices alone, without the pairs
                model = GraphMatchingProblem(one.linear, complete=_is_complete(one))
            elif isinstance(one, QuadraticAssignmentProblem):
                model = GraphMatchingProblem.from_quadratic_assignment(one)
            else:
                model = one
            found.append(_filled(model, self._solve_one(model)))
            statuses.append(Status.TIME_LIMIT if expired else Status.CONVERGED)
        n = problem.shape[-2]
        return Answer(
            permutation=torch.tensor(found, dtype=torch.int64).reshape(*problem.batch_shape, n), statuses=statuses
        )

    def _solve_one(self, problem: GraphMatchingProblem) -> list[int]:
        """The right node of every left node, −1 for none."""
        import pylibmgm as lib

        L, q = problem.linear.double().numpy(), problem.pair_costs.double().numpy()
        allowed = np.isfinite(L)
        if problem.complete:
            L, q = L - (L[allowed].max() + 1), q - (q.max(initial=0.0) + 1)
        n, m = L.shape
        number = np.full(L.shape, -1)
        number[allowed] = np.arange(allowed.sum())
        i, s, j, t = problem.pairs.numpy().T
        model = lib.GmModel(lib.Graph(0, n), lib.Graph(1, m), int(allowed.sum()), len(q))
        for left, right in np.argwhere(allowed).tolist():
            model.add_assignment(left, right, float(L[left, right]))
        for first, second, cost in zip(number[i, s].tolist(), number[j, t].tolist(), q.tolist(), strict=True):
            model.add_edge(min(first, second), max(first, second), cost)
        lib.QAPSolver.libmpopt_seed = abs(self.seed) % 2**31  # read when a solver is made
        engine: Any = lib.QAPSolver(model) if len(q) else lib.LAPSolver(model)
        if len(q):
            engine.stopping_criteria.max_batches = self.max_iterations
            if self.patience is not None:
                engine.stopping_criteria.p, engine.stopping_criteria.k = 0.0, self.patience
        return [-1 if right is None else int(right) for right in engine.run().to_list_with_none()]


def _each(
    problem: GraphMatchingProblem | QuadraticAssignmentProblem,
) -> list[GraphMatchingProblem] | list[QuadraticAssignmentProblem]:
    """The problems of a batch."""
    if isinstance(problem, GraphMatchingProblem):
        return [problem]
    flat = problem.flattened()
    parts = zip(flat.A, flat.B, flat.linear, flat.constant, strict=True)
    return [QuadraticAssignmentProblem(*x) for x in parts]


def _is_complete(problem: GraphMatchingProblem | QuadraticAssignmentProblem) -> bool:
    return isinstance(problem, QuadraticAssignmentProblem) or bool(problem.complete)


def _filled(problem: GraphMatchingProblem, p: list[int]) -> list[int]:
    """The matching with what a complete problem still misses, as far as free right nodes are allowed."""
    free = [s for s in range(problem.linear.shape[1]) if s not in p]
    for i, s in enumerate(p):
        if s < 0 and problem.complete:
            allowed = [r for r in free if torch.isfinite(problem.linear[i, r])]
            if allowed:
                free.remove(allowed[0])
                p[i] = allowed[0]
    return p
