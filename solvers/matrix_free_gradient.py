"""The gradient of Sinkhorn's potentials between point clouds, by the implicit function theorem, without a stored plan.

As in ``sinkhorn_gradient``, H (df, dg) = (ε da + T∘dC 1 + T∘M 1 dε, ε db + (T∘dC)ᵀ 1 + (T∘M)ᵀ 1 dε) with M = log T and
H = [[diag(r), T], [Tᵀ, diag(c)]] for the row and column sums r and c. For H (x, y) = (∂L/∂f, ∂L/∂g) and
W_ij = T_ij (x_i + y_j) the gradients are ∂L/∂C = W, ∂L/∂a = ε x, ∂L/∂b = ε y and ∂L/∂ε = Σ M∘W. Here y comes from the
Schur complement, (diag(c) − Tᵀ diag(1/r) T) y = q − Tᵀ (p/r), by conjugate gradients with one pass over T each.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from solvers.lazy_plan import FactoredCost, LazyPlan

Run = Callable[..., list[Tensor]]


class Implicit(torch.autograd.Function):
    """f (B, n) and g (B, m), float64, of a factored cost with batch B, a (B, n), b (B, m) and ε (B,)."""

    @staticmethod
    def forward(
        ctx: Any,
        X: Tensor,
        Y: Tensor,
        alpha: Tensor,
        beta: Tensor,
        a: Tensor,
        b: Tensor,
        reg: Tensor,
        run: Run,
        most: int,
    ) -> tuple[Tensor, ...]:
        f, g = run(X, Y, alpha, beta, a, b, reg)
        ctx.save_for_backward(X, Y, alpha, beta, f, g, reg)
        ctx.most, ctx.dtype = most, a.dtype
        return f, g

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, df: Tensor, dg: Tensor) -> tuple[Tensor | None, ...]:
        X, Y, alpha, beta, f, g, reg = ctx.saved_tensors
        precision = 1e-10 if ctx.dtype == torch.float64 else 1e-6
        plans = zip(FactoredCost(X, Y, alpha, beta).problems(), f, g, reg, strict=True)
        found = [
            _gradients(LazyPlan(*parts, torch.float64), p, q, precision, ctx.most)
            for parts, p, q in zip(plans, df, dg, strict=True)
        ]
        *factors, da, db, d_reg = (torch.stack(of_each) for of_each in zip(*found, strict=True))
        return *factors, da.to(ctx.dtype), db.to(ctx.dtype), d_reg, None, None


def _blocks(plan: LazyPlan) -> Iterator[tuple[slice, Tensor]]:
    for start, stop in plan.cost.blocks():
        yield slice(start, stop), plan.rows(start, stop)


def _gradients(plan: LazyPlan, p: Tensor, q: Tensor, precision: float, most: int) -> tuple[Tensor, ...]:
    """Gradients with respect to X, Y, α, β, a, b and ε of one problem, from those to f and g."""
    x, y = _solve(plan, p, q, precision, most)
    C, reg = plan.cost, plan.reg
    d_X, d_Y, d_alpha, d_beta, d_reg = (torch.zeros_like(t) for t in (C.X, C.Y, C.alpha, C.beta, reg))
    for rows, T in _blocks(plan):
        W = T * (x[rows, None] + y)
        d_X[rows], d_alpha[rows] = -W @ C.Y, W.sum(-1)
        d_Y -= W.T @ C.X[rows]
        d_beta += W.sum(-2)
        d_reg += torch.where(T > 0, torch.log(T) * W, 0).sum()
    return d_X, d_Y, d_alpha, d_beta, reg * x, reg * y, d_reg


def _solve(plan: LazyPlan, p: Tensor, q: Tensor, precision: float, most: int) -> tuple[Tensor, Tensor]:
    """(x, y) with r∘x + T y = p and Tᵀ x + c∘y = q, to a relative residual; the constant of y is arbitrary."""
    inverse_r, c = torch.zeros_like(p), torch.zeros_like(q)
    for rows, T in _blocks(plan):
        sums = T.sum(-1)
        inverse_r[rows] = torch.where(sums > 0, 1 / sums, 0)
        c += T.sum(-2)
    p, q = torch.where(inverse_r > 0, p, 0), torch.where(c > 0, q, 0)
    inverse_c = torch.where(c > 0, 1 / c, 0)
    q = q - (q.sum() - p.sum()) * c / c.sum()  # the part H can reach

    def eliminated(p: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """x = (p − T y)/r and Tᵀ x, in one pass."""
        x, product = torch.empty_like(p), torch.zeros_like(y)
        for rows, T in _blocks(plan):
            x[rows] = inverse_r[rows] * (p[rows] - T @ y)
            product += T.T @ x[rows]
        return x, product

    y = torch.zeros_like(q)
    residual = q - eliminated(p, y)[1]
    direction, before = torch.zeros_like(q), 1.0
    goal = precision**2 * float((q * inverse_c * q).sum() + (p * inverse_r * p).sum())
    for _ in range(most):
        scaled = inverse_c * residual
        now = float(scaled @ residual)
        if now <= goal:
            break
        direction = scaled + (now / before) * direction
        curved = c * direction + eliminated(torch.zeros_like(p), direction)[1]
        step = now / float(direction @ curved)
        y, residual, before = y + step * direction, residual - step * curved, now
    else:
        warnings.warn(
            f"the gradient's linear system is solved to a relative residual of {(now / goal) ** 0.5 * precision:.1g} "
            f"only, after {most} iterations; allow more max_iterations",
            RuntimeWarning,
            stacklevel=2,
        )
    return eliminated(p, y)[0], y
