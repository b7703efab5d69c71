"""Unbalanced optimal transport: mass may be destroyed and created, at a price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers import validation
from solvers.problems import PlanProblem, paired
from solvers.validation import ArrayLike, InvalidProblem


@dataclass(frozen=True, eq=False, init=False)
class UnbalancedTransportProblem(PlanProblem):
    """Minimise ⟨C, T⟩ + ρ₁ KL(T 1 | a) + ρ₂ KL(Tᵀ 1 | b) over T ≥ 0, with KL(p | q) = Σ p log(p/q) − p + q.

    The two totals need not agree (Liero, Mielke and Savaré, Inventiones 2018; Chizat et al., Math. Comp. 2018). The
    reach says how far mass is carried rather than destroyed: at a cost beyond about ρ₁ + ρ₂ it is not worth carrying.
    An infinite ρ holds that side to its weights exactly: on one side that is semi-relaxed transport, on both the
    balanced problem. A node without weight sends or takes nothing.

    Args:
        cost: C, shape ``(*batch, n, m)``, finite.
        a: source weights, shape ``(*batch, n)`` or ``(n,)``, non-negative; uniform with total 1 when left out.
        b: target weights, shape ``(*batch, m)`` or ``(m,)``, likewise.
        reach: ρ, positive, infinity allowed, in units of the cost: one number; a tuple (ρ₁, ρ₂) of two; or a tensor of
            shape ``(*batch,)``, one of each problem, or ``(*batch, 2)``, the pair of each problem. Each member of a
            tuple may be of shape ``(*batch,)`` too. Kept as ``(*batch, 2)``.

    Raises:
        InvalidProblem: what a ``TransportProblem`` refuses, but totals may differ unless both sides are held exactly;
            a reach that is not positive or does not fit.
    """

    cost: Tensor
    a: Tensor
    b: Tensor
    reach: Tensor

    def __init__(
        self, cost: ArrayLike, a: ArrayLike | None = None, b: ArrayLike | None = None, *, reach: ArrayLike
    ) -> None:
        C = validation.matrix("cost", cost, "(*batch, n, m)")
        *batch, n, m = C.shape
        weights_a = validation.weights("a", a, C, n).expand(*batch, n)
        weights_b = validation.weights("b", b, C, m).expand(*batch, m)
        validation.check_total("a", weights_a)
        validation.check_total("b", weights_b)
        rho = _pair(reach, C)
        hard = rho.detach().isinf().all(-1)[..., None]
        if bool(hard.any()):  # only these must have equal totals; the others are shown to the check as if they had
            ones_a, ones_b = (w / w.sum(-1, keepdim=True) for w in (weights_a, weights_b))
            ratio = validation.total_ratio(torch.where(hard, weights_a, ones_a), torch.where(hard, weights_b, ones_b))
            weights_b = weights_b * torch.where(hard, ratio, 1)
        self._freeze(cost=C, a=weights_a, b=weights_b, reach=rho)

    @property
    def reference_mass(self) -> Tensor:
        """The total of the side that is held exactly, the larger total where none is: ``(*batch,)``, float64."""
        total_a, total_b = self.a.sum(-1, dtype=torch.float64), self.b.sum(-1, dtype=torch.float64)
        rows, columns = self.reach.isinf().unbind(-1)
        return torch.where(rows, total_a, torch.where(columns, total_b, torch.maximum(total_a, total_b)))

    def objective(self, x: Tensor) -> Tensor:
        """⟨C, T⟩ + ρ₁ KL(T 1 | a) + ρ₂ KL(Tᵀ 1 | b), no entropy; a side held exactly costs nothing."""
        rho_1, rho_2 = self.reach.unbind(-1)
        rows, columns = x.sum(-1, dtype=torch.float64), x.sum(-2, dtype=torch.float64)
        return self.transport_cost(x) + _price(rho_1, rows, self.a) + _price(rho_2, columns, self.b)

    def marginal_error(self, x: Tensor) -> Tensor:
        """‖T 1 − a‖₁ where ρ₁ is infinite plus ‖Tᵀ 1 − b‖₁ where ρ₂ is: any other plan is feasible."""
        hard = self.reach.isinf()
        rows = (x.sum(-1, dtype=torch.float64) - self.a).abs().sum(-1)
        columns = (x.sum(-2, dtype=torch.float64) - self.b).abs().sum(-1)
        return torch.where(hard[..., 0], rows, 0) + torch.where(hard[..., 1], columns, 0)

    def dual_objective(self, f: Tensor, g: Tensor) -> Tensor:
        """−ρ₁ Σ a (e^{−f/ρ₁} − 1) − ρ₂ Σ b (e^{−g/ρ₂} − 1), the largest over all f + λ and g − λ.

        The best λ has a closed form (Séjourné et al., AISTATS 2022, prop. 2). Shape ``(*batch,)``, float64.
        """
        rho_1, rho_2 = self.reach.double().unbind(-1)
        with torch.no_grad():  # at the best λ the derivative with respect to it is zero
            excess = _log_total(self.a, f, rho_1) - _log_total(self.b, g, rho_2)
            free = excess.isfinite() & ~(rho_1.isinf() & rho_2.isinf())
            shift = torch.where(free, excess / (1 / rho_1 + 1 / rho_2), 0)[..., None]
        return _conjugate(rho_1, self.a, f + shift) + _conjugate(rho_2, self.b, g - shift)


def _pair(reach: ArrayLike, C: Tensor) -> Tensor:
    """(ρ₁, ρ₂) of each problem, ``(*batch, 2)`` in the cost's dtype."""
    batch = C.shape[:-2]
    if isinstance(reach, Sequence) and len(reach) == 2:
        sides = [validation.tensor("reach", r) for r in reach]
    else:
        whole = validation.tensor("reach", reach)
        both = whole.shape == (*batch, 2) and whole.shape != batch
        sides = list(whole.unbind(-1)) if both else [whole, whole]
    for side in sides:
        if side.shape not in ((), batch):
            raise InvalidProblem(
                f"reach has a part of shape {tuple(side.shape)}, but for a cost of shape {tuple(C.shape)} it must be a "
                f"number, a tuple of two, or a tensor of shape {tuple(batch)} or {(*batch, 2)}"
            )
        if side.ndim:
            validation.check_same_device("reach", side, "cost", C)
        if not bool((side > 0).all()):
            raise InvalidProblem(f"reach must be positive (infinity allowed), but it holds {side.detach().min():g}")
    return torch.stack([side.to(dtype=C.dtype, device=C.device).expand(batch) for side in sides], -1)


