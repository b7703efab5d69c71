"""EMD: the exact transport plan with its dual potentials, by the network simplex."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solvers.kernels.network_simplex import ITERATION_LIMIT, NOT_BEGUN, OPTIMAL, UNFINISHED, UNLIMITED, Transport
from solvers.partial import PartialTransportProblem
from solvers.problems import PlanProblem, TransportProblem
from solvers.solution import Status
from solvers.solver import Answer, Clock, Solver

WORK = 20_000_000  # cost entries between two looks at the clock, about, when there is a time limit
STATUS = {
    OPTIMAL: Status.OPTIMAL,
    ITERATION_LIMIT: Status.ITERATION_LIMIT,
    UNFINISHED: Status.TIME_LIMIT,
    NOT_BEGUN: Status.TIME_LIMIT,
}


@dataclass(frozen=True, kw_only=True)
class EMD(Solver):
    """Minimises ⟨C, T⟩ exactly; returns a vertex plan and feasible dual potentials that prove it.

    A primal network simplex on integer flows, in float64 whatever the input, batched over the cores. Problems with
    equal sides and uniform weights are assignments (Birkhoff) and solved as such, by shortest augmenting paths. The
    optimal value is differentiable by the envelope theorem: ∂V/∂C = T, ∂V/∂a = f, ∂V/∂b = g. A partial problem is
    solved as the balanced one that it is with one more node on each side.

    Attributes:
        max_iterations: pivots of one problem (an assignment needs none). Beyond them, or beyond ``time_limit``, the
            answer is the independent plan a bᵀ/Σa with the bound of the last potentials. The clock is looked at
            between problems and every few thousand pivots within one.
    """

    name: ClassVar = "emd"
    problem_types: ClassVar = (TransportProblem, PartialTransportProblem)
    exact: ClassVar = True
    gives_bound: ClassVar = True
    differentiable: ClassVar = ("envelope",)
    batched: ClassVar = True
    reference: ClassVar = "Bonneel et al., Displacement Interpolation Using Lagrangian Mass Transport, 2011"

    max_iterations: int = 10_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_counts("max_iterations")

    def _prepare(self, problem: PlanProblem) -> Transport:
        problem = problem.to_transport() if isinstance(problem, PartialTransportProblem) else problem
        n, m = problem.cost.shape[-2:]

        def flat(x: Tensor, *shape: int) -> NDArray[np.floating]:
            return x.detach().reshape(-1, *shape).contiguous().numpy()

        work = Transport(flat(problem.cost, n, m), flat(problem.a, n), flat(problem.b, m), self.max_iterations)
        work.compile()
        return work

    def _run(self, problem: TransportProblem | PartialTransportProblem, prepared: Transport, clock: Clock) -> Answer:
        if isinstance(problem, PartialTransportProblem):
            return _restricted(problem.detach(), self._run(problem.detach().to_transport(), prepared, clock))
        work = prepared
        pivots = UNLIMITED if clock.time_limit is None else work.pivots_of(WORK)
        while not (clock.expired or work.run(pivots)):
            pass
        plan, f, g = (torch.from_numpy(x) for x in (work.plan, work.f, work.g))
        unfinished = torch.from_numpy(work.outcome != OPTIMAL)
        limited = bool(unfinished.any())
        if limited:
            _give_up(problem.detach().flattened(), unfinished, plan, f, g)
        overflown = ~(torch.isfinite(f).all(-1) & torch.isfinite(g).all(-1))
        statuses = [STATUS[k] for k in work.outcome.tolist()]
        for k in overflown.nonzero().flatten().tolist():
            statuses[k] = Status.NON_FINITE
        return Answer(
            plan=plan.reshape(problem.cost.shape),
            potentials=(f.reshape(problem.a.shape), g.reshape(problem.b.shape)),
            iterations=torch.from_numpy(work.pivots).reshape(problem.batch_shape),
            statuses=statuses,
            message="unfinished problems have the plan a bᵀ/Σa" if limited else "",
        )


def _give_up(problem: TransportProblem, unfinished: Tensor, plan: Tensor, f: Tensor, g: Tensor) -> None:
    """Give the unfinished problems (B,) a feasible plan, and the better potentials of two: the tree's or the minima."""
    plan[unfinished] = problem.independent_plan()[unfinished]
    columns = problem.cost.amin(-2)
    rows = (problem.cost - columns.unsqueeze(-2)).amin(-1)
    better = unfinished & ~(problem.dual_objective(f, g) >= problem.dual_objective(rows, columns))
    f[better], g[better] = rows[better], columns[better]


def _restricted(problem: PartialTransportProblem, answer: Answer) -> Answer:
    """The answer to a partial problem from that to its balanced one, whose fallback carries another mass."""
    assert isinstance(answer.plan, Tensor)
    assert answer.potentials is not None
    assert not isinstance(answer.statuses, Status)
    done = torch.tensor([s is Status.OPTIMAL for s in answer.statuses]).reshape(*problem.batch_shape, 1, 1)
    plan = torch.where(done, problem.restrict(answer.plan).to(problem.dtype), problem.independent_plan())
    g = answer.potentials[1][..., :-1].to(problem.dtype)
    f = (problem.cost - g.unsqueeze(-2)).amin(-1)  # no pair with the node that was added binds it any more
    message = answer.message and "unfinished problems have the plan s (a/Σa)(b/Σb)ᵀ"
    return dataclasses.replace(answer, plan=plan, potentials=(f, g), message=message)
