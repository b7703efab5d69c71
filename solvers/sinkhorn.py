"""Sinkhorn: entropic optimal transport in the log domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numba
import numpy as np
import torch
from torch import Tensor

from solvers.kernels.sinkhorn import sinkhorn_potentials
from solvers.problems import TransportProblem
from solvers.solution import Status
from solvers.solver import Answer, Clock, Solver

WORK = 50_000_000  # cost entries read between two looks at the clock, when there is a time limit


@dataclass(frozen=True, kw_only=True)
class Sinkhorn(Solver):
    """Minimises ⟨C, T⟩ + ε Σ T (log T − 1) over transport plans by alternating scaling (Cuturi, NeurIPS 2013).

    The iteration runs on the potentials in the log domain, T = exp((f_i + g_j − C_ij)/ε), so that small ε neither
    under- nor overflows; zero weights are allowed (their potential is −∞). Each problem of a batch stops by itself,
    on the L1 marginal error of its own plan, so a problem's answer does not depend on its neighbours. ``value`` is
    the transport cost ⟨C, T⟩ without the entropy; ``lower_bound`` holds for the unregularised problem.

    Attributes:
        reg: ε > 0, in units of the cost.
        tolerance: the marginal error, as a fraction of the total mass, at which a problem has converged.
        max_iterations: of the pair of scalings (rows, then columns).
        gradient: how the plan, the value and the potentials are differentiated with respect to C, a and b:
            "implicit" solves one linear system at the fixed point (memory independent of the iteration count; Luise et
            al., NeurIPS 2018; Eisenberger et al., CVPR 2022), "unrolled" differentiates every iteration.
    """

    name: ClassVar = "sinkhorn"
    problem_types: ClassVar = (TransportProblem,)
    gives_bound: ClassVar = True
    differentiable: ClassVar = ("implicit", "unrolled")
    batched: ClassVar = True
    devices: ClassVar = ("cpu", "cuda")
    reference: ClassVar = "Cuturi, Sinkhorn Distances, NeurIPS 2013"

    reg: float = 0.05
    tolerance: float = 1e-5
    max_iterations: int = 1000
    gradient: Literal["implicit", "unrolled"] = "implicit"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.reg > 0:
            raise ValueError(f"reg must be positive, not {self.reg!r}; use the solver 'emd' for reg = 0")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be positive, not {self.tolerance!r}")
        if self.max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, not {self.max_iterations!r}")
        if self.gradient not in self.differentiable:
            raise ValueError(f"gradient must be 'implicit' or 'unrolled', not {self.gradient!r}")

    def _prepare(self, problem: TransportProblem) -> None:
        if problem.device.type == "cpu":  # compiles for this dtype, or finds it compiled
            nothing = problem.cost.detach().reshape(-1, *problem.cost.shape[-2:])[:0]
            self._compiled(nothing, nothing.sum(-1), nothing.sum(-2), Clock(None))

    def _run(self, problem: TransportProblem, prepared: Any, clock: Clock) -> Answer:
        batch, (n, m) = problem.batch_shape, problem.cost.shape[-2:]
        C, a, b = problem.cost.reshape(-1, n, m), problem.a.reshape(-1, n), problem.b.reshape(-1, m)
        if self.gradient == "unrolled" and problem.requires_grad:
            f, g, iterations, statuses = self._iterate(C, a, b, clock)
        else:
            f, g, iterations, statuses = _Implicit.apply(C, a, b, self, clock)
        T = torch.exp((f.double().unsqueeze(-1) + g.double().unsqueeze(-2) - C) / self.reg).to(C.dtype)
        error = problem.detach().marginal_error(T.detach().reshape(*batch, n, m)).reshape(-1)
        missed = (error > self.tolerance * problem.mass.detach().reshape(-1)).tolist()
        message = ""
        for k, status in enumerate(statuses):
            if status is Status.CONVERGED and missed[k]:
                statuses[k] = Status.ITERATION_LIMIT
                message = f"the tolerance {self.tolerance:g} is below what {C.dtype} resolves at reg = {self.reg:g}"
        return Answer(
            plan=T.reshape(*batch, n, m),
            potentials=(f.to(C.dtype).reshape(*batch, n), g.to(C.dtype).reshape(*batch, m)),
            iterations=iterations.reshape(batch),
            statuses=statuses,
            message=message,
        )

    def _compiled(self, C: Tensor, a: Tensor, b: Tensor, clock: Clock) -> tuple[Tensor, Tensor, Tensor, list[Status]]:
        """``_iterate`` without a graph, on the CPU: float64 potentials from the compiled kernel."""
        batch, n, _ = C.shape
        cost, a_, b_ = C.contiguous().numpy(), a.double().contiguous().numpy(), b.double().contiguous().numpy()
        f, g = np.zeros((batch, n)), np.where(b_ > 0, 0.0, -np.inf)
        iterations, converged = np.zeros(batch, np.int64), np.zeros(batch, np.bool_)
        limit = 0.9 * self.tolerance * a_.sum(-1)
        chunks = min(batch, 8 * numba.get_num_threads())
        step = self.max_iterations if clock.time_limit is None else 1 + WORK // max(1, C.numel())
        last = 0
        while last == 0 or not (last == self.max_iterations or converged.all() or clock.expired):
            last = min(last + step, self.max_iterations)
            sinkhorn_potentials(cost, a_, b_, self.reg, limit, last, f, g, iterations, converged, chunks)
        over = Status.ITERATION_LIMIT if last == self.max_iterations else Status.TIME_LIMIT
        statuses = [Status.CONVERGED if good else over for good in converged.tolist()]
        return torch.from_numpy(f), torch.from_numpy(g), torch.from_numpy(iterations), statuses

    def _iterate(self, C: Tensor, a: Tensor, b: Tensor, clock: Clock) -> tuple[Tensor, Tensor, Tensor, list[Status]]:
        """Potentials (f, g) of shapes (B, n), (B, m), the iterations each problem took, and how each ended.

        After the column scaling the columns are exact, so the error of the rows is the whole marginal error, and
        the row sums that it needs are those the next row scaling computes anyway.
        """
        M, log_a, log_b = -C / self.reg, _log(a), _log(b)
        limit = 0.9 * self.tolerance * a.detach().sum(-1, dtype=torch.float64)  # the rest is for rounding
        u, v = torch.zeros_like(a), torch.where(b > 0, 0, log_b)
        u = torch.where(a > 0, u, log_a)
        batch = len(C)
        iterations = torch.zeros(batch, dtype=torch.int64, device=C.device)
        statuses = [Status.ITERATION_LIMIT] * batch
        active = torch.arange(batch, device=C.device)  # the problems still running
        now = (M, log_a, log_b, u, v)  # their rows of everything
        for iteration in range(self.max_iterations + 1):
            M_, log_a_, log_b_, u_, v_ = now
            row_sums = torch.logsumexp(M_ + v_.unsqueeze(-2), -1)
            if iteration > 0:
                a_ = log_a_.detach().exp()
                error = (torch.exp(u_.detach() + row_sums.detach()) - a_).abs().sum(-1, dtype=torch.float64)
                done = error <= limit[active]
                last = iteration == self.max_iterations or clock.expired
                if last or bool(done.any()):
                    # Write back what is finished (or everything, at the end) and go on with the rest.
                    out = torch.ones_like(done) if last else done
                    finished = active[out]
                    u, v = u.index_copy(0, finished, u_[out]), v.index_copy(0, finished, v_[out])
                    iterations[finished] = iteration
                    over = Status.ITERATION_LIMIT if iteration == self.max_iterations else Status.TIME_LIMIT
                    for k, good in zip(finished.tolist(), done[out].tolist(), strict=True):
                        statuses[k] = Status.CONVERGED if good else over
                    if bool(out.all()):
                        break
                    active = active[~out]
                    M_, log_a_, log_b_, u_, v_, row_sums = (x[~out] for x in (*now, row_sums))
            u_ = log_a_ - row_sums
            v_ = log_b_ - torch.logsumexp(M_ + u_.unsqueeze(-1), -2)
            now = (M_, log_a_, log_b_, u_, v_)
        return self.reg * u, self.reg * v, iterations, statuses


class _Implicit(torch.autograd.Function):
    """Potentials whose gradient comes from the fixed point itself (the implicit function theorem).

    Differentiating T 1 = a and Tᵀ 1 = b with T = exp((f + g − C)/ε) gives
    H (df, dg) = (T∘dC 1 + ε da, (T∘dC)ᵀ 1 + ε db) with the symmetric H = [[diag(T 1), T], [Tᵀ, diag(Tᵀ 1)]].
    For H (x, y) = (∂L/∂f, ∂L/∂g) the gradients are ∂L/∂C = T∘(x_i + y_j), ∂L/∂a = ε x and ∂L/∂b = ε y. H is singular
    along (1, −1), the constant that may move between f and g; it is fixed by holding Σ_j b_j g_j.
    """

    @staticmethod
    def forward(ctx: Any, C: Tensor, a: Tensor, b: Tensor, solver: Sinkhorn, clock: Clock) -> tuple[Any, ...]:
        run = solver._compiled if C.device.type == "cpu" else solver._iterate
        f, g, iterations, statuses = run(C, a, b, clock)
        ctx.save_for_backward(C, f, g)
        ctx.reg = solver.reg
        ctx.mark_non_differentiable(iterations)
        return f, g, iterations, statuses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, df: Tensor, dg: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        C, f, g = (t.double() for t in ctx.saved_tensors)
        T = torch.exp((f.unsqueeze(-1) + g.unsqueeze(-2) - C) / ctx.reg)
        if T.shape[-2] >= T.shape[-1]:
            x, y = _solve_symmetric(T, df.double(), dg.double())
        else:
            y, x = _solve_symmetric(T.mT, dg.double(), df.double())
        dtype = ctx.saved_tensors[0].dtype
        grad_C = T * (x.unsqueeze(-1) + y.unsqueeze(-2))
        return grad_C.to(dtype), (ctx.reg * x).to(dtype), (ctx.reg * y).to(dtype), None, None


def _solve_symmetric(T: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """(x, y) with r∘x + T y = p and Tᵀ x + c∘y = q, for the row sums r and column sums c of T (n ≥ m)."""
    r, c = T.sum(-1), T.sum(-2)
    inverse_r = torch.where(r > 0, 1 / r, 0)
    q = q - (q.sum(-1) - p.sum(-1)).unsqueeze(-1) * c / c.sum(-1, keepdim=True)  # the part H can reach
    scaled = T * inverse_r.unsqueeze(-1)
    S = torch.diag_embed(c) - T.mT @ scaled  # Schur complement, S 1 = 0
    S = S + c.unsqueeze(-1) * c.unsqueeze(-2) / c.sum(-1)[..., None, None]  # fixes the constant
    # Nearly decoupled plans (small ε) leave more directions without curvature: damp them at rounding level.
    damping = torch.where(c > 0, 1e-14 * c.amax(-1, keepdim=True), 1)
    y = torch.linalg.solve(S + torch.diag_embed(damping), (q - (scaled.mT @ p.unsqueeze(-1)).squeeze(-1)))
    x = inverse_r * (p - (T @ y.unsqueeze(-1)).squeeze(-1))
    return x, y


def _log(weights: Tensor) -> Tensor:
    """log of weights, −∞ for zero, with a zero gradient there instead of NaN."""
    positive = weights > 0
    return torch.where(positive, torch.log(torch.where(positive, weights, 1)), -torch.inf)
