"""The gradient of unbalanced and partial Sinkhorn from the fixed point alone (the implicit function theorem)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from solvers.relaxed_iterations import is_priced
from solvers.sinkhorn_gradient import solve_symmetric
from solvers.sinkhorn_iterations import Iterated

Run = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Iterated]


class RelaxedImplicit(torch.autograd.Function):
    """T, f and g of C (B, n, m), a (B, n), b (B, m), ε (B,) and what holds the marginals, (B, 2) or (B, 1).

    For M = (f + g − C)/ε = log T the loss reaches f and g directly and through T, with W = ∂L/∂T:
    p = ∂L/∂f + (W∘T) 1/ε and q = ∂L/∂g + (W∘T)ᵀ 1/ε.

    The fixed point of the unbalanced problem is T 1 = a e^{−f/ρ₁} and Tᵀ 1 = b e^{−g/ρ₂}. Its differential is
    H (df, dg) = (T∘(dC + M dε) 1 + ε T 1∘(da/a + f/ρ₁² dρ₁), …) with the symmetric
    H = [[diag(T 1)(1 + ε/ρ₁), T], [Tᵀ, diag(Tᵀ 1)(1 + ε/ρ₂)]]. For H (x, y) = (p, q) the gradient to C is
    T∘(x_i + y_j − W/ε), to a it is ε x (T 1)/a, to ρ₁ it is ε Σ x (T 1) f/ρ₁², and to ε it is Σ M∘∂L/∂C.

    In the partial problem only the nodes that are cut, rows A and columns B, have a potential of their own; the others
    share that of the total mass, λ. T_A 1 = a_A, Tᵀ_B 1 = b_B and Σ T = s give the same kind of system, bordered by λ.
    """

    @staticmethod
    def forward(ctx: Any, C: Tensor, a: Tensor, b: Tensor, reg: Tensor, held: Tensor, run: Run) -> tuple[Tensor, ...]:
        T, f, g, iterations, converged = run(C, a, b, reg, held)
        ctx.save_for_backward(T, f, g, a, b, reg, held)
        ctx.mark_non_differentiable(iterations, converged)
        return T, f, g, iterations, converged

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, W: Tensor, df: Tensor, dg: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        T, f, g, a, b, reg, held = (x.double() for x in ctx.saved_tensors)
        WT = W * T / reg[:, None, None]
        p = torch.where(a > 0, df.double() + WT.sum(-1), 0)
        q = torch.where(b > 0, dg.double() + WT.sum(-2), 0)
        backward = _unbalanced if is_priced(held) else _partial
        z, grad_a, grad_b, grad_held = backward(T, f, g, a, b, reg.unsqueeze(-1), held, p, q)
        grad_C = T * z - WT
        grad_reg = torch.where(T > 0, torch.log(T) * grad_C, 0).sum((-2, -1))
        dtypes = [x.dtype for x in ctx.saved_tensors]
        grads = zip((grad_C, grad_a, grad_b, grad_reg, grad_held), (dtypes[0], *dtypes[3:]), strict=True)
        return (*(x.to(dtype) for x, dtype in grads), None)


def _unbalanced(
    T: Tensor, f: Tensor, g: Tensor, a: Tensor, b: Tensor, eps: Tensor, reach: Tensor, p: Tensor, q: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_i + y_j (B, n, m) and the gradients to a, b and (ρ₁, ρ₂)."""
    r, c = T.sum(-1), T.sum(-2)
    per = 1 / reach
    hard = (per == 0).all(-1)
    x, y = (
        solution.squeeze(-1)
        for solution in solve_symmetric(
            T, r * (1 + eps * per[:, :1]), c * (1 + eps * per[:, 1:]), p.unsqueeze(-1), q.unsqueeze(-1), hard
        )
    )
    grad_a, grad_b = (eps * z * s / torch.where(w > 0, w, 1) for z, s, w in ((x, r, a), (y, c, b)))
    carried = [torch.where(w > 0, z * s * h, 0).sum(-1) for z, s, h, w in ((x, r, f, a), (y, c, g, b))]
    return x.unsqueeze(-1) + y.unsqueeze(-2), grad_a, grad_b, eps * torch.stack(carried, -1) * per.square()


def _partial(
    T: Tensor, f: Tensor, g: Tensor, a: Tensor, b: Tensor, eps: Tensor, mass: Tensor, p: Tensor, q: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_i + y_j + z (B, n, m) and the gradients to a, b and s."""
    r, c, s = T.sum(-1), T.sum(-2), T.sum((-2, -1))
    cut_r, cut_c = f < f.amax(-1, keepdim=True), g < g.amax(-1, keepdim=True)  # the others share the largest potential
    A, B = cut_r.double(), cut_c.double()
    right = torch.stack([A * p, A * r], -1), torch.stack([B * q, B * c], -1)
    X, Y = solve_symmetric(
        T * A.unsqueeze(-1) * B.unsqueeze(-2), A * r, B * c, *right, torch.zeros_like(s, dtype=torch.bool)
    )
    (x, x_border), (y, y_border) = X.unbind(-1), Y.unbind(-1)
    left = s - (A * r * x_border).sum(-1) - (B * c * y_border).sum(-1)
    z = (p.sum(-1) - (A * r * x).sum(-1) - (B * c * y).sum(-1)) / torch.maximum(left, 1e-14 * s)
    z = z.unsqueeze(-1)
    x, y = x - z * x_border, y - z * y_border
    return x.unsqueeze(-1) + y.unsqueeze(-2) + z.unsqueeze(-1), eps * x, eps * y, eps * z
