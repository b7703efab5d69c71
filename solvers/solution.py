"""What a solver answers: the matching, its recomputed value, a certificate where one exists, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from solvers.lazy_plan import LazyPlan
from solvers.problems import Problem


class Status(Enum):
    """How a solve ended, best first; the value is the sentence to show."""

    OPTIMAL = "Proven optimal: an exact algorithm finished, or value and lower bound agree to the tolerance."
    CONVERGED = "The solver met its own stopping rule; this is no proof of optimality."
    ITERATION_LIMIT = "Stopped at the iteration limit before converging; allow more iterations or a looser tolerance."
    TIME_LIMIT = "Stopped at the time limit; the answer is the best feasible one found so far."
    NON_FINITE = "The computation overflowed to NaN or infinity; use float64 or a larger regularisation."
    UNAVAILABLE = "The solver cannot run here; nothing was computed."

    __hash__ = object.__hash__  # by identity: a batch hashes thousands of them, and Enum's own is slow

    @property
    def sentence(self) -> str:
        return self.value

    @property
    def rank(self) -> int:
        """0 for OPTIMAL up to 5 for UNAVAILABLE: a batch reports the worst of its problems."""
        return list(Status).index(self)

    @classmethod
    def worst(cls, statuses: tuple[Status, ...]) -> Status:
        return max(set(statuses), key=lambda s: s.rank)


@dataclass(frozen=True)
class Progress:
    """One point of an anytime curve: seconds since the start, the best value and the best bound until then."""

    time: float
    value: Tensor | None = None
    bound: Tensor | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Solution:
    """The answer to a problem (or to every problem of a batch, leading dimensions ``*batch``).

    ``plan`` and ``potentials`` have the problem's dtype; certificates (``value``, ``lower_bound``, ``gap``,
    ``marginal_error``) are float64. Everything lives on the problem's device.

    Attributes:
        plan: transport plan T, shape ``(*batch, n, m)`` (transport problems); a ``LazyPlan``, whose rows are computed
            when they are asked for, where the problem does not store its cost either.
        permutation: matching p, int64 ``(*batch, n)``, −1 for an unmatched row (assignment problems).
        value: the objective, recomputed by the problem from the plan or permutation, shape ``(*batch,)``.
        lower_bound: no feasible solution is below it; recomputed in float64 by the referee from the dual potentials
            where there are any. None when the solver gives no bound.
        marginal_error: ‖T 1 − a‖₁ + ‖Tᵀ 1 − b‖₁, recomputed from the plan.
        potentials: dual potentials (f, g), shapes ``(*batch, n)`` and ``(*batch, m)``; of a quadratic assignment the
            dual variables (U, V) of its level-1 RLT, ``(*batch, n, n, n)`` each (``kernels.dual_ascent``).
        iterations: of each problem, int64 ``(*batch,)``; what one iteration is, the solver says.
        status: the worst over the batch; ``statuses`` has one of each problem, in row-major order.
        message: what the status cannot say in general (a limit, a missing licence, …); may be empty.
        prepare_time: seconds to compile and to lay out the data; solve_time: seconds of the algorithm itself.
        history: the anytime curve, where the solver keeps one.
    """

    problem: Problem
    solver: str
    settings: Mapping[str, Any]
    status: Status
    statuses: tuple[Status, ...]
    value: Tensor
    plan: Tensor | LazyPlan | None = None
    permutation: Tensor | None = None
    lower_bound: Tensor | None = None
    marginal_error: Tensor | None = None
    potentials: tuple[Tensor, Tensor] | None = None
    iterations: Tensor | None = None
    message: str = ""
    prepare_time: float = 0.0
    solve_time: float = 0.0
    history: tuple[Progress, ...] = field(default=(), repr=False)

    @property
    def gap(self) -> Tensor | None:
        """(value − lower bound) / max(|value|, tiny), shape ``(*batch,)``; 0 proves optimality."""
        if self.lower_bound is None:
            return None
        value = self.value.detach()
        return (value - self.lower_bound) / value.abs().clamp(min=torch.finfo(torch.float64).tiny)

    def __repr__(self) -> str:
        shape = tuple(self.value.shape)
        what = f"value {self.value.item():.6g}" if not shape else f"a batch {shape}, mean value {self.value.mean():.6g}"
        gap = self.gap
        proof = "" if gap is None else f", gap {gap.max().item():.2g}"
        return f"<Solution of {self.solver}: {what}{proof}, {self.status.name}, {self.solve_time:.3g} s>"
