"""Sinkhorn between point clouds in memory proportional to their size: the kernel is computed anew in every iteration.

With u = (f − α)/ε, v = (g − β)/ε and s_ij = X_i · Y_j/ε the plan is T = exp(u_i + v_j + s_ij). One pass over the rows,
a block at a time, computes s, fits u to the rows and adds up the columns. It costs n m d multiplications and n m
exponentials, so the rest is there to need few passes and cheap ones: the next v is extrapolated from the last few, and
passes run in float32 until its rounding is what is left of the marginal error; the last one is always in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers.kernels.matrix_free import scale_rows
from solvers.lazy_plan import FactoredCost, LazyPlan, block_size
from solvers.matrix_free_gradient import Implicit
from solvers.point_clouds import PARTS, PointCloudTransportProblem
from solvers.sinkhorn_iterations import ROUNDING
from solvers.solution import Status
from solvers.solver import Answer, Clock

if TYPE_CHECKING:
    from solvers.sinkhorn import Sinkhorn

LOOSE, STAGE = 0.02, 100  # marginal error and most passes of an ε on the way to the last
DEPTH, RADIUS = 10, 10.0  # steps that the extrapolation looks back on; how far it may go at first, in units of ε
PATIENCE = 30  # passes without a smaller error after which float32 is taken to be at its limit
UNRELIABLE = 0.01  # rounding of an exponent beyond which float32 is of no use


class Start(NamedTuple):
    """ε, shape ``(*batch,)``, and the g to start from, shape ``(*batch, m)``; float64."""

    reg: Tensor
    g: Tensor


def prepare(problem: PointCloudTransportProblem, start: Start, settings: Sinkhorn) -> Start:
    """``start``, once the settings are known to apply and the loops are compiled.

    Raises:
        ValueError: a setting that only a stored cost can serve.
    """
    if settings.prior is not None:
        raise ValueError("a prior is a matrix as large as the cost; solve problem.to_dense() to use one")
    if settings.gradient == "unrolled" and (problem.requires_grad or start.reg.requires_grad):
        raise ValueError(
            "gradient='unrolled' would store every iteration's kernel; use 'implicit', or solve problem.to_dense()"
        )
    if problem.device.type == "cpu":
        for dtype in (np.float32, np.float64):
            scale_rows(np.empty((0, 1), dtype), np.empty(1, dtype), np.empty(0), np.empty(0), np.empty((PARTS, 1)))
    return start


def run(problem: PointCloudTransportProblem, start: Start, settings: Sinkhorn, clock: Clock) -> Answer:
    """Solve every problem of the batch by itself; the plan is a ``LazyPlan``.

    ``iterations`` counts passes. Value, potentials and the rows of the plan are differentiable with respect to the
    points, the weights and ε by the implicit function theorem, in memory proportional to n + m.
    """
    cost, batch = problem.factored_cost(), problem.batch_shape
    flat, one_each = problem.detach().flattened(), list(cost.detach().problems())
    reg, g = start.reg.detach().reshape(-1), start.g.reshape(-1, problem.shape[-1])
    ended: list[tuple[int, bool]] = []

    def find() -> tuple[Tensor, Tensor]:
        found = []
        for k, of_one in enumerate(one_each):
            *pair, passes, converged = potentials(of_one, flat.a[k], flat.b[k], float(reg[k]), g[k], settings, clock)
            found.append(pair)
            ended.append((passes, converged))
        f, h = (torch.stack(potential) for potential in zip(*found, strict=True))
        return f.reshape(problem.a.shape), h.reshape(problem.b.shape)

    factors = cost.X, cost.Y, cost.alpha, cost.beta
    f, h = Implicit.apply(*factors, problem.a, problem.b, start.reg, find, settings.max_iterations)
    over = Status.TIME_LIMIT if clock.expired else Status.ITERATION_LIMIT
    return Answer(
        plan=LazyPlan(cost, f, h, start.reg, problem.dtype),
        potentials=(f.to(problem.dtype), h.to(problem.dtype)),
        iterations=torch.tensor([passes for passes, _ in ended], device=problem.device).reshape(batch),
        statuses=[Status.CONVERGED if good else over for _, good in ended],
    )


def potentials(
    C: FactoredCost, a: Tensor, b: Tensor, reg: float, g: Tensor, settings: Sinkhorn, clock: Clock
) -> tuple[Tensor, Tensor, int, bool]:
    """f (n,) and g (m,) of one problem in float64, −∞ without mass; the passes; whether it converged."""
    rows, columns = a > 0, b > 0
    a, b, g = a[rows].double(), b[columns].double(), g[columns]
    b = b * (a.sum() / b.sum())  # float32 totals agree to float32 only
    X, Y, alpha, beta = C.X[rows], C.Y[columns], C.alpha[rows], C.beta[columns]
    mass, passes, eps = float(a.sum()), 0, reg
    if settings.scaling is not None:
        eps = max(reg, float(alpha.max() + beta.max() + X.norm(dim=-1).max() * Y.norm(dim=-1).max()))
    while eps > reg and passes + STAGE < settings.max_iterations and not clock.expired:
        found = _iterate(X / eps, Y, a, b, (g - beta) / eps, LOOSE * mass, STAGE, clock)
        g, passes = eps * found.v + beta, passes + found.passes
        assert settings.scaling is not None
        eps *= settings.scaling
    limit = ROUNDING * settings.tolerance * mass
    found = _iterate(X / reg, Y, a, b, (g - beta) / reg, limit, settings.max_iterations - passes, clock)
    out_f, out_g = (torch.full_like(p, -torch.inf) for p in (C.alpha, C.beta))
    out_f[rows], out_g[columns] = reg * found.u + alpha, reg * found.v + beta
    return out_f, out_g, passes + found.passes, found.converged


class Found(NamedTuple):
    """u (n,), v (m,), float64; the passes it took; whether the marginal error is as small as asked for."""

    u: Tensor
    v: Tensor
    passes: int
    converged: bool


def _iterate(X: Tensor, Y: Tensor, a: Tensor, b: Tensor, v: Tensor, limit: float, most: int, clock: Clock) -> Found:
    """Passes until the columns miss b by at most ``limit`` in L1 while the rows are exact, or ``most`` passes.

    Of the last pass come u, fitted to the rows, and v, fitted to the columns after that, which never raises the error.
    """
    mixing, mass, passes, converged = _Mixing(b), float(a.sum()), 0, False
    single = torch.finfo(torch.float32).eps
    u = v_fitted = torch.empty(0)
    size = X.norm() * Y.norm() / math.sqrt(len(X) * len(Y)) + v.norm() / math.sqrt(len(v))
    if not torch.isfinite(size):
        return Found(torch.full_like(a, torch.nan), torch.full_like(b, torch.nan), 0, False)
    rounding = single * (1 + float(size) / 4)  # of an exponent; most of it averages out in the sums
    for dtype in (torch.float32, torch.float64) if rounding < UNRELIABLE else (torch.float64,):
        # One pass is kept for float64, in which alone the error counts.
        allowed, goal = (most - 1, max(limit, rounding * mass)) if dtype == torch.float32 else (most, limit)
        kernel, smallest, stuck = _Kernel(X, Y, dtype), math.inf, 0
        mixing.largest = -math.inf  # the two precisions are not compared
        while passes < allowed and not (passes and clock.expired):
            swept = kernel.scale(a, v, clock if passes else None)
            if swept is None:
                break
            passes += 1
            logs, columns = swept
            u = a.log() - logs
            residual = b.log() - v - _log_columns(kernel, u, v, columns)
            v_fitted = v + residual
            error = float((columns - b).abs().sum())
            converged = dtype == torch.float64 and error <= limit
            smallest, stuck = (error, 0) if error < smallest else (smallest, stuck + 1)
            if error <= goal or (stuck > PATIENCE and smallest <= 100 * goal and dtype == torch.float32):
                break
            v = mixing.next(v, residual, float(a @ u + b @ v), rounding * mass * torch.finfo(dtype).eps / single)
        v = v_fitted if passes else v
    return Found(u, v, passes, converged)


def _log_columns(kernel: _Kernel, u: Tensor, v: Tensor, columns: Tensor) -> Tensor:
    """log Σ_i exp(u_i + s_ij) of each column: from the sums of the plan, but where these are lost to underflow."""
    logs = columns.log() - v
    floor = 1e6 * torch.finfo(kernel.dtype).tiny * columns.sum()
    lost = (columns < floor).nonzero()[:, 0]
    if len(lost):
        logs[lost] = _Kernel(kernel.Y[lost], kernel.X, kernel.dtype).log_sums(u)
    return logs


class _Kernel:
    """exp(s_ij) with s_ij = X_i · Y_j, a block of rows at a time."""

    def __init__(self, X: Tensor, Y: Tensor, dtype: torch.dtype) -> None:
        self.dtype, self.X, self.Y = dtype, X.to(dtype), Y.to(dtype)

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their s_ij, which the caller may overwrite."""
        n, m = len(self.X), len(self.Y)
        size = block_size(n, m)
        S = torch.empty(size, m, dtype=self.dtype, device=self.X.device)
        for start in range(0, n, size):
            rows = slice(start, min(start + size, n))
            yield rows, torch.mm(self.X[rows], self.Y.T, out=S[: rows.stop - start])

    def log_sums(self, v: Tensor) -> Tensor:
        """log Σ_j exp(s_ij + v_j), shape (n,), float64."""
        v = v.to(self.dtype)
        return torch.cat([S.add_(v).logsumexp(-1) for _, S in self._blocks()]).double()

    def scale(self, a: Tensor, v: Tensor, clock: Clock | None) -> tuple[Tensor, Tensor] | None:
        """``log_sums`` and the column sums (m,) of the plan once its rows are scaled to a; None when time runs out."""
        logs, v = torch.empty_like(a), v.to(self.dtype)
        columns = torch.zeros(PARTS, len(v), dtype=torch.float64, device=v.device)
        for rows, S in self._blocks():
            if clock is not None and clock.expired:
                return None
            if v.device.type == "cpu":
                scale_rows(S.numpy(), v.numpy(), a[rows].numpy(), logs[rows].numpy(), columns.numpy())
            else:
                sums = S.add_(v).logsumexp(-1, keepdim=True)
                logs[rows] = sums[:, 0].double()
                columns[0] += (a[rows, None] * S.sub_(sums).exp_()).sum(0)
        return logs, columns.sum(0)


