"""Brute force: every matching is tried, so the answer is beyond doubt; for sizes up to 10."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from solvers.kernels.enumeration import enumerate_assignments, enumerate_permutations
from solvers.problems import AssignmentProblem, QuadraticAssignmentProblem
from solvers.solution import Status
from solvers.solver import Answer, Clock, Solver

Arrays = tuple[NDArray[np.float64], ...]


@dataclass(frozen=True, kw_only=True)
class BruteForce(Solver):
    """Minimises an assignment or a quadratic assignment by enumerating all n! matchings, n ≤ 10.

    The search is depth first with the objective updated incrementally, in float64, all problems of a batch side by
    side. The clock is looked at n times (after every choice of the first row's partner); the best matching until
    then is returned.
    """

    name: ClassVar = "brute_force"
    problem_types: ClassVar = (AssignmentProblem, QuadraticAssignmentProblem)
    exact: ClassVar = True
    gives_bound: ClassVar = True
    batched: ClassVar = True
    max_size: ClassVar = 10
    reference: ClassVar = "exhaustive enumeration"

    def _prepare(self, problem: AssignmentProblem | QuadraticAssignmentProblem) -> Arrays:
        if isinstance(problem, AssignmentProblem):
            C = problem.cost if problem.cost.shape[-2] <= problem.cost.shape[-1] else problem.cost.mT
            arrays: Arrays = (_layout(C),)
        else:
            arrays = (_layout(problem.A), _layout(problem.B), _layout(problem.linear))
        n = arrays[0].shape[1]
        nothing = tuple(x[:0] for x in arrays)
        _enumerate(nothing, 0, np.empty(0), np.empty((0, n), np.int64))  # compiles, or finds it compiled
        return arrays

    def _run(self, problem: AssignmentProblem | QuadraticAssignmentProblem, prepared: Arrays, clock: Clock) -> Answer:
        batch, n, m = prepared[0].shape
        best, p = np.full(batch, np.inf), np.tile(np.arange(n), (batch, 1))
        tried = 0
        while tried < m and not clock.expired:
            _enumerate(prepared, tried, best, p)
            tried += 1
        if isinstance(problem, AssignmentProblem) and problem.cost.shape[-2] > problem.cost.shape[-1]:
            p = _inverted(p, m)
        permutation = torch.from_numpy(p).reshape(*problem.batch_shape, -1)
        done = tried == m
        return Answer(
            permutation=permutation,
            lower_bound=problem.detach().objective(permutation) if done else None,
            statuses=Status.OPTIMAL if done else Status.TIME_LIMIT,
            message="" if done else f"{tried} of {m} partners of the first row were tried",
        )


def _enumerate(arrays: Arrays, first: int, best: NDArray[np.float64], p: NDArray[np.int64]) -> None:
    if len(arrays) == 1:
        enumerate_assignments(arrays[0], first, best, p)
    else:
        enumerate_permutations(*arrays, first, best, p)


def _layout(M: torch.Tensor) -> NDArray[np.float64]:
    return np.ascontiguousarray(M.detach().numpy().reshape(-1, *M.shape[-2:]), dtype=np.float64)


def _inverted(p: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The matching seen from the other side, of ``size`` members: −1 where it has no partner."""
    q = np.full((len(p), size), -1)
    np.put_along_axis(q, p, np.arange(p.shape[1])[None, :], axis=1)
    return q
