"""Both navigators of conditional transport, their costs and their plan, with closed-form gradients.

Every function works on a batch of B problems: matrices s, c (B, n, m), weights θ, u (B, n) and β, v (B, m), weights in
the navigators p (B, n) and q (B, m) of which the largest is 1, temperatures τ (B,) in float64. The equations are in
``solvers.conditional_transport``.
"""

from __future__ import annotations

from typing import Any

import numba
import torch
from torch import Tensor

from solvers.kernels.conditional_transport import transport_costs, transport_gradients
from solvers.kernels.navigators import GIVEN, GREATEST, LEAST, REACH32, REACH64
from solvers.solver import threads_of_torch

# ------------------------------------------------------------------------------------------------------ on the CPU


def _compiled_costs(forms: tuple[int, int], *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether each problem has one reference, and (reference, sum, mean cost) of every x (B, 3, n) and y (B, 3, m)."""
    S = tensors[0]
    batch, n, m = S.shape
    single = torch.empty(batch, dtype=torch.bool)
    stats_x, stats_y = S.new_empty(batch, 3, n), S.new_empty(batch, 3, m)
    arrays = (t.detach().numpy() for t in (*tensors, single, stats_x, stats_y))
    with threads_of_torch():
        transport_costs(forms, *arrays, min(batch, 8 * numba.get_num_threads()))
    return single, stats_x, stats_y


def _compiled_gradients(forms: tuple[int, int], *tensors: Tensor, wanted: str) -> tuple[Any, ...]:
    """Gradients to S, C, p, q, τ, the norms of x and those of y; of the first five, those that are wanted ("SCpqt")."""
    S = tensors[0]
    batch, n, m = S.shape
    given = forms[0] == GIVEN
    to_S = S.new_empty(batch, n if set("Spqt") & set(wanted) else 0, m)
    to_C = S.new_empty(batch, n if "C" in wanted else 0, m)
    to_p, own_x = S.new_zeros(batch, n), S.new_zeros(batch, 0 if given else n)
    sizes = m if "q" in wanted else 0, 1 if "t" in wanted else 0, 0 if given else m
    to_q, to_tau, own_y = (S.new_zeros(batch, size, dtype=torch.float64) for size in sizes)
    out = (to_S, to_C, to_p, to_q, to_tau, own_x, own_y)
    arrays = (t.detach().numpy() for t in (*tensors, *out))
    with threads_of_torch():
        transport_gradients(forms, *arrays, min(batch, 8 * numba.get_num_threads()))
    out = (to_S, to_C, to_p, to_q.to(S.dtype), to_tau.squeeze(-1), own_x, own_y.to(S.dtype))
    return *(t if k in wanted else None for t, k in zip(out, "SCpqt", strict=False)), *out[5:]


def _wanted(needed: tuple[bool, ...], letters: str) -> str:
    return "".join(letter for letter, need in zip(letters, needed, strict=False) if need)


def _no_norms(S: Tensor) -> tuple[Tensor, Tensor]:
    return S.new_empty(len(S), 2, 0), S.new_empty(len(S), 2, 0)


class Costs(torch.autograd.Function):
    """(L_f, L_b), each (B,), of matrices s, c (B, n, m) with θ, β, p, q and τ."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, c: Tensor, *sides: Tensor) -> tuple[Tensor, Tensor]:
        theta, beta, p, q, tau = sides
        stats = _compiled_costs((GIVEN, GIVEN), s, c, *_no_norms(s), p, q, tau)
        ctx.save_for_backward(s, c, *sides, *stats)
        return _mean(theta, stats[1]), _mean(beta, stats[2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, forward: Tensor, backward: Tensor) -> tuple[Tensor | None, ...]:
        s, c, theta, beta, p, q, tau, *stats = ctx.saved_tensors
        forward, backward = forward.unsqueeze(-1), backward.unsqueeze(-1)
        tensors = (s, c, *_no_norms(s), forward * theta, backward * beta, p, q, tau, *stats)
        wanted = _wanted(ctx.needs_input_grad, "SC..pqt")
        to_s, to_c, *rest = _compiled_gradients((GIVEN, GIVEN), *tensors, wanted=wanted)
        return to_s, to_c, forward * stats[1][:, 2], backward * stats[2][:, 2], *rest[:3]


class FeatureCosts(torch.autograd.Function):
    """(L_f, L_b), each (B,), of features x (B or 1, n, d) and y (B or 1, m, d) with θ, β, p, q and τ."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        *sides, forms = rest
        theta, beta, p, q, tau = sides
        G = (x @ y[0].mT if len(y) == 1 else x @ y.mT).expand(len(theta), -1, -1).contiguous()
        norms = tuple(_norms(f).expand(len(theta), -1, -1).contiguous() for f in (x, y))
        stats = _compiled_costs(forms, G, G, *norms, p, q, tau)
        ctx.save_for_backward(x, y, *sides, G, *norms, *stats)
        ctx.forms = forms
        return _mean(theta, stats[1]), _mean(beta, stats[2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, forward: Tensor, backward: Tensor) -> tuple[Tensor | None, ...]:
        x, y, theta, beta, p, q, tau, G, norms_x, norms_y, *stats = ctx.saved_tensors
        forward, backward = forward.unsqueeze(-1), backward.unsqueeze(-1)
        tensors = (G, G, norms_x, norms_y, forward * theta, backward * beta, p, q, tau, *stats)
        wanted = "S" + _wanted(ctx.needs_input_grad, "....pqt")
        to_G, _, *rest, own_x, own_y = _compiled_gradients(ctx.forms, *tensors, wanted=wanted)
        to_x = _pulled(to_G, own_x, x, y) if ctx.needs_input_grad[0] else None
        to_y = _pulled(to_G.mT, own_y, y, x) if ctx.needs_input_grad[1] else None
        return to_x, to_y, forward * stats[1][:, 2], backward * stats[2][:, 2], *rest, None


class _Plan(torch.autograd.Function):
    """u_n π_f(m|n) + π_b(n|m) v_m, shape (B, n, m), of s with u (B, n), v (B, m), p, q and τ.

    It is the gradient of the costs to c, and ⟨G, plan⟩ is what they are for c = G: hence its own gradient.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, u: Tensor, v: Tensor, p: Tensor, q: Tensor, tau: Tensor) -> Tensor:
        stats = _compiled_costs((GIVEN, GIVEN), s, s, *_no_norms(s), p, q, tau)
        ctx.save_for_backward(s, u, v, p, q, tau)
        return _compiled_gradients((GIVEN, GIVEN), s, s, *_no_norms(s), u, v, p, q, tau, *stats, wanted="C")[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor | None, ...]:
        s, u, v, p, q, tau = ctx.saved_tensors
        G = G.contiguous()
        stats = _compiled_costs((GIVEN, GIVEN), s, G, *_no_norms(s), p, q, tau)
        tensors = (s, G, *_no_norms(s), u, v, p, q, tau, *stats)
        to_s, _, *rest = _compiled_gradients((GIVEN, GIVEN), *tensors, wanted=_wanted(ctx.needs_input_grad, "S..pqt"))
        return to_s, stats[1][:, 2], stats[2][:, 2], *rest[:3]


def _mean(weights: Tensor, stats: Tensor) -> Tensor:
    return (weights * stats[:, 2]).sum(-1, dtype=torch.float64).to(weights.dtype)


def _norms(f: Tensor) -> Tensor:
    """Inverse norms, 0 of a zero vector, and squared norms: (B, n, d) to (B, 2, n)."""
    norm = torch.linalg.vector_norm(f, dim=-1)
    return torch.stack((torch.where(norm > 0, 1 / norm, 0), norm.square()), -2)


def _pulled(to_G: Tensor, own: Tensor, f: Tensor, others: Tensor) -> Tensor:
    """Σ_m ∂L/∂G_nm others_m + own_n f_n, summed over the batch where it shares the features f."""
    if len(f) == len(to_G):
        return (to_G @ (others[0] if len(others) == 1 else others)).addcmul_(own.unsqueeze(-1), f)
    to_f = to_G.transpose(0, 1).flatten(1) @ others.flatten(0, 1)
    return to_f.unsqueeze(0).addcmul_(own.sum(0).unsqueeze(-1), f)


# ------------------------------------------------------------------------------------------------ on other devices


def _plain_navigators(s: Tensor, p: Tensor, q: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """π_f and π_b by plain operations of torch, with the same gradients as the compiled ones."""
    tau = tau.to(s.dtype)[:, None, None]
    _, heavy, light = REACH32 if s.dtype == torch.float32 else REACH64
    maps = []
    for weights, dim in ((q.unsqueeze(-2), -1), (p.unsqueeze(-1), -2)):
        top = (s + tau * weights.log()).detach().amax(dim, keepdim=True)
        t = torch.minimum((s - top) / tau, torch.where(weights > 0, heavy, light))
        e = weights * t.exp()
        maps.append(e / e.sum(dim, keepdim=True))
    return maps[0], maps[1]


def plain_costs(
    s: Tensor, c: Tensor, theta: Tensor, beta: Tensor, p: Tensor, q: Tensor, tau: Tensor
) -> tuple[Tensor, Tensor]:
    """(L_f, L_b), each (B,), of matrices, by plain operations of torch."""
    forward, backward = _plain_navigators(s, p, q, tau)
    return (theta * (forward * c).sum(-1)).sum(-1), (beta * (backward * c).sum(-2)).sum(-1)


def plan_of(s: Tensor, u: Tensor, v: Tensor, p: Tensor, q: Tensor, tau: Tensor) -> Tensor:
    """u_n π_f(m|n) + π_b(n|m) v_m, shape (B, n, m)."""
    if s.device.type == "cpu":
        return _Plan.apply(s.contiguous(), u, v, p, q, tau)
    forward, backward = _plain_navigators(s, p, q, tau)
    return u.unsqueeze(-1) * forward + backward * v.unsqueeze(-2)


def nearness(x: Tensor, y: Tensor, kind: str) -> Tensor:
    """The affinity of features, (B, n, m)."""
    if kind == "sqeuclidean":
        squares = x.square().sum(-1).unsqueeze(-1) + y.square().sum(-1).unsqueeze(-2)
        return (2 * x @ y.mT - squares).clamp(max=0)
    if kind == "cosine":
        x, y = torch.nn.functional.normalize(x, dim=-1), torch.nn.functional.normalize(y, dim=-1)
    return x @ y.mT


def distance(x: Tensor, y: Tensor, kind: str) -> Tensor:
    """The cost of features, (B, n, m)."""
    if kind == "exponential":
        return torch.exp(-(x @ y.mT)).clamp(LEAST, GREATEST)
    near = nearness(x, y, kind)
    return 1 - near if kind == "cosine" else -near