class _Mixing:
    """The next v of v ← v + residual(v), extrapolated (Anderson mixing: Walker and Ni, SIAM J. Numer. Anal., 2011).

    Of the combinations of the last few v that sum to one it takes that with the smallest residual, by least squares
    with weights b, but goes beyond the plain step by at most a radius. A plain step never lowers the dual value
    Σ a u + Σ b v; where an extrapolated one did, by more than rounding, the radius shrinks and the next is a plain step
    from the v before.
    """

    def __init__(self, b: Tensor) -> None:
        self.weights = b / b.sum()
        self.steps: list[tuple[Tensor, Tensor]] = []
        self.largest, self.plain, self.radius = -math.inf, torch.empty(0), RADIUS

    def next(self, v: Tensor, residual: Tensor, dual: float, rounding: float) -> Tensor:
        if not dual >= self.largest - rounding:
            self.steps.clear()
            self.largest, self.radius = -math.inf, self.radius / 4
            return self.plain
        self.largest, self.plain = max(self.largest, dual), v + residual
        self.steps = [*self.steps[-DEPTH:], (v, residual)]
        if len(self.steps) == 1:
            return self.plain
        self.radius *= 2
        V, R = (torch.stack(parts, 1) for parts in zip(*self.steps, strict=True))
        dV, dR = V.diff(dim=1), R.diff(dim=1)
        A = self.weights.sqrt().unsqueeze(-1) * dR
        scale = A.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
        Q, upper = torch.linalg.qr(A / scale)
        mix = torch.linalg.pinv(upper, rtol=1e-12) @ (Q.T @ (self.weights.sqrt() * residual))
        beyond = -(dV + dR) @ (mix / scale)
        beyond = beyond - (self.weights * beyond).sum()  # a constant changes nothing
        length = float(beyond.abs().max())
        return self.plain + beyond * min(1.0, self.radius / length) if 0 < length < math.inf else self.plain
