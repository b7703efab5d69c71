"""MPOpt: graph matching by messages between node pairs, with fused matchings on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from solvers.dual_bound import deviation, matrices_of
from solvers.graph_matching import GraphMatchingProblem
from solvers.hahn_grant import proves
from solvers.integrality import Lattice, lattice
from solvers.kernels.assignment import solve_assignment
from solvers.kernels.pairwise_dual import Model, collect, pull, residual, smoothed_sweeps
from solvers.kernels.pairwise_primal import attempt, energy, improved, new_candidates
from solvers.pairwise_model import of_graph_matching, of_quadratic_assignment
from solvers.problems import QuadraticAssignmentProblem
from solvers.solution import Progress, Status
from solvers.solver import Answer, Clock, Solver

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

WARM, COLD = 0.3, 5e-4  # temperatures ε, in units of the spread of the tables: the first and the last
COOLING, SLOWEST = 0.6, 400  # it is cold after so many of the rounds, or of these
EVERY = 1.3  # a check of bound and matching comes after so many times the sweeps of the last one
STARTS = 4  # best matchings that are kept apart, each with its own attempts
STRETCH = 100_000  # entries of tables that sweeps read between two looks at the clock, about
ATTEMPTS = 8  # of a start between two looks at the clock
PATIENCE = 100  # rounds after the last better matching, and as many as before it, before the search is given up
ROUNDING = 1e-10  # of the costs of a node is no improvement


@dataclass(frozen=True, kw_only=True)
class MPOpt(Solver):
    """Bounds a graph matching by dual ascent on its pairs of nodes, and fuses matchings made of what the dual says.

    The scheme is that of libmpopt (Haller et al.): messages move costs between nodes and tables, a matching is grown
    greedily or by GRASP on the repriced costs, improved by exchanges and fused with the best. Here the messages follow
    the smoothed dual, one linear assignment prices all right nodes, and a fusion switches whole paths and cycles.
    Of a quadratic assignment it is the relaxation in the rows alone, below Hahn and Grant's; memory is O(n⁴).

    Attributes:
        max_iterations: rounds; each is a sweep over all nodes, until the bound has converged, and ``attempts``, until
            half of the rounds, and at least 100, have brought nothing better (with a time limit: until it is over).
        attempts: matchings that are constructed in a round.
        tolerance: the bound has converged when what lies between two checks raises it by less than this share.
    """

    name: ClassVar = "mpopt"
    problem_types: ClassVar = (GraphMatchingProblem, QuadraticAssignmentProblem)
    gives_bound: ClassVar = True
    batched: ClassVar = True
    anytime: ClassVar = True
    reference: ClassVar = "Hutschenreiter et al., Fusion Moves for Graph Matching, ICCV 2021"

    max_iterations: int = 500
    attempts: int = 4
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_counts("max_iterations", "attempts")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must be a number ≥ 0, not {self.tolerance!r}")

    def _prepare(self, problem: GraphMatchingProblem | QuadraticAssignmentProblem) -> list[Model]:
        tiny = of_quadratic_assignment((np.ones((2, 2)),) * 3)
        first = _Ascent(self, tiny, None, 0.0, Lattice(0.0, None), Clock(None), Clock(None))  # compiles
        first.sweep(np.array([WARM]), np.arange(2)[None])
        first.check()
        first.search(1)
        if isinstance(problem, GraphMatchingProblem):
            return [of_graph_matching(problem)]
        return [of_quadratic_assignment(matrices) for matrices in matrices_of(problem)]

    def _run(
        self, problem: GraphMatchingProblem | QuadraticAssignmentProblem, prepared: list[Model], clock: Clock
    ) -> Answer:
        batch, (n, m) = problem.batch_shape, problem.shape[-2:]
        constants = problem.constant.detach().double().reshape(-1).tolist()
        lattices = [Lattice(0.0, None)] * len(prepared)
        if isinstance(problem, QuadraticAssignmentProblem):
            lattices = [lattice(*x, c) for x, c in zip(matrices_of(problem), constants, strict=True)]
        every_one = isinstance(problem, QuadraticAssignmentProblem) or (bool(problem.complete) and n == m)
        runs = []
        for k, model in enumerate(prepared):
            share = clock.remaining / (len(prepared) - k)
            part = Clock(share if np.isfinite(share) else None)
            run = _Ascent(self, model, None if every_one else np.zeros(m), constants[k], lattices[k], part, clock)
            run.ascend(problem.dtype)
            runs.append(run)
        messages = [run.messages_of(problem) for run in runs]
        first, second = (torch.stack(x).reshape(*batch, *x[0].shape) for x in zip(*messages, strict=True))
        return Answer(
            permutation=torch.from_numpy(np.stack([run.matching() for run in runs])).reshape(*batch, n),
            potentials=(first, second),
            iterations=torch.tensor([run.rounds for run in runs]).reshape(batch),
            statuses=[run.status for run in runs],
            history=tuple(runs[0].history) if not batch else (),
        )


class _Ascent:
    """The ascent on one problem: its best matching and bound so far. ``free`` (m,) is zero where any may stay free."""

    def __init__(
        self,
        solver: MPOpt,
        model: Model,
        free: Doubles | None,
        constant: float,
        lattice: Lattice,
        clock: Clock,
        whole: Clock,
    ) -> None:
        self.solver, self.model, self.constant, self.lattice = solver, model, constant, lattice
        self.clock, self.whole = clock, whole
        self.m = model.label_of.shape[1] - 1
        self.free = np.full(self.m, np.inf) if free is None else free
        self.theta, self.messages = model.unary.copy(), np.zeros(int(model.message[-1]))
        self.unit = deviation(model.table[model.table < model.prohibitive])
        self.random = np.random.default_rng([abs(solver.seed), solver.seed < 0])
        n = len(model.first) - 1
        self.candidates = new_candidates(STARTS, n, solver.seed)
        self.best, self.value = np.full(n, -1), np.inf
        self.bound, self.proof = -np.inf, (np.zeros_like(self.messages), np.zeros(self.m))
        self.costs, self.least = model, ROUNDING * model.prohibitive / n
        self.rounds, self.found, self.status, self.history = 0, 0, Status.ITERATION_LIMIT, list[Progress]()

    @property
    def expired(self) -> bool:
        return self.clock.expired or self.whole.expired

    def ascend(self, dtype: torch.dtype) -> None:
        """Rounds at falling temperature, with a check every now and then, until proven or out of time or rounds."""
        n, limit, due = len(self.model.first) - 1, self.solver.max_iterations, 1
        last, settled, eps = -np.inf, False, WARM
        self.check()
        while self.rounds < limit:
            if self.expired:
                self.status = Status.TIME_LIMIT
                break
            cold = COOLING * min(limit, SLOWEST)
            if self.clock.time_limit is not None and self.rounds > 0:
                cold = COOLING * min(limit, self.clock.time_limit * self.rounds / self.clock.elapsed)
            made = min(due, limit) - self.rounds
            if not settled:
                made = min(made, 1 + STRETCH // max(1, len(self.model.table)))
                temperatures = WARM * (COLD / WARM) ** np.minimum(1.0, (self.rounds + np.arange(made)) / cold)
                self.sweep(temperatures, np.stack([self.random.permutation(n) for _ in range(made)]))
                eps = temperatures[-1]
            self.rounds += made
            if self.rounds >= due or self.rounds == limit:
                made, due = self.rounds, int(EVERY * self.rounds) + 8
                if not settled:
                    self.check()
                patience = max(self.found + PATIENCE, 2 * self.found)
                searching = self.rounds <= patience or self.clock.time_limit is not None  # the time is there to be used
                if searching:
                    self.search(max(1, (min(due, limit) - made) * self.solver.attempts // STARTS))
                if proves(*self.facts, dtype):
                    self.status = Status.OPTIMAL
                    break
                gain, last = self.bound - last, self.bound
                settled = settled or (eps <= COLD * (1 + 1e-9) and gain <= self.solver.tolerance * abs(self.bound))
                if settled and not searching:
                    self.status = Status.CONVERGED
                    break

    @property
    def facts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Value and bound."""
        bound = self.lattice.round_up(self.bound + self.constant)
        return torch.tensor(self.value + self.constant), torch.tensor(bound)

    def sweep(self, eps: Doubles, orders: Integers) -> None:
        """Sweeps at these temperatures (sweeps,), over the nodes in these orders (sweeps, n)."""
        smoothed_sweeps(self.model, orders, eps * self.unit, self.theta, self.messages, self.free)

    def check(self) -> None:
        """The bound from where the messages are, and the costs that they make."""
        messages = self.messages.copy()
        pull(self.model, messages)
        theta = collect(self.model, messages)
        bound, x, v = self._assigned(theta)
        if bound > self.bound:
            self.bound, self.proof = bound, (messages, v)
        self.costs = self.model._replace(unary=theta, table=residual(self.model, messages))
        self.consider(improved(self.costs, x, self.least))
        self.note()

    def search(self, attempts: int) -> None:
        """So many attempts of every start at a matching, on the costs of the last check."""
        while attempts > 0:
            some = min(attempts, ATTEMPTS)
            attempt(self.costs, self.candidates, some, self.least)
            attempts = 0 if self.expired else attempts - some
        for x in self.candidates.x[np.isfinite(self.candidates.value)]:
            self.consider(x)
        self.note()

    def note(self) -> None:
        """A point of the anytime curve."""
        value, bound = self.facts
        self.history.append(Progress(self.whole.elapsed, value, bound))

    def consider(self, x: Integers) -> None:
        """Keep these labels if they are better."""
        value = energy(self.model, x)
        if value < self.value:
            self.best, self.value, self.found = x.copy(), value, self.rounds

    def _assigned(self, theta: Doubles) -> tuple[float, Integers, Doubles]:
        """The optimal assignment of costs ``theta`` (labels,): its value, labels, and prices of the right nodes."""
        n, m, model = len(self.best), self.m, self.model
        nodes = np.repeat(np.arange(n), np.diff(model.first))
        columns = np.where(model.column < m, model.column, m + nodes)
        cost = np.full((n, m + n if (model.column == m).any() else m), model.prohibitive)
        cost[nodes, columns] = theta
        p, u, v = solve_assignment(cost[None])
        labels = model.label_of[np.arange(n), np.minimum(p[0], m)]
        return float(u.sum() + v.sum()), labels, v[0, :m]

    def matching(self) -> Integers:
        """The right node of every left node, −1 for none."""
        columns = self.model.column[self.model.first[:-1] + self.best]
        return np.where(columns < self.m, columns, -1)

    def messages_of(
        self, problem: GraphMatchingProblem | QuadraticAssignmentProblem
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What proves the bound, as the referee reads it: U and V of the level-1 RLT, or messages and prices."""
        messages, prices = self.proof
        if isinstance(problem, GraphMatchingProblem):
            return torch.from_numpy(messages).to(problem.dtype), torch.from_numpy(prices).to(problem.dtype)
        n, ends = self.m, self.model.ends
        U = np.zeros((n, n, n))
        both = messages.reshape(-1, 2, n)
        U[ends[:, 1], ends[:, 0]], U[ends[:, 0], ends[:, 1]] = both[:, 0], both[:, 1]
        return torch.from_numpy(U).to(problem.dtype), torch.zeros(n, n, n, dtype=problem.dtype)