def _price(rho: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """ρ KL(p | q), shape ``(*batch,)``; 0 for an infinite ρ. Accurate for p ≈ q, where a large ρ multiplies it."""
    q = q.double()
    change = p / torch.where(q > 0, q, 1) - 1
    some = (q > 0) & (change > -1)
    change = torch.where(some, change, 0)
    terms = q * ((1 + change) * torch.log1p(change) - change)
    terms = torch.where(some, terms, torch.where((q == 0) & (p > 0), torch.inf, q))  # q for p = 0, or as good as 0
    hard = rho.isinf()
    return torch.where(hard, 0, torch.where(hard, 0, rho) * terms.sum(-1))


def _log_total(weights: Tensor, potential: Tensor, rho: Tensor) -> Tensor:
    """log Σ w e^{−f/ρ}, the mass that a side has in the end by its potential, float64."""
    used = weights > 0
    exponents = torch.where(used, weights.double().log() - torch.where(used, potential, 0) / rho[..., None], -torch.inf)
    return exponents.logsumexp(-1)


def _conjugate(rho: Tensor, weights: Tensor, potential: Tensor) -> Tensor:
    """−ρ Σ w (e^{−f/ρ} − 1), and Σ w f for an infinite ρ, float64."""
    hard = rho.isinf()
    finite = torch.where(hard, 1, rho)[..., None]
    used = torch.where(weights > 0, potential, 0)
    soft = -(weights * finite * torch.expm1(-used / finite)).sum(-1, dtype=torch.float64)
    return torch.where(hard, paired(weights, potential), soft)
