"""Hahn–Grant: lower bounds of the quadratic assignment from its level-1 RLT dual, with permutations on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from solvers.dual_bound import COLD, WARM, ExactAscent, Matrices, Settled, SmoothedAscent, warmest
from solvers.integrality import lattice
from solvers.kernels.exchange import lay_out, objectives
from solvers.kernels.search import DESCENT, TABU, new_searches
from solvers.local_search import prepare, random_permutations, stretches
from solvers.problems import QuadraticAssignmentProblem, default_tolerance
from solvers.solution import Progress, Status
from solvers.solver import Answer, Clock, Solver
from solvers.verify import Facts

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

COOLING = 0.9  # of the sweeps, or of the time, until it is cold
EVERY = 1.3  # a check of bound and permutation comes after so many times the sweeps of the last one
CANDIDATES = 8  # permutations of a sweep that are improved by exchanges
STARTS, MOVES = 4, 500  # of the search for a first permutation; moves a start and member
SHARE = 0.1  # of the time limit that this search may take
STALLS = 3  # sweeps of the published schedule that may bring nothing


@dataclass(frozen=True, kw_only=True)
class HahnGrant(Solver):
    """Bounds a quadratic assignment from below by dual ascent on its level-1 RLT, and keeps the best permutation met.

    The dual variables reprice every choice i → j against the other rows and columns. What they prove is computed again
    in float64 by the referee, and rounded up where costs are integers; where it meets the value, the answer is OPTIMAL.
    Memory is O(n³), a sweep O(n⁴).

    * ``schedule="smoothed"``: coordinate ascent on the smoothed dual at falling temperature, made a bound by the minima
      of the residuals. It comes close to the optimum of the relaxation, where the published order stalls below.
    * ``schedule="published"``: Hahn and Grant's own in its factorised form: leaders spread over their rows, choices
      visited by increasing leader, until four sweeps in a row bring nothing.

    Attributes:
        max_iterations: sweeps over all n² choices.
        tolerance: the ascent has converged when what lies between two checks raises the bound by less than this share
            (of four sweeps in a row, each, in the published schedule).
        search: whether to look for permutations by pair exchanges too; if not, they are those of the assignments.
    """

    name: ClassVar = "hahn_grant"
    problem_types: ClassVar = (QuadraticAssignmentProblem,)
    gives_bound: ClassVar = True
    batched: ClassVar = True
    anytime: ClassVar = True
    reference: ClassVar = "Hahn and Grant, Lower Bounds for the QAP Based Upon a Dual Formulation, 1998"

    schedule: Literal["smoothed", "published"] = "smoothed"
    max_iterations: int = 2000
    tolerance: float = 1e-6
    search: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule not in ("smoothed", "published"):
            raise ValueError(f"schedule must be 'smoothed' or 'published', not {self.schedule!r}")
        self._require_counts("max_iterations")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must be a number ≥ 0, not {self.tolerance!r}")

    def _prepare(self, problem: QuadraticAssignmentProblem) -> list[Matrices]:
        square = (np.zeros((2, 2)),) * 3
        objectives(lay_out(*square), np.zeros((0, 2), np.int64))
        for ascent in (SmoothedAscent(*square), ExactAscent(*square)):  # compiles, or finds it compiled
            ascent.sweep(*([WARM] if isinstance(ascent, SmoothedAscent) else []))
            ascent.settled()
        return prepare(problem)

    def _run(self, problem: QuadraticAssignmentProblem, prepared: list[Matrices], clock: Clock) -> Answer:
        n, batch = problem.A.shape[-1], problem.batch_shape
        constants = problem.constant.detach().double().reshape(-1).tolist()
        runs = []
        for k, matrices in enumerate(prepared):
            share = clock.remaining / (len(prepared) - k)
            part = Clock(share if np.isfinite(share) else None)
            run = _Ascent(self, matrices, constants[k], problem.dtype, part, clock)
            (run.smoothed if self.schedule == "smoothed" else run.published)()
            runs.append(run)
        U, V = (
            torch.from_numpy(np.stack(x)).to(problem.dtype).reshape(*batch, n, n, n)
            for x in zip(*(run.duals for run in runs), strict=True)
        )
        return Answer(
            permutation=torch.from_numpy(np.stack([r.p for r in runs])).reshape(*batch, n),
            potentials=(U, V),
            iterations=torch.tensor([r.sweeps for r in runs]).reshape(batch),
            statuses=[r.status for r in runs],
            history=tuple(runs[0].history) if not batch else (),
        )

    def _settled(self, problem: QuadraticAssignmentProblem, answer: Answer, facts: Facts) -> Answer:
        assert facts.lower_bound is not None
        assert isinstance(answer.statuses, list)
        proven = proves(facts.value, facts.lower_bound, problem.dtype).reshape(-1).tolist()
        for k, status in enumerate(answer.statuses):
            if proven[k] or status is Status.OPTIMAL:  # rounding the duals to the problem's dtype may cost the proof
                answer.statuses[k] = Status.OPTIMAL if proven[k] else Status.CONVERGED
        return answer


class _Ascent:
    """The ascent on one problem: its best permutation and bound so far."""

    def __init__(
        self, solver: HahnGrant, matrices: Matrices, constant: float, dtype: torch.dtype, clock: Clock, whole: Clock
    ) -> None:
        self.solver, self.matrices, self.dtype, self.clock, self.whole = solver, matrices, dtype, clock, whole
        self.constant, self.lattice = constant, lattice(*matrices, constant)
        n, self.costs = len(matrices[0]), lay_out(*matrices)
        self.p, self.value = np.arange(n), np.inf
        self.duals, self.bound = tuple(np.zeros((2, n, n, n))), -np.inf
        self.sweeps, self.status, self.history = 0, Status.ITERATION_LIMIT, list[Progress]()
        if solver.search:
            limit = SHARE * clock.time_limit if clock.time_limit is not None else np.inf
            self.consider(random_permutations(STARTS, n, solver.seed), MOVES * n, limit)

    @property
    def expired(self) -> bool:
        return self.clock.expired or self.whole.expired

    def consider(self, permutations: Integers, moves: int, until: float = np.inf) -> None:
        """Keep the best of these permutations, and of what a tabu search of so many moves finds from each."""
        searches = new_searches(permutations, np.full(len(permutations), TABU if moves else DESCENT), self.solver.seed)
        for value in stretches(self.matrices, searches, moves, self.clock, until):
            if value < self.value:
                self.p, self.value = searches.best[searches.value[:, 1].argmin()].copy(), value

    def check(self, settled: Settled) -> bool:
        """Take note of a bound and its permutations; whether it meets the value."""
        if settled.bound > self.bound:
            self.bound, self.duals = settled.bound, (settled.U.copy(), settled.V.copy())
        order = np.argsort(objectives(self.costs, settled.permutations), kind="stable")
        self.consider(settled.permutations[order[:CANDIDATES]], 0)
        if self.solver.search:
            self.consider(settled.permutations[:1], len(self.p))
        value = torch.tensor(self.value + self.constant, dtype=torch.float64)
        bound = torch.tensor(self.lattice.round_up(self.bound + self.constant), dtype=torch.float64)
        self.history.append(Progress(self.whole.elapsed, value, bound))
        if proves(value, bound, self.dtype):
            self.status = Status.OPTIMAL
        return self.status is Status.OPTIMAL

    def smoothed(self) -> None:
        """Sweeps at falling temperature, with a check every now and then."""
        ascent, limit, due = SmoothedAscent(*self.matrices, self.solver.seed), self.solver.max_iterations, 1
        began, sweeping, last = self.clock.elapsed, 0.0, -np.inf
        while self.sweeps < limit:
            if self.expired:
                self.status = Status.TIME_LIMIT
                break
            gone, expected = self.sweeps / limit, float(limit)
            if self.clock.time_limit is not None:
                whole = self.clock.time_limit - began
                gone = max(gone, (self.clock.elapsed - began) / whole)
                expected = min(expected, whole * self.sweeps / sweeping if self.sweeps else 0.0)
            warm = warmest(expected)
            eps = warm * (COLD / warm) ** min(1.0, gone / COOLING)
            before = self.clock.elapsed
            ascent.sweep(eps)
            sweeping += self.clock.elapsed - before
            self.sweeps += 1
            if self.sweeps >= due and not self.expired:
                due = int(EVERY * self.sweeps) + 8
                if self.check(ascent.settled()):
                    return
                if eps <= COLD * (1 + 1e-9) and self.bound - last <= self.solver.tolerance * abs(self.bound):
                    self.status = Status.CONVERGED
                    return
                last = self.bound
        if self.sweeps:
            self.check(ascent.settled())

    def published(self) -> None:
        """Sweeps until four in a row bring nothing."""
        ascent, stalls, tolerance = ExactAscent(*self.matrices), 0, self.solver.tolerance
        while self.sweeps < self.solver.max_iterations:
            if self.expired:
                self.status = Status.TIME_LIMIT
                return
            before = self.bound
            ascent.sweep()
            self.sweeps += 1
            if self.check(ascent.settled()):
                return
            gain = self.bound - before
            stalls = stalls + 1 if gain < min(tolerance, tolerance * abs(self.bound)) else 0
            if stalls > STALLS:
                self.status = Status.CONVERGED
                return


def proves(value: torch.Tensor, bound: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Whether bounds meet values to what the dtype resolves."""
    return value - bound <= default_tolerance(dtype) * value.abs()
