"""Gurobi: the quadratic assignment as a binary quadratic programme, by the commercial engine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numba
import numpy as np
import torch
from scipy import sparse

from solvers.dual_bound import Matrices
from solvers.integrality import lattice
from solvers.kernels.exchange import lay_out, objective
from solvers.local_search import best_permutation, prepare
from solvers.problems import Problem, QuadraticAssignmentProblem, default_tolerance
from solvers.solution import Status
from solvers.solver import Answer, Clock, Solver

STARTS, MOVES = 4, 200  # of the search for the incumbent; moves a start and member
TOO_LARGE = 10010  # Gurobi's error of a model that the licence does not cover
FREE_SIZE = 14  # the largest n whose model the bundled licence takes


@dataclass(frozen=True, kw_only=True)
class Gurobi(Solver):
    """Minimises Σ A[i, k] B[j, l] x_ij x_kl + Σ M_ij x_ij over binary x with row and column sums of one.

    Only products that a permutation can have are in the model; the engine starts from the best permutation of a short
    tabu search. The time limit includes the building of the model. Without a licence for its size the answer is
    UNAVAILABLE.

    Attributes:
        threads: of the engine; as many as torch has when left out.
    """

    name: ClassVar = "gurobi"
    problem_types: ClassVar = (QuadraticAssignmentProblem,)
    exact: ClassVar = True
    gives_bound: ClassVar = True
    batched: ClassVar = True
    anytime: ClassVar = True
    reference: ClassVar = "Gurobi Optimizer, nonconvex binary quadratic programming"

    threads: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, or None, not {self.threads!r}")

    @classmethod
    def unavailable(cls, problem: Problem | None = None) -> str | None:
        """Why the engine or its licence is missing: without a problem, whether it is there at all."""
        if (reason := _missing()) is not None:
            return reason
        if isinstance(problem, QuadraticAssignmentProblem) and _is_restricted():
            n = problem.A.shape[-1]
            if n > FREE_SIZE:
                return f"Gurobi's licence here takes quadratic assignments of n ≤ {FREE_SIZE}, and this one has n = {n}"
        return None

    def _prepare(self, problem: QuadraticAssignmentProblem) -> list[Matrices]:
        return prepare(problem)

    def _run(self, problem: QuadraticAssignmentProblem, prepared: list[Matrices], clock: Clock) -> Answer:
        n, batch = problem.A.shape[-1], problem.batch_shape
        constants = problem.constant.detach().double().reshape(-1).tolist()
        found, bounds, statuses = [], [], []
        for k, matrices in enumerate(prepared):
            until = clock.elapsed + clock.remaining / (len(prepared) - k)
            p, bound, status = self._solve_one(matrices, default_tolerance(problem.dtype), clock, until)
            bound = lattice(*matrices, constants[k]).round_up(bound + constants[k])
            value = objective(lay_out(*matrices), p) + constants[k]
            found.append(p)
            bounds.append(min(bound, value))
            proven = value - bound <= default_tolerance(problem.dtype) * abs(value)
            statuses.append(Status.OPTIMAL if proven else status if status is not Status.OPTIMAL else Status.CONVERGED)
        return Answer(
            permutation=torch.from_numpy(np.stack(found)).reshape(*batch, n),
            lower_bound=torch.tensor(bounds, dtype=torch.float64).reshape(batch),
            statuses=statuses,
        )

    def _solve_one(
        self, matrices: Matrices, gap: float, clock: Clock, until: float
    ) -> tuple[np.ndarray, float, Status]:
        """The best permutation, the engine's bound (without the constant) and how it ended."""
        import gurobipy as gp

        n, costs = len(matrices[0]), lay_out(*matrices)
        share = clock.elapsed + 0.1 * (until - clock.elapsed)
        best = best_permutation(matrices, STARTS, MOVES * n, self.seed, clock, share)
        Q, linear = quadratic_form(*matrices)
        rows = sparse.kron(sparse.eye(n), np.ones((1, n)))
        columns = sparse.kron(np.ones((1, n)), sparse.eye(n))
        sums: Any = sparse.csr_matrix(sparse.vstack([rows, columns]))
        with _environment() as environment, gp.Model(env=environment) as model:
            model.Params.Threads = self.threads or numba.get_num_threads()
            model.Params.Seed = abs(self.seed) % 2_000_000_000
            model.Params.MIPGap = gap / 2
            model.Params.NonConvex = 2
            x: Any = model.addMVar(n * n, vtype=gp.GRB.BINARY)
            model.addConstr(sums @ x == np.ones(2 * n))
            model.setObjective(x @ Q @ x + linear @ x)
            start = np.zeros((n, n))
            start[np.arange(n), best] = 1
            x.Start = start.ravel()
            if np.isfinite(until):
                model.Params.TimeLimit = max(0.0, until - clock.elapsed)

            def stop(model: Any, where: int) -> None:
                if clock.expired:
                    model.terminate()

            model.optimize(stop)
            bound = float(model.ObjBound) if model.Status != gp.GRB.LOADED else -np.inf
            if model.SolCount:
                p = x.X.reshape(n, n).argmax(1)
                if sorted(p) == list(range(n)) and objective(costs, p) < objective(costs, best):
                    best = p
            ended = model.Status in (gp.GRB.TIME_LIMIT, gp.GRB.INTERRUPTED)
        return best, bound, Status.TIME_LIMIT if ended else Status.OPTIMAL


def quadratic_form(A: np.ndarray, B: np.ndarray, L: np.ndarray) -> tuple[sparse.csr_array, np.ndarray]:
    """(Q (n², n²), c (n²,)): the objective is xᵀ Q x + cᵀ x for the binary x_ij of index i n + j; Q has no diagonal."""
    n = len(A)
    linear = L + np.outer(np.diag(A), np.diag(B))
    a, b = (sparse.csr_array(M - np.diag(np.diag(M))) for M in (A, B))
    return sparse.csr_array(sparse.kron(a, b)), linear.reshape(n * n)


def _environment() -> Any:
    import gurobipy as gp

    environment = gp.Env(empty=True)
    environment.setParam("OutputFlag", 0)
    environment.start()
    return environment


@cache
def _missing() -> str | None:
    try:
        import gurobipy as gp
    except ImportError:
        return "Gurobi is not installed (pip install gurobipy)"
    try:
        _environment().dispose()
    except gp.GurobiError as error:
        return f"Gurobi does not start: {error}"
    return None


@cache
def _is_restricted() -> bool:
    """Whether the licence refuses a model of 2001 variables."""
    import gurobipy as gp

    with _environment() as environment, gp.Model(env=environment) as model:
        model.addMVar(2001)
        try:
            model.optimize()
        except gp.GurobiError as error:
            return error.errno == TOO_LARGE
    return False
