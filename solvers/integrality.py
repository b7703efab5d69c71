"""Bounds of quadratic assignments with integer costs, rounded up to a value that a permutation can have."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from solvers.problems import QuadraticAssignmentProblem

EXACT = 2.0**40  # integers up to here are summed without rounding in float64
SLACK = 1e-9  # of the steps from the base to the bound may be rounding


class Lattice(NamedTuple):
    """The values that permutations can have: ``base`` plus multiples of ``step``; any at all where the step is None."""

    base: float
    step: int | None

    def round_up(self, bound: float) -> float:
        """The least of them at or above a lower bound, but for rounding; never below the bound itself."""
        if self.step is None or not math.isfinite(bound):
            return bound
        if self.step == 0:
            return max(self.base, bound)
        steps = (bound - self.base) / self.step
        return max(bound, self.base + self.step * math.ceil(steps - SLACK * max(1.0, abs(steps))))


def lattice(A: NDArray, B: NDArray, L: NDArray, constant: float) -> Lattice:
    """The lattice of one problem, A, B and L (n, n).

    Where all costs are integers, its base is c + n M₀₀ with M_ij = L_ij + A_ii B_jj, and its step the greatest common
    divisor of s gcd(A) gcd(B), taken off the diagonals, and of the differences of M; s is 2 when A and B are symmetric
    (each pair counts twice) and 1 otherwise.
    """
    n = len(A)
    if not all(np.array_equal(x, np.rint(x)) and np.abs(x).max() < EXACT / n for x in (A, B, L, np.array(constant))):
        return Lattice(0.0, None)
    M = L + np.outer(np.diag(A), np.diag(B))
    if np.abs(M).max() >= EXACT:
        return Lattice(0.0, None)
    off = ~np.eye(n, dtype=bool)
    pairs = math.gcd(*A[off].astype(int).tolist()) * math.gcd(*B[off].astype(int).tolist())
    twice = 1 + (np.array_equal(A, A.T) and np.array_equal(B, B.T))
    step = math.gcd(twice * pairs, *(M - M[0, 0]).ravel().astype(int).tolist())
    return Lattice(constant + n * float(M[0, 0]), step)


def round_up(problem: QuadraticAssignmentProblem, bound: Tensor) -> Tensor:
    """``Lattice.round_up`` of every bound ``(*batch,)`` of a batch of problems; float64."""
    raised = bound.clone()
    for k in np.ndindex(*problem.batch_shape):
        A, B, L = (x[k].detach().double().cpu().numpy() for x in (problem.A, problem.B, problem.linear))
        raised[k] = lattice(A, B, L, float(problem.constant[k])).round_up(float(bound[k]))
    return raised
