"""The gradient of Sinkhorn's plan and potentials from the fixed point alone (the implicit function theorem)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from solvers.kernels.schur import DAMPING
from solvers.kernels.sinkhorn_gradient import implicit_gradients
from solvers.sinkhorn_iterations import Iterated
from solvers.solver import threads_of_torch

SMALL = 256  # the shorter side up to which the compiled loops beat the library's blocked ones
Run = Callable[[Tensor, Tensor, Tensor, Tensor], Iterated]


class Implicit(torch.autograd.Function):
    """T, f and g of C (B, n, m), a (B, n), b (B, m) and ε (B,), whose memory does not grow with the iterations.

    Differentiating T 1 = a and Tᵀ 1 = b with T = exp((f + g − C)/ε) gives, for M = (f + g − C)/ε = log T,
    H (df, dg) = (ε da + T∘dC 1 + T∘M 1 dε, ε db + (T∘dC)ᵀ 1 + (T∘M)ᵀ 1 dε) with the symmetric
    H = [[diag(T 1), T], [Tᵀ, diag(Tᵀ 1)]]. With W = ∂L/∂T the loss reaches f and g directly and through T,
    p = ∂L/∂f + (W∘T) 1/ε and q = ∂L/∂g + (W∘T)ᵀ 1/ε; for H (x, y) = (p, q) the gradients are
    ∂L/∂C = T∘(x_i + y_j − W/ε), ∂L/∂a = ε x, ∂L/∂b = ε y and ∂L/∂ε = Σ M∘∂L/∂C. H is singular along (1, −1), the
    constant that may move between f and g; it is fixed by holding Σ_j b_j g_j.
    """

    @staticmethod
    def forward(ctx: Any, C: Tensor, a: Tensor, b: Tensor, reg: Tensor, run: Run) -> tuple[Tensor, ...]:
        T, f, g, iterations, converged = run(C, a, b, reg)
        ctx.save_for_backward(T, reg)
        ctx.mark_non_differentiable(iterations, converged)
        return T, f, g, iterations, converged

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, W: Tensor, df: Tensor, dg: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        T, reg = ctx.saved_tensors
        small = T.device.type == "cpu" and min(T.shape[-2:]) <= SMALL
        gradients = (_compiled if small else _dense)(T, W, df.double(), dg.double(), reg, ctx.needs_input_grad[3])
        grad_C, x, y, grad_reg = gradients
        eps = reg.unsqueeze(-1)
        return grad_C, (eps * x).to(T.dtype), (eps * y).to(T.dtype), grad_reg, None


Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None]


def _compiled(T: Tensor, W: Tensor, p: Tensor, q: Tensor, reg: Tensor, to_reg: bool) -> Gradients:
    """∂L/∂C, x, y and ∂L/∂ε of small problems on the CPU, one thread a problem."""
    if T.shape[-2] < T.shape[-1]:
        grad_C, y, x, grad_reg = _compiled(T.mT.contiguous(), W.mT, q, p, reg, to_reg)
        return grad_C.mT, x, y, grad_reg
    grad_C, x, y = torch.empty_like(T), torch.empty_like(p), torch.empty_like(q)
    grad_reg = torch.zeros_like(reg) if to_reg else reg.new_zeros(0)
    given = (T, W.contiguous(), p.contiguous(), q.contiguous(), reg.detach(), grad_C, x, y, grad_reg)
    chunks = min(len(T), 8 * torch.get_num_threads())
    with threads_of_torch():
        implicit_gradients(*(t.numpy() for t in given), chunks)
    return grad_C, x, y, grad_reg if to_reg else None


def _dense(T: Tensor, W: Tensor, p: Tensor, q: Tensor, reg: Tensor, to_reg: bool) -> Gradients:
    """The same by library routines: for large problems, and on the GPU."""
    dtype, T = T.dtype, T.double()
    WT = W * T / reg[..., None, None]
    p, q = p + WT.sum(-1), q + WT.sum(-2)
    singular = torch.ones(len(T), dtype=torch.bool, device=T.device)
    x, y = (z.squeeze(-1) for z in solve_symmetric(T, T.sum(-1), T.sum(-2), p.unsqueeze(-1), q.unsqueeze(-1), singular))
    grad_C = T * (x.unsqueeze(-1) + y.unsqueeze(-2)) - WT
    grad_reg = torch.where(T > 0, torch.log(T) * grad_C, 0).sum((-2, -1)) if to_reg else None
    return grad_C.to(dtype), x, y, grad_reg


def solve_symmetric(T: Tensor, r: Tensor, c: Tensor, P: Tensor, Q: Tensor, singular: Tensor) -> tuple[Tensor, Tensor]:
    """(X, Y) with r∘X + T Y = P and Tᵀ X + c∘Y = Q, by the Schur complement of the smaller side.

    Shapes: T (B, n, m), r (B, n), c (B, m), P (B, n, k), Q (B, m, k). A node with r = 0 or c = 0 takes no part: its row
    of T, P or Q is zero, and so is its solution. Where ``singular`` (B,), r and c are the sums of T and the matrix has
    the null vector (1, −1): the answer is that of the nearest system that has one, with Σ c Y = 0.
    """
    if T.shape[-2] < T.shape[-1]:
        Y, X = solve_symmetric(T.mT, c, r, Q, P, singular)
        return X, Y
    inverse_r = torch.where(r > 0, 1 / r, 0).unsqueeze(-1)
    null = torch.where(singular.unsqueeze(-1), c, 0).unsqueeze(-1)
    total = torch.where(singular, c.sum(-1), 1)[..., None, None]
    Q = Q - (Q.sum(-2, keepdim=True) - P.sum(-2, keepdim=True)) * null / total  # the part H can reach
    scaled = T * inverse_r
    S = torch.diag_embed(c) - T.mT @ scaled + null @ null.mT / total
    # Nearly decoupled plans (small ε) leave directions without curvature: damp them at rounding level.
    damping = torch.where(c > 0, DAMPING * c.amax(-1, keepdim=True), 1)
    factor = torch.linalg.cholesky_ex(S + torch.diag_embed(damping))[0]
    Y = torch.cholesky_solve(Q - scaled.mT @ P, factor)
    return inverse_r * (P - T @ Y), Y
