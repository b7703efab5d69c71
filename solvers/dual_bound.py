"""A bound of one quadratic assignment on its way up: the dual variables of the level-1 RLT, moved by either ascent."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from solvers.kernels.assignment import solve_assignment
from solvers.kernels.dual_ascent import Dual, exact_sweep, finish, new_dual
from solvers.kernels.smoothed_dual import Smoothed, new_smoothed, smoothed_sweep, smoothed_sweep_in_parallel
from solvers.problems import QuadraticAssignmentProblem

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]
Matrices = tuple[Doubles, Doubles, Doubles]  # A, B, L

WARM, COLD = 0.3, 5e-4  # temperatures ε, in units of the spread of a pair's cost: the first and the last
FEW, HOT = 800, 64.0  # sweeps below which it starts warmer than WARM, to get about in fewer of them; at most HOT
PARALLEL_SIZE = 40  # members from which on threads share the choices of a row


class Settled(NamedTuple):
    """A bound (without the problem's constant), what proves it, and the permutations of the assignments on the way."""

    bound: float
    U: Doubles
    V: Doubles
    leaders: Doubles  # (n, n), what each choice adds to the bound
    permutations: Integers  # (count, n)


class SmoothedAscent:
    """Coordinate ascent on the smoothed dual (``kernels.smoothed_dual``), in units of the spread of a pair's cost."""

    def __init__(self, A: Doubles, B: Doubles, L: Doubles, seed: int = 0) -> None:
        self.problem = (A, B, L)
        self.centred = centred(self.problem)
        (A, B, L), self.scale = self.centred.matrices, (spread(A), spread(B))
        unit = self.scale[0] * self.scale[1]
        self.state = new_smoothed(A / self.scale[0], B / self.scale[1], L / unit)
        self.random = np.random.default_rng(abs(seed))

    def sweep(self, eps: float) -> None:
        """One sweep at temperature ``eps``, over the rows in a new random order."""
        n = len(self.problem[0])
        order, threads = self.random.permutation(n), numba.get_num_threads()
        if threads > 1 and n >= PARALLEL_SIZE:
            smoothed_sweep_in_parallel(self.state, order, eps, threads)
        else:
            smoothed_sweep(self.state, order, eps)

    def settled(self) -> Settled:
        """The bound that the ascent has come to, in float64; the ascent itself stays where it is."""
        return settled(self.problem, self.state, self.scale[0] * self.scale[1], self.centred)


def warmest(sweeps: float) -> float:
    """The temperature that so many sweeps start from."""
    return min(HOT, WARM * max(1.0, FEW / max(1.0, sweeps)) ** 2)


class Centred(NamedTuple):
    """A problem whose A and B have lost their means off the diagonal, a and b; and by how much every value has fallen.

    Large means drown the differences that permutations make: the smoothed ascent then takes many times the sweeps.
    """

    matrices: Matrices
    a: float
    b: float
    constant: float

    def add_means(self, U: Doubles, V: Doubles) -> None:
        """Make dual variables of the centred problem those of the original, in place: the same residuals."""
        A, B, _ = self.matrices
        n = len(A)
        off = 1 - np.eye(n)
        U += ((self.b / 2 * (A + A.T) + self.a * self.b) * off)[:, :, None]
        V += (self.a / 2 * (B + B.T) * off)[:, None, :]


def centred(problem: Matrices) -> Centred:
    """The same problem without the means of A and B off their diagonals; integers stay integers."""
    A, B, L = problem
    n = len(A)
    if n < 2:
        return Centred(problem, 0.0, 0.0, 0.0)
    off = ~np.eye(n, dtype=bool)
    a, b = ((np.rint if (M == np.rint(M)).all() else np.float64)(M[off].mean()) for M in (A, B))
    constant = a * B[off].sum() + b * A[off].sum() - a * b * n * (n - 1)
    return Centred((np.where(off, A - a, A), np.where(off, B - b, B), L), float(a), float(b), float(constant))


def settled(problem: Matrices, state: Smoothed, unit: float, centre: Centred | None = None) -> Settled:
    """What a smoothed state proves of its problem, whose costs are ``unit`` times the state's.

    Args:
        problem: its matrices.
        state: where the ascent stands.
        unit: of the state's costs.
        centre: the problem without its means, where that is what the state is of.
    """
    n = len(problem[0])
    U, V = (np.multiply(x[..., :n], unit, dtype=np.float64) for x in (state.U, state.V))
    if centre is not None:
        centre.add_means(U, V)
    dual = new_dual(*problem, np.ascontiguousarray(U), np.ascontiguousarray(V))
    p = np.empty((1, n), np.int64)
    finish(dual, p[0])
    return Settled(float(dual.bound[0]), dual.U, dual.V, dual.leaders, p)


class ExactAscent:
    """Hahn and Grant's ascent, choices visited by increasing leader (``kernels.dual_ascent``)."""

    def __init__(self, A: Doubles, B: Doubles, L: Doubles) -> None:
        self.dual: Dual = new_dual(A, B, L)
        self.permutations = np.empty((len(A) ** 2 + 1, len(A)), np.int64)

    def sweep(self) -> None:
        exact_sweep(self.dual, self.permutations)

    def settled(self) -> Settled:
        """The bound after the last sweep, with what its leaders still hold."""
        _, u, v = solve_assignment(self.dual.leaders[None])
        bound = float(self.dual.bound[0] + u.sum() + v.sum())
        return Settled(bound, self.dual.U, self.dual.V, self.dual.leaders - u[0][:, None] - v[0], self.permutations)


def spread(M: Doubles) -> float:
    """The standard deviation off the diagonal, or 1 where there is none."""
    return deviation(M[~np.eye(len(M), dtype=bool)])


def deviation(entries: Doubles) -> float:
    """The standard deviation, or 1 where there is none."""
    found = float(entries.std()) if len(entries) else 0.0
    return found if np.isfinite(found) and found > 0 else 1.0


def matrices_of(problem: QuadraticAssignmentProblem) -> list[Matrices]:
    """A, B and L of every problem of the batch, float64."""
    n = problem.A.shape[-1]
    parts = (problem.A, problem.B, problem.linear)
    arrays = (np.ascontiguousarray(x.detach().double().numpy()).reshape(-1, n, n) for x in parts)
    return list(zip(*arrays, strict=True))
