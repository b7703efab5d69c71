"""Bounds of quadratic assignments with integer costs, rounded up to a value that a permutation can have."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from solvers.problems import QuadraticAssignmentProblem

EXACT = 2.0**40  # integers up to here are summed without rounding in float64
SLACK = 1e-9  # of the steps from the base to the bound may be rounding


def round_up(problem: QuadraticAssignmentProblem, bound: Tensor) -> Tensor:
    """The least value at or above a lower bound ``(*batch,)`` that a permutation can have; float64.

    Where all costs are integers, every value is c + n M₀₀ plus a multiple of the greatest common divisor of
    s gcd(A) gcd(B), taken off the diagonals, and of the differences of M_ij = L_ij + A_ii B_jj; s is 2 when A and B are
    symmetric (each pair counts twice) and 1 otherwise. Bounds of problems with other costs are returned as they are.
    """
    raised = bound.clone()
    for k in np.ndindex(*problem.batch_shape):
        parts = (problem.A, problem.B, problem.linear, problem.constant)
        lattice = _lattice(*(x[k].detach().double().cpu().numpy() for x in parts))
        if lattice is None or not bool(torch.isfinite(bound[k])):
            continue
        base, step = lattice
        if step == 0:
            raised[k] = base
        else:
            steps = (float(bound[k]) - base) / step
            raised[k] = base + step * math.ceil(steps - SLACK * max(1.0, abs(steps)))
    return torch.maximum(raised, bound)


def _lattice(A: np.ndarray, B: np.ndarray, L: np.ndarray, c: np.ndarray) -> tuple[float, int] | None:
    """(base, step): every permutation's value is base plus a multiple of step. None where costs are no integers."""
    n = len(A)
    if not all(np.array_equal(x, np.rint(x)) and np.abs(x).max() < EXACT / n for x in (A, B, L, c)):
        return None
    M = L + np.outer(np.diag(A), np.diag(B))
    if np.abs(M).max() >= EXACT:
        return None
    off = ~np.eye(n, dtype=bool)
    pairs = math.gcd(*A[off].astype(int).tolist()) * math.gcd(*B[off].astype(int).tolist())
    twice = 1 + (np.array_equal(A, A.T) and np.array_equal(B, B.T))
    step = math.gcd(twice * pairs, *(M - M[0, 0]).ravel().astype(int).tolist())
    return float(c) + n * float(M[0, 0]), step
