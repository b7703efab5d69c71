"""Jonker–Volgenant: the exact linear assignment with its dual potentials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from solvers.kernels.assignment import compile_assignment, solve_assignment
from solvers.problems import AssignmentProblem
from solvers.solution import Status
from solvers.solver import Answer, Clock, Solver

SLICE = 4_000_000  # cost entries between two looks at the clock, when there is a time limit


@dataclass(frozen=True, kw_only=True)
class JonkerVolgenant(Solver):
    """Minimises Σ_i C[i, p(i)] exactly by shortest augmenting paths, square or rectangular, batched over the cores.

    The potentials are feasible by construction (u_i + v_j ≤ C_ij to rounding) and sum to the optimal value; the side
    with more members has potentials ≤ 0. The arithmetic is float64 whatever the input. The optimal value is
    differentiable: ∂V/∂C is the permutation matrix.
    """

    name: ClassVar = "jonker_volgenant"
    problem_types: ClassVar = (AssignmentProblem,)
    exact: ClassVar = True
    gives_bound: ClassVar = True
    differentiable: ClassVar = ("envelope",)
    batched: ClassVar = True
    reference: ClassVar = "Jonker and Volgenant, A Shortest Augmenting Path Algorithm for Assignment Problems, 1987"

    def _prepare(self, problem: AssignmentProblem) -> NDArray[np.floating]:
        n, m = problem.cost.shape[-2:]
        cost = np.ascontiguousarray(problem.cost.detach().numpy().reshape(-1, n, m))
        compile_assignment(cost)
        return cost

    def _run(self, problem: AssignmentProblem, prepared: NDArray[np.floating], clock: Clock) -> Answer:
        cost = prepared
        batch, n, m = cost.shape
        size = batch if clock.time_limit is None else max(1, SLICE // (n * m))
        parts, done = [], 0
        while done < batch and not clock.expired:
            parts.append(solve_assignment(cost[done : done + size]))
            done = min(done + size, batch)
        if done < batch:
            parts.append(_first_come(cost[done:]))
        p, u, v = parts[0] if len(parts) == 1 else (np.concatenate(x) for x in zip(*parts, strict=True))
        shape = problem.batch_shape
        return Answer(
            permutation=torch.from_numpy(p).reshape(*shape, n),
            potentials=(
                torch.from_numpy(u).to(problem.dtype).reshape(*shape, n),
                torch.from_numpy(v).to(problem.dtype).reshape(*shape, m),
            ),
            statuses=(Status.OPTIMAL,) * done + (Status.TIME_LIMIT,) * (batch - done),
            message="" if done == batch else "the unfinished problems have the matching i → i",
        )


def _first_come(cost: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """The matching i → i, with potentials that prove what little can be proven in one pass."""
    batch, n, m = cost.shape
    p = np.where(np.arange(n) < m, np.arange(n), -1)
    u, v = np.zeros((batch, n)), np.zeros((batch, m))
    if n <= m:
        u[:] = cost.min(2)
    else:
        v[:] = cost.min(1)
    return np.tile(p, (batch, 1)), u, v
