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

AT_ONCE = 1_000_000  # pairs that are written out in one go
FIRST, LONGER = 1, 20.0  # batches of the first run with a time limit, and how many times as many the next may have
LAST = 0.9  # of the time left that the next run is to take, by the time of the last one


@dataclass(frozen=True, kw_only=True)
class PyLibMGM(Solver):
    """Greedy and fused matchings with libmpopt's dual ascent, as pylibmgm runs them; it gives no bound and no limit.

    The library knows partial matchings alone: where all are to be matched, every cost is lowered until none gains by
    staying unmatched, as "It's a (Blind) Match!" does. A quadratic assignment is written out pair by pair. Where it
    still leaves a node unmatched that must be, the rest is filled in order. A run cannot be stopped: with a time limit
    runs of more and more batches are made, the last one as long as seems to fit in. The seed does not reach all of its
    random choices.

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

    def _prepare(self, problem: GraphMatchingProblem | QuadraticAssignmentProblem) -> list[_Model]:
        spent = self.time_limit == 0.0  # then no model is looked at
        return [(one, None) if spent else _written_out(one) for one in _each(problem.detach())]

    def _run(
        self, problem: GraphMatchingProblem | QuadraticAssignmentProblem, prepared: list[_Model], clock: Clock
    ) -> Answer:
        found, statuses = [], []
        for k, (given, model) in enumerate(prepared):
            expired = clock.expired
            if expired:  # the choices alone, without the pairs
                model = _written_out(GraphMatchingProblem(given.linear, complete=_is_complete(given)))[1]
            until = clock.elapsed + clock.remaining / (len(prepared) - k)
            p, ended = self._matched(given, model, clock, until)
            found.append(p)
            statuses.append(Status.TIME_LIMIT if expired or ended else Status.CONVERGED)
        n = problem.shape[-2]
        return Answer(
            permutation=torch.tensor(found, dtype=torch.int64).reshape(*problem.batch_shape, n), statuses=statuses
        )

    def _matched(self, problem: _Single, model: Any, clock: Clock, until: float) -> tuple[list[int], bool]:
        """The best matching, and whether time ended the search: longer and longer runs, as none can be stopped."""
        batches = self.max_iterations if clock.time_limit is None else min(FIRST, self.max_iterations)
        best, lowest = list[int](), float("inf")
        while True:
            began = clock.elapsed
            p = _filled(problem, self._run_once(model, batches))
            value = float(problem.objective(torch.tensor(p)))
            if not best or value < lowest:
                best, lowest = p, value
            took, left = clock.elapsed - began, until - clock.elapsed
            if batches == self.max_iterations:
                return best, False
            more = min(self.max_iterations, int(batches * min(LONGER, LAST * left / max(took, 1e-6))))
            if more <= batches:  # no longer run fits in
                return best, True
            batches = more

    def _run_once(self, model: Any, batches: int) -> list[int]:
        """The right node of every left node, −1 for none."""
        import pylibmgm as lib

        lib.QAPSolver.libmpopt_seed = abs(self.seed) % 2**31  # read when a solver is made
        engine: Any = lib.QAPSolver(model) if model.no_edges() else lib.LAPSolver(model)
        if model.no_edges():
            engine.stopping_criteria.max_batches = batches
            if self.patience is not None:
                engine.stopping_criteria.p, engine.stopping_criteria.k = 0.0, self.patience
        return [-1 if right is None else int(right) for right in engine.run().to_list_with_none()]


_Single = GraphMatchingProblem | QuadraticAssignmentProblem
_Model = tuple[_Single, Any]
"""A problem and what the library has made of it."""


def _written_out(one: _Single) -> _Model:
    """The library's model, pair by pair."""
    import pylibmgm as lib

    problem = (
        GraphMatchingProblem.from_quadratic_assignment(one) if isinstance(one, QuadraticAssignmentProblem) else one
    )
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
    for k in range(0, len(q), AT_ONCE):  # as Python's numbers they take ten times the memory
        part = slice(k, k + AT_ONCE)
        one_end, other = number[i[part], s[part]], number[j[part], t[part]]
        ends = np.minimum(one_end, other).tolist(), np.maximum(one_end, other).tolist()
        for first, second, cost in zip(*ends, q[part].tolist(), strict=True):
            model.add_edge(first, second, cost)
    return one, model


def _each(
    problem: _Single,
) -> list[GraphMatchingProblem] | list[QuadraticAssignmentProblem]:
    """The problems of a batch."""
    if isinstance(problem, GraphMatchingProblem):
        return [problem]
    flat = problem.flattened()
    parts = zip(flat.A, flat.B, flat.linear, flat.constant, strict=True)
    return [QuadraticAssignmentProblem(*x) for x in parts]


def _is_complete(problem: _Single) -> bool:
    return isinstance(problem, QuadraticAssignmentProblem) or bool(problem.complete)


def _filled(problem: _Single, p: list[int]) -> list[int]:
    """The matching with what a complete problem still misses, as far as free right nodes are allowed."""
    free = [s for s in range(problem.linear.shape[1]) if s not in p]
    for i, s in enumerate(p):
        if s < 0 and _is_complete(problem):
            allowed = [r for r in free if torch.isfinite(problem.linear[i, r])]
            if allowed:
                free.remove(allowed[0])
                p[i] = allowed[0]
    return p
