"""Sinkhorn: entropic optimal transport, with safe scalings, for any regularisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from solvers import matrix_free_sinkhorn, validation
from solvers.kernels.sinkhorn_triton import unavailable_reason
from solvers.matrix_free_sinkhorn import Start
from solvers.partial import PartialTransportProblem
from solvers.point_clouds import PointCloudTransportProblem
from solvers.problems import PlanProblem, TransportProblem
from solvers.relaxed_gradient import RelaxedImplicit
from solvers.relaxed_iterations import RelaxedBatch, relax_compiled, relax_in_log_domain, what_holds
from solvers.sinkhorn_gradient import Implicit
from solvers.sinkhorn_iterations import (
    Batch,
    Iterated,
    newton_compiled,
    safe_log,
    scale_compiled,
    scale_in_log_domain,
    scale_on_gpu,
)
from solvers.solution import Status
from solvers.solver import Answer, Clock, Solver
from solvers.unbalanced import UnbalancedTransportProblem
from solvers.verify import Facts

LOOSE, STAGE = 0.02, 100  # marginal error and most iterations of an ε on the way to the last
NEWTON_SCALING, NEWTON_STAGE = 0.25, 20  # Newton's method wants a path: the factor, and the most steps of each kind
NEWTON_SIZE = 2048  # of the shorter side: a step factors a matrix of that size


@dataclass(frozen=True, kw_only=True)
class Sinkhorn(Solver):
    """Minimises ⟨C, T⟩ + ε Σ T (log T − 1) over transport plans by alternating scaling (Cuturi, NeurIPS 2013).

    The plan is T = exp((f_i + g_j − C_ij)/ε). An iteration fits f to the rows, then g to the columns, by scaling the
    rows and columns of a kernel that is absorbed into the potentials before it can under- or overflow: compiled on the
    CPU, by Triton with CUDA. Where Triton cannot run, and when unrolled, it runs in the log domain. Zero weights are
    allowed (their potential is −∞). Each problem of a batch stops by itself, on the L1 marginal error of its own plan,
    so a problem's answer does not depend on its neighbours. ``value`` is the transport cost ⟨C, T⟩ without the
    entropy; ``lower_bound`` holds for the unregularised problem.

    With a ``prior`` P̃ the objective is ⟨C, T⟩ + λ₁ Σ T (log T − 1) + λ₂ KL(T‖P̃) with λ₁ = ``reg`` and
    λ₂ = ``prior_weight`` (knowledge-constrained transport; RAM, CVPR 2025): the same iteration with ε = λ₁ + λ₂ on the
    cost C − λ₂ log P̃, to which the potentials then belong.

    Attributes:
        reg: ε > 0, in units of the cost: a number, or a tensor of shape () or ``(*batch,)``, which may require a
            gradient.
        tolerance: the marginal error, as a fraction of the total mass, at which a problem has converged.
        max_iterations: of the pair of scalings (rows, then columns), those of ε-scaling included.
        gradient: how the plan, the value and the potentials are differentiated with respect to C, a, b, reg and the
            prior: "implicit" solves one linear system at the fixed point (memory independent of the iteration count;
            Luise et al., NeurIPS 2018; Eisenberger et al., CVPR 2022), "unrolled" differentiates every iteration.
        scaling: ε-scaling (Schmitzer 2019, sec. 3.2): starts at an ε as large as the spread of the costs and
            multiplies it by this factor, in (0, 1), whenever the marginal error is small, down to ``reg``; None to
            start at ``reg``.
        newton: scale for at most 20 iterations, then take Newton steps on the dual, down an ε-scaling by 0.25 where
            ``scaling`` is None; each step counts as an iteration and costs a linear system of the shorter side, at most
            2048, on the CPU. For small ε, where scaling alone takes 10⁵ iterations or never ends, it takes some 100.
        warm_start: potentials (f, g) of shapes ``(*batch, n)`` and ``(*batch, m)`` to start from, such as those of an
            earlier solution. Only g is needed: the first half of an iteration replaces f.
        prior: P̃ ≥ 0, shape ``(n, m)`` or ``(*batch, n, m)``; no mass goes where it is zero.
        prior_weight: λ₂ > 0 where there is a prior.
    """

    name: ClassVar = "sinkhorn"
    problem_types: ClassVar = (
        TransportProblem,
        UnbalancedTransportProblem,
        PartialTransportProblem,
        PointCloudTransportProblem,
    )
    gives_bound: ClassVar = True
    differentiable: ClassVar = ("implicit", "unrolled")
    batched: ClassVar = True
    devices: ClassVar = ("cpu", "cuda")
    reference: ClassVar = "Cuturi, Sinkhorn Distances, NeurIPS 2013"

    reg: float | Tensor = 0.05
    tolerance: float = 1e-5
    max_iterations: int = 1000
    gradient: Literal["implicit", "unrolled"] = "implicit"
    scaling: float | None = None
    newton: bool = False
    warm_start: tuple[Tensor, Tensor] | None = field(default=None, compare=False)
    prior: Tensor | None = field(default=None, compare=False)
    prior_weight: float = 0.0

    @property
    def epsilon(self) -> float | Tensor:
        """ε of the plan T = exp((f + g − C)/ε): ``reg``, plus λ₂ where there is a prior."""
        return self.reg + self.prior_weight

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (bool((self.reg > 0).all()) if isinstance(self.reg, Tensor) else self.reg > 0):
            raise ValueError(f"reg must be positive, not {self.reg!r}; use the solver 'emd' for reg = 0")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be positive, not {self.tolerance!r}")
        if self.max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, not {self.max_iterations!r}")
        if self.gradient not in self.differentiable:
            raise ValueError(f"gradient must be 'implicit' or 'unrolled', not {self.gradient!r}")
        if self.scaling is not None and not 0 < self.scaling < 1:
            raise ValueError(f"scaling must be a factor between 0 and 1, or None, not {self.scaling!r}")
        if self.newton and self.gradient == "unrolled":
            raise ValueError("newton=True has no unrolled gradient; use gradient='implicit'")
        if (self.prior is None) != (self.prior_weight == 0) or not self.prior_weight >= 0:
            raise ValueError(
                f"a prior comes with a positive prior_weight, and prior_weight = {self.prior_weight!r} was passed "
                f"{'without' if self.prior is None else 'with'} a prior"
            )

    def _prepare(self, problem: PlanProblem) -> Batch | RelaxedBatch | Start:
        """The problems with one batch dimension, and the loops compiled for them."""
        n, m = problem.shape[-2:]
        reg, g = self._reg_and_start(problem)
        if self.newton and min(n, m) > NEWTON_SIZE:
            raise ValueError(
                f"newton=True takes problems whose shorter side is at most {NEWTON_SIZE}, and this one is {n} × {m}"
            )
        if isinstance(problem, PointCloudTransportProblem):
            return matrix_free_sinkhorn.prepare(problem, Start(reg, g), self)
        cost = problem.cost
        if self.prior is not None:
            cost = cost - self.prior_weight * safe_log(self._checked_prior(problem))
        C, a, b = cost.reshape(-1, n, m), problem.a.reshape(-1, n), problem.b.reshape(-1, m)
        batch: Batch | RelaxedBatch = Batch(C, a, b, reg.reshape(-1), g.reshape(-1, m))
        if not isinstance(problem, TransportProblem):
            if self.newton:
                raise ValueError("newton=True is for balanced problems; solve this one with newton=False")
            batch = RelaxedBatch(C, a, b, reg.reshape(-1), g.reshape(-1, m), what_holds(problem))
        if problem.device.type == "cpu":
            none = type(batch)(*(x.detach()[:0] for x in batch))
            count = torch.zeros(0, dtype=torch.int64)
            _scaled(none, count, self.tolerance, count, Clock(None))
            if self.newton and isinstance(none, Batch):
                newton_compiled(none, count, self.tolerance, count, Clock(None))
        return batch

    def _reg_and_start(self, problem: PlanProblem) -> tuple[Tensor, Tensor]:
        """ε of each problem, shape ``(*batch,)``, and the g to start from, ``(*batch, m)``; float64."""
        reg, cost = self.epsilon, problem.a.unsqueeze(-1).expand(problem.shape)  # its shape, stored or not
        reg = reg.double() if isinstance(reg, Tensor) else torch.tensor(reg, dtype=torch.float64)
        reg = validation.per_problem("reg", reg.to(problem.device), cost, torch.float64)
        g = torch.zeros_like(problem.b.detach()).double() if self.warm_start is None else self._checked_start(problem)
        return reg, torch.where(problem.b.detach() > 0, g, -torch.inf)

    def _run(self, problem: PlanProblem, prepared: Batch | RelaxedBatch | Start, clock: Clock) -> Answer:
        if isinstance(prepared, Start):
            assert isinstance(problem, PointCloudTransportProblem)
            return matrix_free_sinkhorn.run(problem, prepared, self, clock)
        batch, (n, m) = problem.batch_shape, problem.shape[-2:]
        C, a, b, reg, start, *held = prepared
        if self.gradient == "implicit" and any(x.requires_grad for x in prepared):

            def run(C: Tensor, a: Tensor, b: Tensor, reg: Tensor, *held: Tensor) -> Iterated:
                return self._iterate(type(prepared)(C, a, b, reg, start, *held), clock)

            implicit = RelaxedImplicit if held else Implicit
            T, f, g, iterations, converged = implicit.apply(C, a, b, reg, *held, run)
        else:
            T, f, g, iterations, converged = self._iterate(prepared, clock)
        over = Status.TIME_LIMIT if clock.expired else Status.ITERATION_LIMIT
        return Answer(
            plan=T.reshape(*batch, n, m),
            potentials=(f.to(C.dtype).reshape(*batch, n), g.to(C.dtype).reshape(*batch, m)),
            iterations=iterations.reshape(batch),
            statuses=[Status.CONVERGED if good else over for good in converged.tolist()],
        )

    def _iterate(self, batch: Batch | RelaxedBatch, clock: Clock) -> Iterated:
        """ε-scaling, where it is wanted, then the iteration at the ε asked for."""
        iterations = torch.zeros(len(batch.C), dtype=torch.int64, device=batch.C.device)
        factor = NEWTON_SCALING if self.newton and self.scaling is None else self.scaling
        stage = NEWTON_STAGE if self.newton else STAGE
        if factor is not None:
            C, reg, g = batch.C.detach(), batch.reg.detach(), batch.g
            finite = torch.where(C.isinf(), C.amin((-2, -1), keepdim=True), C)
            now = torch.maximum((finite.amax((-2, -1)) - finite.amin((-2, -1))).double(), reg)
            while not clock.expired:
                active = ((now > reg) & (iterations + 2 * stage < self.max_iterations)).nonzero()[:, 0]
                if len(active) == 0:
                    break
                given = type(batch)(*(x.detach()[active] for x in batch._replace(reg=now, g=g)))
                reached = _scaled(given, iterations[active], LOOSE, iterations[active] + stage, clock)
                if self.newton:
                    assert isinstance(given, Batch)
                    given, had = given._replace(g=reached.g), reached.iterations
                    reached = newton_compiled(given, had, LOOSE, had + stage, clock)
                g = g.index_copy(0, active, reached.g.to(g.dtype))
                iterations = iterations.index_copy(0, active, reached.iterations)
                now = torch.maximum(now.index_copy(0, active, now[active] * factor), reg)
            batch = batch._replace(g=g)
        stop = torch.full_like(iterations, self.max_iterations)
        if not self.newton:
            return _scaled(batch, iterations, self.tolerance, stop, clock)
        assert isinstance(batch, Batch)
        reached = _scaled(batch, iterations, self.tolerance, torch.minimum(iterations + stage, stop), clock)
        if bool(reached.converged.all()):
            return reached
        return newton_compiled(batch._replace(g=reached.g), reached.iterations, self.tolerance, stop, clock)

    def _settled(self, problem: PlanProblem, answer: Answer, facts: Facts) -> Answer:
        """A plan whose rounded entries miss the tolerance has not converged, whatever its scalings say."""
        assert facts.marginal_error is not None
        assert isinstance(answer.statuses, list)
        assert isinstance(answer.iterations, Tensor)
        early = (answer.iterations < self.max_iterations).reshape(-1).tolist()
        missed = (facts.marginal_error > self.tolerance * problem.reference_mass.detach()).reshape(-1).tolist()
        for k, status in enumerate(answer.statuses):
            if missed[k] if status is Status.CONVERGED else status is Status.ITERATION_LIMIT and early[k]:
                answer.statuses[k] = Status.ITERATION_LIMIT
                answer.message = f"the tolerance {self.tolerance:g} is below what {problem.dtype} resolves here"
        return answer

    def _checked_prior(self, problem: PlanProblem) -> Tensor:
        assert self.prior is not None
        P = validation.tensor("prior", self.prior).to(problem.cost)
        shape = tuple(problem.cost.shape)
        if tuple(P.shape) not in (shape, shape[-2:]):
            raise validation.InvalidProblem(f"prior has shape {tuple(P.shape)}, but the cost has shape {shape}")
        validation.check_finite("prior", P)
        if bool((P.detach() < 0).any()):
            raise validation.InvalidProblem(f"prior has a negative entry, {P.min().item():g}; entries are masses")
        allowed = (P.detach() > 0) & (problem.a.detach() > 0).unsqueeze(-1) & (problem.b.detach() > 0).unsqueeze(-2)
        for side, stuck in (
            ("a", (problem.a.detach() > 0) & ~allowed.any(-1)),
            ("b", (problem.b.detach() > 0) & ~allowed.any(-2)),
        ):
            if bool(stuck.any()):
                raise validation.InvalidProblem(
                    f"prior is zero wherever node {stuck.nonzero()[0].tolist()} of {side} could send its mass; "
                    "give at least one pair of every node with mass a positive prior"
                )
        return P

    def _checked_start(self, problem: PlanProblem) -> Tensor:
        assert self.warm_start is not None
        expected = tuple(tuple(w.shape) for w in (problem.a, problem.b))
        f, g = (validation.tensor("warm_start", p).detach().double() for p in self.warm_start)
        if (tuple(f.shape), tuple(g.shape)) != expected:
            raise validation.InvalidProblem(
                f"warm_start has shapes {tuple(f.shape)} and {tuple(g.shape)}, but the potentials of this problem have "
                f"shapes {expected[0]} and {expected[1]}"
            )
        if not bool(torch.isfinite(g[problem.b.detach().to(g.device) > 0]).all()):
            raise validation.InvalidProblem("warm_start must be finite wherever there is mass")
        return g.to(problem.device)


def _scaled(batch: Batch | RelaxedBatch, iterations: Tensor, tolerance: float, stop: Tensor, clock: Clock) -> Iterated:
    """The iteration that the problems and their device call for: compiled, unless a graph is wanted."""
    unrolled = torch.is_grad_enabled() and any(x.requires_grad for x in batch)
    compiled = batch.C.device.type == "cpu" and not unrolled
    if isinstance(batch, RelaxedBatch):
        return (relax_compiled if compiled else relax_in_log_domain)(batch, iterations, tolerance, stop, clock)
    if batch.C.device.type == "cuda" and not unrolled and unavailable_reason(batch.C) is None:
        return scale_on_gpu(batch, iterations, tolerance, stop, clock)
    return (scale_compiled if compiled else scale_in_log_domain)(batch, iterations, tolerance, stop, clock)
