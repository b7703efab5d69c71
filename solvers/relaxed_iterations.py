"""Sinkhorn's iteration where the marginals are not fixed: unbalanced and partial transport.

The plan is T = exp((f_i + g_j − C_ij)/ε), as in the balanced problem. Given g, the rows of K_ij = exp((g_j − C_ij)/ε)
have the sums e^k, and f_i = ε (log p_i − k_i) where p is the row marginal that the problem wants for these sums
(scaling algorithms: Chizat et al., Math. Comp. 87, 2018): a compromise between weights and sums in the unbalanced
problem, the sums rescaled and cut in the partial one.

Both ways to run it take what those of the balanced problem take. A problem has converged when one more iteration would
change its row marginal by at most the tolerance × its mass in L1, the columns being as they should be.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import numba
import torch
from torch import Tensor

from solvers.kernels.relaxed import relaxed_plans
from solvers.partial import PartialTransportProblem
from solvers.problems import PlanProblem
from solvers.sinkhorn_iterations import ROUNDING, Iterated, safe_log, stretches
from solvers.solver import Clock
from solvers.unbalanced import UnbalancedTransportProblem


class RelaxedBatch(NamedTuple):
    """Problems to iterate: as a ``Batch``, and what holds the marginals besides the weights.

    ``held`` is the reach (ρ₁, ρ₂) of each unbalanced problem, (B, 2), or the mass s of each partial one, (B, 1).
    """

    C: Tensor
    a: Tensor
    b: Tensor
    reg: Tensor
    g: Tensor
    held: Tensor


def what_holds(problem: PlanProblem) -> Tensor:
    """``held`` of an unbalanced or partial problem, in its dtype."""
    if isinstance(problem, UnbalancedTransportProblem):
        return problem.reach.reshape(-1, 2)
    assert isinstance(problem, PartialTransportProblem)
    return problem.mass.reshape(-1, 1)


def is_priced(held: Tensor) -> bool:
    """Whether ``held`` is that of unbalanced problems, whose marginals have a price, or else of partial ones."""
    return held.shape[-1] == 2


# ------------------------------------------------------------------------------------------------- in the log domain


@dataclass(frozen=True)
class _Side(ABC):
    """One side of every problem of a batch: what marginal it wants. In units of ε, ``(B, n)`` or ``(B, 1)``."""

    log_weights: Tensor

    @abstractmethod
    def step(self, k: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The new potential of this side, the log marginal it gives, the change of the other side's potential, level.

        ``k`` are the log sums (B, n) of exp(g − C), ``level`` (B, 1) the log of the total mass.
        """

    def of(self, chosen: Tensor) -> Self:
        """The same side of the chosen problems only."""
        return type(self)(*(getattr(self, field.name)[chosen] for field in fields(self)))


