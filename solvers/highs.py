"""HiGHS: the quadratic assignment as an integer programme, its level-1 RLT, by the open-source engine in SciPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from solvers.dual_bound import Matrices
from solvers.integrality import lattice
from solvers.kernels.exchange import lay_out, objective
from solvers.local_search import best_permutation, prepare
from solvers.problems import QuadraticAssignmentProblem, default_tolerance
from solvers.solution import Status
from solvers.solver import Answer, Clock, Solver

Doubles = NDArray[np.float64]

STARTS, MOVES = 4, 200  # of the search beside the engine; moves a start and member


class Relaxation(NamedTuple):
    """min cᵀ z with E z = e, z ≥ 0: the choices x_ij, then the pairs y_ij,kl = y_kl,ij with i < k and j ≠ l."""

    cost: Doubles
    E: Any  # sparse
    e: Doubles
    n: int


@dataclass(frozen=True, kw_only=True)
class HiGHS(Solver):
    """Minimises the level-1 RLT of the problem with x binary: exact, but slow beyond n of about 10.

    Σ_l y_ij,kl = x_ij for all k ≠ i and Σ_k y_ij,kl = x_ij for all l ≠ j linearise the products y_ij,kl = x_ij x_kl.
    The engine has one thread and takes no first permutation; a better one that a short tabu search finds is the answer.
    """

    name: ClassVar = "highs"
    problem_types: ClassVar = (QuadraticAssignmentProblem,)
    exact: ClassVar = True
    gives_bound: ClassVar = True
    batched: ClassVar = True
    max_size: ClassVar = 16
    reference: ClassVar = "Adams and Johnson, Improved Linear Programming-Based Lower Bounds for the QAP, 1994"

    def _prepare(self, problem: QuadraticAssignmentProblem) -> list[Matrices]:
        return prepare(problem)

    def _run(self, problem: QuadraticAssignmentProblem, prepared: list[Matrices], clock: Clock) -> Answer:
        n, batch = problem.A.shape[-1], problem.batch_shape
        constants = problem.constant.detach().double().reshape(-1).tolist()
        tolerance = default_tolerance(problem.dtype)
        found, bounds, statuses = [], [], []
        for k, matrices in enumerate(prepared):
            until = clock.elapsed + clock.remaining / (len(prepared) - k)
            costs, share = lay_out(*matrices), clock.elapsed + 0.1 * (until - clock.elapsed)
            known = best_permutation(matrices, STARTS, MOVES * n, self.seed, clock, share)
            p, bound = _solve_one(matrices, tolerance / 2, clock, until)
            p = known if p is None or objective(costs, known) < objective(costs, p) else p
            value = objective(costs, p) + constants[k]
            bound = min(value, lattice(*matrices, constants[k]).round_up(bound + constants[k]))
            found.append(p)
            bounds.append(bound)
            statuses.append(Status.OPTIMAL if value - bound <= tolerance * abs(value) else Status.TIME_LIMIT)
        return Answer(
            permutation=torch.from_numpy(np.stack(found)).reshape(*batch, n),
            lower_bound=torch.tensor(bounds, dtype=torch.float64).reshape(batch),
            statuses=statuses,
        )


def _solve_one(matrices: Matrices, gap: float, clock: Clock, until: float) -> tuple[NDArray[np.int64] | None, float]:
    """The permutation, if any, and the bound (without the constant) that the engine ends with."""
    model = level_one(*matrices)
    n = model.n
    options: Any = {"mip_rel_gap": gap}
    if np.isfinite(until):
        options["time_limit"] = max(0.01, until - clock.elapsed)
    binary: Any = np.zeros(len(model.cost))
    binary[: n * n] = 1
    result = milp(
        model.cost,
        integrality=binary,
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(model.E, model.e, model.e),
        options=options,
    )
    p = None if result.x is None else result.x[: n * n].reshape(n, n).argmax(1)
    if p is not None and sorted(p) != list(range(n)):
        p = None
    bound = -np.inf if result.mip_dual_bound is None else float(result.mip_dual_bound)
    return p, bound


def level_one(A: Doubles, B: Doubles, L: Doubles) -> Relaxation:
    """The level-1 RLT of a problem without its constant."""
    n = len(A)
    i, k = np.triu_indices(n, 1)
    j, l = (~np.eye(n, dtype=bool)).nonzero()  # noqa: E741
    i, k = (x.repeat(len(j)) for x in (i, k))
    j, l = (np.tile(x, n * (n - 1) // 2) for x in (j, l))  # noqa: E741
    pairs = A[i, k] * B[j, l] + A[k, i] * B[l, j]
    linear = (L + np.outer(np.diag(A), np.diag(B))).ravel()
    cost = np.concatenate([linear, pairs])
    y = n * n + np.arange(len(i))
    # Two constraints for either choice of a pair: (choice, other row) and (choice, other column).
    where = [c * 2 * n + x for c, k_, l_ in ((i * n + j, k, l), (k * n + l, i, j)) for x in (k_, n + l_)]
    used, rows = np.unique(np.concatenate(where), return_inverse=True)
    shape = (len(used), len(cost))
    linked = sparse.coo_array((np.ones(len(rows)), (rows, np.tile(y, 4))), shape=shape)
    linked = linked - sparse.coo_array((np.ones(len(used)), (np.arange(len(used)), used // (2 * n))), shape=shape)
    sums = sparse.vstack([sparse.kron(sparse.eye(n), np.ones((1, n))), sparse.kron(np.ones((1, n)), sparse.eye(n))])
    padded = sparse.hstack([sums, sparse.coo_array((2 * n, len(i)))])
    E = sparse.csr_array(sparse.vstack([padded, linked]))
    e = np.concatenate([np.ones(2 * n), np.zeros(len(used))])
    return Relaxation(cost, E, e, n)


def level_one_bound(A: Doubles, B: Doubles, L: Doubles) -> float:
    """The optimum of the level-1 RLT by HiGHS's interior point method: what dual ascent comes near to."""
    model = level_one(A, B, L)
    result = linprog(model.cost, A_eq=model.E, b_eq=model.e, bounds=(0, None), method="highs-ipm")
    if not result.success or result.fun is None:
        raise RuntimeError(f"HiGHS did not solve the relaxation: {result.message}")
    return float(result.fun)
