"""LocalCKA: kernels matched through FAQ, as Maniparambil et al. published it and as a later comparison ran it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from solvers.faq import FAQ
from solvers.problems import QuadraticAssignmentProblem
from solvers.solver import Answer, Clock, Solver


@dataclass(frozen=True, kw_only=True)
class LocalCKA(Solver):
    """Matches two kernels by Frank–Wolfe: the problem's A is minus the one, its B the other.

    * ``setting="published"`` (Maniparambil et al., "Do vision and language encoders represent the world similarly?",
      CVPR 2024): both kernels doubly centred, which makes the objective minus their CKA up to a factor; 500 starts,
      tolerance 1e-5. Its seeds, pairs known beforehand, are left out: there are none here.
    * ``setting="official"`` (the comparison in Schnaus et al., "It's a (Blind) Match!", CVPR 2025): kernels as they
      are, A transposed, one start from the barycenter, tolerance 0.03.

    The value is the given problem's, not that of the problem which was solved in its place.
    """

    name: ClassVar = "local_cka"
    problem_types: ClassVar = (QuadraticAssignmentProblem,)
    batched: ClassVar = True
    anytime: ClassVar = True
    reference: ClassVar = "Maniparambil et al., Do Vision and Language Encoders Represent the World Similarly?, 2024"

    setting: Literal["published", "official"] = "published"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.setting not in ("published", "official"):
            raise ValueError(f"setting must be 'published' or 'official', not {self.setting!r}")

    @property
    def _faq(self) -> FAQ:
        if self.setting == "official":
            return FAQ(seed=self.seed)
        return FAQ(starts=500, tolerance=1e-5, seed=self.seed)

    def _prepare(self, problem: QuadraticAssignmentProblem) -> QuadraticAssignmentProblem:
        self._faq._prepare(problem)
        A, B, L, c = (x.detach() for x in (problem.A, problem.B, problem.linear, problem.constant))
        if self.setting == "official":
            return QuadraticAssignmentProblem(A.mT, B, L, c)
        return QuadraticAssignmentProblem(_centred(A), _centred(B), L, c)

    def _run(self, problem: QuadraticAssignmentProblem, prepared: QuadraticAssignmentProblem, clock: Clock) -> Answer:
        faq = self._faq
        return faq._run(prepared, faq._prepare(prepared), clock)


def _centred(K: Tensor) -> Tensor:
    """H K H with H = I − 1 1ᵀ/n."""
    K = K - K.mean(-1, keepdim=True)
    return K - K.mean(-2, keepdim=True)