@dataclass(frozen=True)
class _Priced(_Side):
    """A marginal at the price ρ KL(p | w): translation invariant Sinkhorn (Séjourné et al., AISTATS 2022, sec. 3).

    The potentials may move by f + λ and g − λ without changing the plan, and alternating steps settle that constant
    only slowly, by a factor of 1 − ε/ρ. The best λ, at which both sides ask for the same mass, is taken with each step.
    """

    per_reach: Tensor  # ε/ρ, 0 where the marginal is held exactly
    per_other: Tensor

    def step(self, k: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        used = self.log_weights > -torch.inf
        log_w, k = torch.where(used, self.log_weights, 0), torch.where(used, k, 0)
        weight = self.per_reach / (1 + self.per_reach)  # of the sums in the compromise: 0 for ρ = ∞, 1 for ρ → 0
        log_p = log_w / (1 + self.per_reach) + weight * k
        wanted = torch.where(used, log_p, -torch.inf).logsumexp(-1, keepdim=True)
        rate = self.per_other + weight
        shift = torch.where(rate > 0, (wanted - level) / torch.where(rate > 0, rate, 1), 0)
        log_p = log_p - weight * shift
        u = torch.where(used, log_p - k + shift, -torch.inf)
        return u, torch.where(used, log_p, -torch.inf), -shift, wanted - weight * shift


@dataclass(frozen=True)
class _Bounded(_Side):
    """A marginal of total s at most w: p = min(w, e^(k + t)) with the level t that makes the total right.

    t is found exactly: a node is cut from t = log w − k on, and between two such levels the total is linear in e^t.
    Benamou et al. (SIAM J. Sci. Comput. 37(2), 2015, sec. 5.2) project on the bounds and the total in turn, to the same
    limit; with both at once the iteration for s = Σa = Σb is Sinkhorn's own.
    """

    log_mass: Tensor

    def step(self, k: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        used = self.log_weights > -torch.inf
        cut = torch.where(used, self.log_weights - torch.where(used, k, 0), -torch.inf)
        levels, order = cut.sort(-1)
        w = (self.log_weights - self.log_mass).exp().gather(-1, order)  # in parts of s
        before = w.cumsum(-1) - w  # held by the nodes that are cut earlier
        rest = torch.where(used, k, -torch.inf).gather(-1, order)
        rest = rest.flip(-1).logcumsumexp(-1).flip(-1) - self.log_mass  # log of what the others hold at t = 0
        enough = before + (levels + rest).exp() >= 1
        enough[..., -1] = True  # the weights make up s, short of rounding
        i = enough.to(torch.uint8).argmax(-1, keepdim=True)
        t = (1 - before.gather(-1, i)).clamp(min=torch.finfo(w.dtype).tiny).log() - rest.gather(-1, i)
        t = torch.minimum(t, levels.gather(-1, i))
        t = torch.maximum(t, torch.where(i > 0, levels.gather(-1, (i - 1).clamp(min=0)), -torch.inf))
        u = torch.minimum(cut, t)
        return u, torch.where(used, u + torch.where(used, k, 0), -torch.inf), torch.zeros_like(t), level


def _sides(a: Tensor, b: Tensor, reg: Tensor, g: Tensor, held: Tensor) -> tuple[_Side, _Side, Tensor]:
    """Rows, columns and the log of the mass (B, 1) that the columns want at g; everything float64."""
    log_a, log_b = safe_log(a), safe_log(b)
    if not is_priced(held):
        return _Bounded(log_a, held.log()), _Bounded(log_b, held.log()), held.log()
    per_1, per_2 = (reg.unsqueeze(-1) / held).split(1, -1)
    level = torch.where(b > 0, log_b - torch.where(b > 0, g, 0) / held[:, 1:], -torch.inf).logsumexp(-1, keepdim=True)
    return _Priced(log_a, per_1, per_2), _Priced(log_b, per_2, per_1), level


def relax_in_log_domain(
    batch: RelaxedBatch, iterations: Tensor, tolerance: float, stop: Tensor, clock: Clock
) -> Iterated:
    """The iteration on the potentials themselves, in float64, on any device, through autograd."""
    dtype = batch.C.dtype
    C, a, b, reg, g, held = (x.double() for x in batch)
    M, eps = -C / reg[:, None, None], reg.unsqueeze(-1)
    rows, columns, level = _sides(a, b, reg, g, held)
    u, v = torch.where(a > 0, torch.zeros_like(a), -torch.inf), g / eps
    wanted = torch.zeros_like(u)
    iterations, converged = iterations.clone(), torch.zeros(len(C), dtype=torch.bool, device=C.device)
    active = torch.arange(len(C), device=C.device)  # the problems still running
    M_, u_, v_, level_ = M, u, v, level  # their part of everything
    first = True
    while len(active) > 0:
        k = torch.logsumexp(M_ + v_.unsqueeze(-2), -1)
        new_u, log_p, _, new_level = rows.step(k, level_)
        if not first:
            now, then = ((x.detach() - level_.detach()).exp() for x in (u_ + k, log_p))
            good = (now - then).abs().sum(-1) <= ROUNDING * tolerance
            out = good | (iterations[active] >= stop[active])
            out = torch.ones_like(out) if clock.expired else out
            if bool(out.any()):
                # Write back what is finished and go on with the rest.
                finished = active[out]
                u, v = u.index_copy(0, finished, u_[out]), v.index_copy(0, finished, v_[out])
                wanted = wanted.index_copy(0, finished, log_p.detach()[out].exp())
                converged[finished] = good[out]
                active, rows, columns = active[~out], rows.of(~out), columns.of(~out)
                M_, v_, new_u, new_level = (x[~out] for x in (M_, v_, new_u, new_level))
        k = torch.logsumexp(M_ + new_u.unsqueeze(-1), -2)
        v_, _, shift, level_ = columns.step(k, new_level)
        u_ = new_u + shift
        iterations[active] += 1
        first = False
    T = torch.exp(u.unsqueeze(-1) + v.unsqueeze(-2) + M).to(dtype)
    return _finished(T, eps * u, eps * v, iterations, converged, wanted, tolerance, held)


# ---------------------------------------------------------------------------------------------------------- compiled


def relax_compiled(batch: RelaxedBatch, iterations: Tensor, tolerance: float, stop: Tensor, clock: Clock) -> Iterated:
    """The iteration on the CPU, without a graph."""
    C = batch.C.detach().contiguous()
    a, b, reg, g, held = (x.detach().double() for x in batch[1:])
    eps, T = reg.unsqueeze(-1), torch.empty_like(C)
    log_a, log_b, V = torch.log(a).contiguous(), torch.log(b).contiguous(), (g / eps).contiguous()
    U, log_p = torch.empty_like(log_a), torch.empty_like(log_a)
    scaled = eps / held if is_priced(held) else held.log().expand(-1, 2).contiguous()
    iterations, converged = iterations.clone(), torch.zeros(len(C), dtype=torch.bool)
    given = [x.numpy() for x in (C, log_a, log_b, 1 / reg)]
    state = [x.numpy() for x in (U, V, T, log_p, iterations, converged)]
    chunks, limit = min(len(C), 8 * numba.get_num_threads()), ROUNDING * tolerance
    for until in stretches(C.numel(), iterations, converged, stop, clock):
        relaxed_plans(*given, is_priced(held), scaled.numpy(), limit, until, *state, chunks)
    return _finished(T, eps * U, eps * V, iterations, converged, log_p.exp(), tolerance, held)


def _finished(
    T: Tensor,
    f: Tensor,
    g: Tensor,
    iterations: Tensor,
    converged: Tensor,
    wanted: Tensor,
    tolerance: float,
    held: Tensor,
) -> Iterated:
    """What the iterations return, from the row marginal wanted in the end.

    A plan whose rounded entries miss the tolerance has not converged. Of a partial problem the constant that may move
    between f and g is chosen so that max g = 0: then g is the price of the bounds on the columns, and max f is the
    multiplier of the total mass.
    """
    rows, mass = T.detach().sum(-1, dtype=torch.float64), wanted.sum(-1)
    converged = converged & ((rows - wanted).abs().sum(-1) <= tolerance * mass)
    if not is_priced(held):
        top = g.amax(-1, keepdim=True)
        f, g = f + top, g - top
    return Iterated(T, f, g, iterations, converged)
