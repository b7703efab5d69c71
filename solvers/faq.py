"""FAQ: the Frank–Wolfe heuristic for the quadratic assignment, many starts at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from solvers.dual_bound import Matrices, matrices_of
from solvers.kernels.assignment import compile_assignment, solve_assignment
from solvers.kernels.exchange import lay_out, objectives
from solvers.kernels.frank_wolfe import frank_wolfe
from solvers.problems import QuadraticAssignmentProblem
from solvers.solution import Status
from solvers.solver import Answer, Clock, Solver

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

BALANCING = 10  # Sinkhorn iterations that make a random matrix doubly stochastic
AT_ONCE = 4_000_000  # entries of the starts between two looks at the clock


@dataclass(frozen=True, kw_only=True)
class FAQ(Solver):
    """Minimises the objective over doubly stochastic matrices by Frank–Wolfe, and rounds what it comes to.

    A step goes to the permutation Q that minimises ⟨∇f(P), Q⟩, exactly, and along it to the minimum of the quadratic.
    As the gradient is linear in P and Q a permutation, it costs one matrix product a start (two where A or B is not
    symmetric). The first start is the barycenter 1 1ᵀ/n, the others lie half-way from it to random doubly stochastic
    matrices; all run as one batch, and the best rounded one is the answer.

    Attributes:
        starts: how many.
        max_iterations: steps of each.
        tolerance: a start has converged when ‖P' − P‖_F / √n < tolerance.
    """

    name: ClassVar = "faq"
    problem_types: ClassVar = (QuadraticAssignmentProblem,)
    batched: ClassVar = True
    anytime: ClassVar = True
    reference: ClassVar = "Vogelstein et al., Fast Approximate Quadratic Programming for Graph Matching, 2015"

    starts: int = 1
    max_iterations: int = 30
    tolerance: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_counts("starts", "max_iterations")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must be a number ≥ 0, not {self.tolerance!r}")

    def _prepare(self, problem: QuadraticAssignmentProblem) -> list[Matrices]:
        n = problem.A.shape[-1]
        compile_assignment(np.empty((min(self.starts, max(1, AT_ONCE // n**2)), n, n)))
        square = np.zeros((2, 2))
        frank_wolfe(square, square, square, True, *np.zeros((2, 0, 2, 2)), 1, 0.0)
        objectives(lay_out(square, square, square), np.zeros((0, 2), np.int64))
        return matrices_of(problem)

    def _run(self, problem: QuadraticAssignmentProblem, prepared: list[Matrices], clock: Clock) -> Answer:
        n, batch = problem.A.shape[-1], problem.batch_shape
        found, steps, statuses = [], [], []
        for matrices in prepared:
            costs, random = lay_out(*matrices), np.random.default_rng([abs(self.seed), self.seed < 0])
            best, p, made, status = np.inf, np.arange(n), 0, Status.CONVERGED
            size = max(1, AT_ONCE // n**2)
            for first in range(0, self.starts, size):
                P = _starts(min(size, self.starts - first), n, random, barycenter=first == 0)
                iterations, converged = self._descend(matrices, P)
                permutations = solve_assignment(-P)[0]
                values = objectives(costs, permutations)
                if values.min() < best:
                    best, p = float(values.min()), permutations[values.argmin()]
                made = max(made, iterations)
                status = status if converged else Status.ITERATION_LIMIT
                if clock.expired:
                    status = Status.TIME_LIMIT
                    break
            found.append(p)
            steps.append(made)
            statuses.append(status)
        return Answer(
            permutation=torch.from_numpy(np.stack(found)).reshape(*batch, n),
            iterations=torch.tensor(steps).reshape(batch),
            statuses=statuses,
        )

    def _descend(self, matrices: Matrices, P: Doubles) -> tuple[int, bool]:
        """Frank–Wolfe from every P (starts, n, n), in place: the steps of the longest, and whether all converged."""
        A, B, L = matrices
        symmetric = bool((A == A.T).all() and (B == B.T).all())
        now = torch.from_numpy(P)
        left, right = torch.from_numpy(A), torch.from_numpy(B)
        F = left @ now @ right.mT
        F = 2 * F if symmetric else F + left.mT @ now @ right
        made, converged = frank_wolfe(A, B, L, symmetric, P, F.numpy(), self.max_iterations, self.tolerance)
        return int(made.max()), bool(converged.all())


def _starts(count: int, n: int, random: np.random.Generator, barycenter: bool) -> Doubles:
    """Doubly stochastic matrices (count, n, n), half-way between the barycenter and random ones."""
    K = random.random((count, n, n))
    for _ in range(BALANCING):
        K /= K.sum(1, keepdims=True)
        K /= K.sum(2, keepdims=True)
    P = (K + 1 / n) / 2
    if barycenter:
        P[0] = 1 / n
    return P
