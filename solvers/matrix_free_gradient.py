"""Gradients of Sinkhorn between point clouds without a stored plan: of its value, and of its potentials.

T = exp(M) with M_ij = (f_i + g_j − C_ij)/ε and C_ij = α_i + β_j − X_i · Y_j. As in ``sinkhorn_gradient``, the implicit
function theorem gives H (df, dg) = (ε da + T∘dC 1 + T∘M 1 dε, ε db + (T∘dC)ᵀ 1 + (T∘M)ᵀ 1 dε) with
H = [[diag(r), T], [Tᵀ, diag(c)]] for the row and column sums r and c. For H (x, y) = (∂L/∂f, ∂L/∂g) and
W_ij = T_ij (x_i + y_j) the gradients are ∂L/∂C = W, ∂L/∂a = ε x, ∂L/∂b = ε y and ∂L/∂ε = Σ M∘W. Here y comes from the
Schur complement, (diag(c) − Tᵀ diag(1/r) T) y = q − Tᵀ (p/r), by conjugate gradients with one pass over T each.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from solvers.lazy_plan import FactoredCost, LazyPlan

Potentials = tuple[Tensor, Tensor]
Gradients = tuple[Tensor, ...]


class Implicit(torch.autograd.Function):
    """f ``(*batch, n)`` and g ``(*batch, m)``, float64, that ``find`` has for the cost's factors, a, b and ε."""

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
        find: Callable[[], Potentials],
        most: int,
    ) -> Potentials:
        f, g = find()
        ctx.save_for_backward(X, Y, alpha, beta, f, g, reg)
        ctx.most, ctx.dtype = most, a.dtype
        return f, g

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, df: Tensor, dg: Tensor) -> tuple[Tensor | None, ...]:
        precision = 1e-10 if ctx.dtype == torch.float64 else 1e-6
        *cost, f, g, reg = ctx.saved_tensors

        def gradients(plan: LazyPlan, p: Tensor, q: Tensor) -> Gradients:
            x, y = _solve(plan, p, q, precision, ctx.most)
            *factors, d_reg = _through_cost(plan, lambda rows, C, T: (T * (x[rows, None] + y),) * 2)
            return *factors, plan.reg * x, plan.reg * y, d_reg

        found = _of_each(gradients, ctx.saved_tensors, df, dg)
        *factors, da, db, d_reg = (d.reshape(t.shape) for d, t in zip(found, (*cost, f, g, reg), strict=True))
        return *factors, da.to(ctx.dtype), db.to(ctx.dtype), d_reg, None, None


class Value(torch.autograd.Function):
    """⟨C, T⟩ of the cost's factors, f, g and ε, shape ``(*batch,)``, which is passed because it is known already."""

    @staticmethod
    def forward(
        ctx: Any, X: Tensor, Y: Tensor, alpha: Tensor, beta: Tensor, f: Tensor, g: Tensor, reg: Tensor, value: Tensor
    ) -> Tensor:
        ctx.save_for_backward(X, Y, alpha, beta, f, g, reg)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_value: Tensor) -> tuple[Tensor | None, ...]:
        def gradients(plan: LazyPlan, d: Tensor) -> Gradients:
            df, dg = torch.zeros_like(plan.f), torch.zeros_like(plan.g)

            def weigh(rows: slice, C: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
                moved = d * C * T / plan.reg
                df[rows] = moved.sum(-1)
                dg.add_(moved.sum(-2))
                return d * T - moved, -moved

            *factors, d_reg = _through_cost(plan, weigh)
            return *factors, df, dg, d_reg

        found = _of_each(gradients, ctx.saved_tensors, d_value)
        return *(d.reshape(t.shape) for d, t in zip(found, ctx.saved_tensors, strict=True)), None


def _of_each(gradients: Callable[..., Gradients], parts: Sequence[Tensor], *given: Tensor) -> Iterator[Tensor]:
    """The gradients of every problem of a batch, stacked; ``parts`` are the cost's factors, f, g and ε."""
    lead = parts[-1].ndim
    flat = (t.reshape(-1, *t.shape[lead:]) for t in (*parts, *given))
    found = [
        gradients(LazyPlan(FactoredCost(X, Y, alpha, beta), f, g, reg, torch.float64), *of_one)
        for X, Y, alpha, beta, f, g, reg, *of_one in zip(*flat, strict=True)
    ]
    return (torch.stack(of_each) for of_each in zip(*found, strict=True))


def _through_cost(plan: LazyPlan, weigh: Callable[[slice, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Gradients:
    """Gradients with respect to X, Y, α, β and ε, from rows of ∂L/∂C and of the V in ∂L/∂ε = Σ M∘V."""
    C = plan.cost
    d_X, d_Y, d_alpha, d_beta, d_reg = (torch.zeros_like(t) for t in (C.X, C.Y, C.alpha, C.beta, plan.reg))
    for start, stop in C.blocks():
        rows, cost = slice(start, stop), C.rows(start, stop)
        T = plan.block(start, stop, cost)
        W, V = weigh(rows, cost, T)
        d_X[rows], d_alpha[rows] = -W @ C.Y, W.sum(-1)
        d_Y -= W.T @ C.X[rows]
        d_beta += W.sum(-2)
        d_reg += torch.where(T > 0, torch.log(T) * V, 0).sum()
    return d_X, d_Y, d_alpha, d_beta, d_reg


def _solve(plan: LazyPlan, p: Tensor, q: Tensor, precision: float, most: int) -> tuple[Tensor, Tensor]:
    """(x, y) with r∘x + T y = p and Tᵀ x + c∘y = q, to a relative residual; the constant of y is arbitrary."""
    inverse_r, c = torch.zeros_like(p), torch.zeros_like(q)
    for start, stop in plan.cost.blocks():
        T = plan.rows(start, stop)
        sums = T.sum(-1)
        inverse_r[start:stop] = torch.where(sums > 0, 1 / sums, 0)
        c += T.sum(-2)
    inverse_c = torch.where(c > 0, 1 / c, 0)
    p, q = torch.where(inverse_r > 0, p, 0), torch.where(c > 0, q, 0)
    q = q - (q.sum() - p.sum()) * c / c.sum()  # the part H can reach

    def eliminated(p: Tensor | float, y: Tensor) -> tuple[Tensor, Tensor]:
        """x = (p − T y)/r and Tᵀ x, in one pass."""
        x, product = p - torch.zeros_like(inverse_r), torch.zeros_like(y)
        for start, stop in plan.cost.blocks():
            rows, T = slice(start, stop), plan.rows(start, stop)
            x[rows] = inverse_r[rows] * (x[rows] - T @ y)
            product += T.T @ x[rows]
        return x, product

    y, direction, before = torch.zeros_like(q), torch.zeros_like(q), 1.0
    residual = q - eliminated(p, y)[1]
    goal = precision**2 * float((q * inverse_c * q).sum() + (p * inverse_r * p).sum())
    for _ in range(most):
        scaled = inverse_c * residual
        now = float(scaled @ residual)
        if now <= goal:
            break
        direction = scaled + (now / before) * direction
        curved = c * direction + eliminated(0.0, direction)[1]
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
