"""2-opt: descent by pair exchanges for the quadratic assignment, from many random starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from solvers.dual_bound import Matrices
from solvers.kernels.search import DESCENT
from solvers.local_search import prepare, search
from solvers.problems import QuadraticAssignmentProblem
from solvers.solver import Answer, Clock, Solver


@dataclass(frozen=True, kw_only=True)
class TwoOpt(Solver):
    """Goes down by the best pair exchange from random permutations until none is left, and keeps the best end.

    Attributes:
        starts: random permutations to start from.
    """

    name: ClassVar = "two_opt"
    problem_types: ClassVar = (QuadraticAssignmentProblem,)
    batched: ClassVar = True
    anytime: ClassVar = True
    reference: ClassVar = "Burkard, Dell'Amico and Martello, Assignment Problems, 2009, sec. 8.2.3"

    starts: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_counts("starts")

    def _prepare(self, problem: QuadraticAssignmentProblem) -> list[Matrices]:
        return prepare(problem)

    def _run(self, problem: QuadraticAssignmentProblem, prepared: list[Matrices], clock: Clock) -> Answer:
        return search(problem, prepared, np.full(self.starts, DESCENT), self.seed, 1, clock)
