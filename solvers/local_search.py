"""Local search: robust tabu search and iterated local search for the quadratic assignment, from many starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from solvers.dual_bound import Matrices, matrices_of
from solvers.kernels.exchange import lay_out
from solvers.kernels.search import DESCENT, ITERATED, TABU, Searches, compile_searches, go_on, new_searches
from solvers.problems import QuadraticAssignmentProblem
from solvers.solution import Progress, Status
from solvers.solver import Answer, Clock, Solver

KINDS = {"tabu": (TABU,), "iterated": (ITERATED,), "both": (TABU, TABU, TABU, ITERATED)}  # of the starts, in turn
STRETCH = 4_000_000  # changes looked at, in all, between two looks at the clock


@dataclass(frozen=True, kw_only=True)
class LocalSearch(Solver):
    """Looks for good permutations by pair exchanges from random starts, side by side on the cores; gives no bound.

    A move costs O(n²): all n(n − 1)/2 changes of the objective are kept up to date (``kernels.exchange``). The same
    seed gives the same answer on any number of threads, unless the time limit ends the search.

    Attributes:
        method: "tabu" (Taillard's robust tabu search, best where costs have no structure), "iterated" (random kicks and
            the ways down from them), or "both", three starts of the one to one of the other.
        starts: random permutations to start from.
        max_iterations: moves of each start.
    """

    name: ClassVar = "local_search"
    problem_types: ClassVar = (QuadraticAssignmentProblem,)
    batched: ClassVar = True
    anytime: ClassVar = True
    reference: ClassVar = "Taillard, Robust Taboo Search for the Quadratic Assignment Problem, 1991"

    method: Literal["tabu", "iterated", "both"] = "both"
    starts: int = 8
    max_iterations: int = 20_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in KINDS:
            raise ValueError(f"method must be one of {', '.join(map(repr, KINDS))}, not {self.method!r}")
        self._require_counts("starts", "max_iterations")

    def _prepare(self, problem: QuadraticAssignmentProblem) -> list[Matrices]:
        return prepare(problem)

    def _run(self, problem: QuadraticAssignmentProblem, prepared: list[Matrices], clock: Clock) -> Answer:
        kinds = np.resize(KINDS[self.method], self.starts)
        return search(problem, prepared, kinds, self.seed, self.max_iterations, clock)


def prepare(problem: QuadraticAssignmentProblem) -> list[Matrices]:
    """The matrices of every problem; compiles the searches, or finds them compiled."""
    compile_searches()
    return matrices_of(problem)


def search(
    problem: QuadraticAssignmentProblem,
    prepared: list[Matrices],
    kinds: NDArray[np.int64],
    seed: int,
    moves: int,
    clock: Clock,
) -> Answer:
    """Search every problem of the batch from one random start of each kind, for so many moves or until time is up."""
    n, batch = problem.A.shape[-1], problem.batch_shape
    found, made, history = [], [], list[Progress]()
    constants = problem.constant.detach().reshape(-1).tolist()
    for k, matrices in enumerate(prepared):
        searches = new_searches(random_permutations(len(kinds), n, seed), kinds, seed)
        until = clock.elapsed + clock.remaining / (len(prepared) - k)
        for best in stretches(matrices, searches, moves, clock, until):
            if not batch and (not history or best < float(history[-1].value) - constants[k]):  # type: ignore[arg-type]
                history.append(Progress(clock.elapsed, torch.tensor(best + constants[k], dtype=torch.float64)))
        found.append(searches.best[searches.value[:, 1].argmin()])
        made.append(int(searches.moves[:, 0].sum()))
    return Answer(
        permutation=torch.from_numpy(np.stack(found)).reshape(*batch, n),
        iterations=torch.tensor(made).reshape(batch),
        statuses=Status.TIME_LIMIT if clock.expired else Status.CONVERGED,
        history=tuple(history),
    )


def stretches(
    matrices: Matrices, searches: Searches, moves: int, clock: Clock, until: float = float("inf")
) -> Iterator[float]:
    """Go on with the searches until all have made their moves or the clock is at ``until``; yields the best value."""
    costs, (starts, n) = lay_out(*matrices), searches.p.shape
    limited = np.isfinite(until)
    done, descents = 0, bool((searches.kind == DESCENT).all())
    step = max(1, STRETCH // (n * n * starts))
    while True:
        budget = min(step, moves - done)
        go_on(costs, searches, budget)
        done += budget
        yield float(searches.value[:, 1].min())
        if done >= moves or descents or clock.expired or (limited and clock.elapsed >= until):
            return


def best_permutation(
    matrices: Matrices, starts: int, moves: int, seed: int, clock: Clock, until: float
) -> NDArray[np.int64]:
    """The best permutation (n,) of a tabu search from so many random starts: what exact solvers begin with."""
    searches = new_searches(random_permutations(starts, len(matrices[0]), seed), np.full(starts, TABU), seed)
    for _ in stretches(matrices, searches, moves, clock, until):
        pass
    return searches.best[searches.value[:, 1].argmin()]


def random_permutations(count: int, n: int, seed: int) -> NDArray[np.int64]:
    """So many permutations (count, n) of a seed."""
    random = np.random.default_rng([abs(seed), seed < 0])
    return np.stack([random.permutation(n) for _ in range(count)])
