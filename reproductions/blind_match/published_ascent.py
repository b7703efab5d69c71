"""The rows of Tables 4 and 5: Hahn and Grant's dual ascent, dense and factorised, with one assignment solver each.

All of them are compiled here, so that a row differs from the one above it in its algorithm alone. A sweep assigns the
leaders, whose optimal duals are what the bound gains; spreads what is left of them over their submatrices; and visits
the choices (i, j) by increasing leader. It ends when four sweeps in a row gain nothing, or the bound meets the value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reproductions.blind_match.ablation import Run, Stopped
from solvers import QuadraticAssignmentProblem, solve
from solvers.dual_bound import Matrices, matrices_of
from solvers.kernels.dual_ascent import new_dual
from solvers.kernels.exchange import lay_out
from solvers.kernels.published_ascent import (
    AUCTION,
    HUNGARIAN,
    JONKER_VOLGENANT,
    Best,
    assign,
    consider,
    dense_costs,
    descend_by_first,
    new_assignment_scratch,
    spread_leaders,
    visit_some,
    visit_some_dense,
)
from solvers.local_search import random_permutations
from solvers.solver import Clock
from solvers.verify import recompute

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

TOLERANCE = 1e-6  # ε of the stall rule, and of the certificate
STALLS = 3  # sweeps in a row that may gain nothing
STARTS = 100  # of 2-opt
EPS_AUCTION, DECAY = 0.1, 0.9  # of the auction in the first sweep, and from sweep to sweep
WORK = 200_000  # entries of submatrices between two looks at the clock
ROUNDS = 1000  # of bids between two looks at the clock
ROUNDING = 1e-12  # of the value: changes of 2-opt below it are none


@dataclass(frozen=True)
class Variant:
    """One row of Tables 4 and 5.

    Attributes:
        dense: all C_ij,kl are stored, 8 n⁴ bytes (0.8 GB at n = 100; half that as released, in float32), and the
            assignment problems have size n: the entries of a submatrix that no permutation can pay are not forbidden.
        method: which duals move: those of the plain Hungarian method, which starts from zero and adds one row after
            the other; of a forward/reverse auction with ε = 0.1 × 0.9ˢ in sweep s; or of Jonker and Volgenant's
            reductions before the augmenting paths. The first and the last are both optimal, but not the same, so that
            their bounds differ. Those of the auction are feasible, and their sum up to n ε below the optimum: its
            bound is true, but a sweep may lose some of it, and the sweeps that do count as stalled.
        lap_solutions: every assignment is tried as a permutation, not the last one of the leaders alone.
        heuristic: in the first sweep FAQ from the barycenter, and 2-opt (first improvement) from 100 permutations.
            The released code repeats FAQ 100 times too, to the same end; its start is no random one.
    """

    dense: bool = False
    method: int = JONKER_VOLGENANT
    lap_solutions: bool = False
    heuristic: bool = False


VARIANTS = {
    "Hahn–Grant": Variant(dense=True, method=HUNGARIAN),
    "+ factorized": Variant(method=HUNGARIAN),
    "+ auction": Variant(method=AUCTION),
    "+ Jonker–Volgenant": Variant(),
    "+ LAP solutions": Variant(lap_solutions=True),
    "+ primal heuristic": Variant(lap_solutions=True, heuristic=True),
}
"""By their published names; each has what those above it have, but for the assignment solver, which is replaced."""


def run_published(problem: QuadraticAssignmentProblem, variant: Variant, time_limit: float, seed: int) -> Run:
    """Run one variant until it ends by itself or time is up, which is looked at every few assignment problems.

    The value is the problem's own; the bound is that of the last assignment of the leaders, and where there are U and V
    no more than the referee computes from them in float64.

    Args:
        problem: a single one, of two members at least.
        variant: one of ``VARIANTS``.
        time_limit: seconds.
        seed: of the starts of 2-opt.

    Raises:
        ValueError: a batch of problems, a single member, or a time limit that is not positive.
    """
    if problem.batch_shape or problem.A.shape[-1] < 2:
        raise ValueError(f"the ascent takes one problem of at least 2 members, not A of shape {tuple(problem.A.shape)}")
    if not time_limit > 0:
        raise ValueError(f"the time limit must be positive, not {time_limit!r}")
    _compile(variant)
    return _run(problem, variant, Clock(time_limit), seed)


@cache
def _compile(variant: Variant) -> None:
    """Two members are enough for a run that needs every kernel of the variant."""
    M = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    _run(QuadraticAssignmentProblem(M, M), variant, Clock(None), 0)


def _run(problem: QuadraticAssignmentProblem, variant: Variant, clock: Clock, seed: int) -> Run:
    ascent = (_Dense if variant.dense else _Factorised)(problem, variant)
    n, sweeps, stalls = problem.A.shape[-1], 0, 0
    stopped: Stopped | None = None
    history: list[tuple[float, float, float]] = []
    while stopped is None:
        gain = ascent.assign_leaders(clock)
        if variant.heuristic and sweeps == 0:
            ascent.look_for_permutations(clock, seed)
        if clock.expired:
            stopped = "time"
            break
        ascent.reduce_leaders(gain)
        bound = ascent.bound if ascent.swept else -np.inf
        history.append((clock.elapsed, ascent.value, bound))
        if sweeps > 0 and _proves(ascent.value, bound):
            stopped = "proven"
            break
        order, turn = ascent.spread(), 0
        while turn < n * n and not clock.expired:
            turn = ascent.visit(order, turn)
        if turn < n * n:
            stopped = "time"
            break
        sweeps += 1
        stalls = stalls + 1 if gain <= ascent.least_gain else 0  # equal: a bound of zero may stall too
        if stalls > STALLS:
            stopped = "stalled"
    permutation = ascent.last_permutation()
    seconds = clock.elapsed
    value, bound = float(problem.objective(permutation)), ascent.proven(permutation)
    if _proves(value, bound):
        stopped = "proven"
    return Run(permutation, value, bound, seconds, sweeps, stopped, [*history, (seconds, value, bound)])


def _proves(value: float, bound: float) -> bool:
    return value - bound < max(TOLERANCE, TOLERANCE * abs(value))


class _Ascent(ABC):
    """What both forms have in common: the bound, the best permutation, and the assignment of the leaders."""

    def __init__(self, matrices: Matrices, constant: float, variant: Variant) -> None:
        self.matrices, self.costs, self.constant, self.bound, self.variant = (
            matrices,
            lay_out(*matrices),
            constant,
            constant,
            variant,
        )
        n = len(matrices[0])
        self.n, self.eps, self.at_once = n, EPS_AUCTION, max(1, WORK // n**2)
        self.best = Best(np.arange(n), np.full(1, np.inf))
        self.swept = True  # whether all costs are non-negative, so that what has been gained is a bound
        self.leaders = matrices[2] + np.outer(np.diag(matrices[0]), np.diag(matrices[1]))
        self.scratch = new_assignment_scratch(n)

    @property
    def least_gain(self) -> float:
        """What a sweep must gain not to count as stalled."""
        return TOLERANCE * min(1.0, abs(self.bound), abs(self.value))

    @property
    def value(self) -> float:
        return float(self.best.value[0]) + self.constant

    def assign_leaders(self, clock: Clock) -> float:
        """Solve the assignment problem of the leaders, unless time runs out; what the bound gains."""
        self.scratch.cost[:] = self.leaders
        while not assign(self.variant.method, self.eps, ROUNDS, self.scratch) and not clock.expired:
            pass
        if clock.expired:
            return 0.0
        if self.variant.lap_solutions:
            consider(self.costs, self.scratch.p, self.best)
        return float(self.scratch.u.sum() + self.scratch.v.sum())

    def reduce_leaders(self, gain: float) -> None:
        """Move the duals of the leaders to the bound."""
        self.bound += gain
        self.leaders -= self.scratch.u[:, None] + self.scratch.v

    def order(self) -> Integers:
        return np.argsort(self.leaders.ravel(), kind="stable")

    def look_for_permutations(self, clock: Clock, seed: int) -> None:
        """FAQ, then 2-opt from the best permutation and 99 random ones."""
        A, B, L = self.matrices
        first = self.best.p.copy()
        found = solve(QuadraticAssignmentProblem(A, B, L), "faq").permutation
        assert found is not None
        consider(self.costs, found.numpy(), self.best)
        threshold = ROUNDING * (1 + float(np.abs(A).sum() * np.abs(B).max()))
        for start in (first, *random_permutations(STARTS - 1, self.n, seed)):
            if clock.expired:
                return
            descend_by_first(self.costs, start, threshold, self.best)

    def last_permutation(self) -> Tensor:
        """The best permutation once the last leaders are assigned too, by the Hungarian method."""
        self.scratch.cost[:] = self.leaders
        assign(HUNGARIAN, 0.0, 1, self.scratch)
        consider(self.costs, self.scratch.p, self.best)
        return torch.from_numpy(self.best.p)

    @abstractmethod
    def spread(self) -> Integers:
        """Give the leaders to their submatrices; the choices by increasing leader."""

    @abstractmethod
    def visit(self, order: Integers, turn: int) -> int:
        """Some visits from this one on; which is the next."""

    @abstractmethod
    def proven(self, permutation: Tensor) -> float:
        """The bound, as far as it is proven."""


class _Dense(_Ascent):
    """All C_ij,kl; the leaders are the C_ij,ij. Before a whole sweep there is no bound: costs are negative."""

    def __init__(self, problem: QuadraticAssignmentProblem, variant: Variant) -> None:
        (A, B, L), constant = matrices_of(problem)[0], float(problem.constant)
        super().__init__((A, B, L), constant, variant)
        self.C, self.swept = dense_costs(A, B), False
        self.own = np.einsum("ijij->ij", self.C)  # a view
        self.own += L

    @property
    def least_gain(self) -> float:
        return TOLERANCE * abs(self.bound) if self.swept else 0.0

    def assign_leaders(self, clock: Clock) -> float:
        self.leaders[:] = self.own
        return super().assign_leaders(clock)

    def spread(self) -> Integers:
        spread_leaders(self.C, self.leaders)
        return self.order()

    def visit(self, order: Integers, turn: int) -> int:
        end = min(len(order), turn + self.at_once)
        visit_some_dense(self.C, order, turn, end, self.scratch)
        if end == len(order):
            self.swept = True
        return end

    def last_permutation(self) -> Tensor:
        self.leaders[:] = self.own
        return super().last_permutation()

    def proven(self, permutation: Tensor) -> float:
        return self.bound if self.swept else -np.inf


class _Factorised(_Ascent):
    """U and V alone, on costs whose least entry is zero."""

    def __init__(self, problem: QuadraticAssignmentProblem, variant: Variant) -> None:
        (A, B, L), constant = matrices_of(problem)[0], float(problem.constant)
        n, a, b = len(A), float(A.min()), float(B.min())
        constant += b * A.sum() + a * B.sum() - a * b * n**2
        super().__init__((A - a, B - b, L), float(constant), variant)
        self.dual = new_dual(*self.matrices)
        self.leaders = self.dual.leaders
        self.submatrix = new_assignment_scratch(n - 1)
        self.proof = (np.zeros_like(self.dual.U), np.zeros_like(self.dual.V))

    def reduce_leaders(self, gain: float) -> None:
        super().reduce_leaders(gain)
        for kept, now in zip(self.proof, (self.dual.U, self.dual.V), strict=True):
            np.copyto(kept, now)

    def spread(self) -> Integers:
        members = np.arange(self.n)
        self.dual.U[:] -= self.leaders / (self.n - 1)
        self.dual.U[members, members] = 0.0  # there is no pair of i with itself
        return self.order()

    def visit(self, order: Integers, turn: int) -> int:
        end, variant = min(len(order), turn + self.at_once), self.variant
        arguments = (variant.method, self.eps, ROUNDS, self.submatrix, self.costs, variant.lap_solutions, self.best)
        next_turn = int(visit_some(self.dual, order, turn, end, *arguments))
        if next_turn == len(order):
            self.eps *= DECAY
        return next_turn

    def proven(self, permutation: Tensor) -> float:
        shifted = QuadraticAssignmentProblem(*self.matrices, self.constant)
        U, V = (torch.from_numpy(x) for x in self.proof)
        found = recompute(shifted, permutation, (U, V)).lower_bound
        assert found is not None
        return min(self.bound, float(found))
