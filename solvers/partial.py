"""Partial optimal transport: only a given part of the mass is carried."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from solvers import validation
from solvers.problems import PlanProblem, TransportProblem
from solvers.validation import ArrayLike, InvalidProblem


@dataclass(frozen=True, eq=False, init=False)
class PartialTransportProblem(PlanProblem):
    """Minimise ⟨C, T⟩ over T ≥ 0 with T 1 ≤ a, Tᵀ 1 ≤ b and total mass Σ T = s.

    (Caffarelli and McCann, Annals of Math. 171, 2010; Figalli, ARMA 2010.) The nodes that are left out are those for
    which it is cheapest. The two totals need not agree.

    Args:
        cost: C, shape ``(*batch, n, m)``, finite.
        a: source weights, shape ``(*batch, n)`` or ``(n,)``, non-negative; uniform with total 1 when left out.
        b: target weights, shape ``(*batch, m)`` or ``(m,)``, likewise.
        mass: s, a number or shape ``(*batch,)``, with 0 < s ≤ min(Σa, Σb); all of the smaller side when left out.

    Raises:
        InvalidProblem: what a ``TransportProblem`` refuses, but totals may differ; a mass out of range.
    """

    cost: Tensor
    a: Tensor
    b: Tensor
    mass: Tensor

    def __init__(
        self,
        cost: ArrayLike,
        a: ArrayLike | None = None,
        b: ArrayLike | None = None,
        mass: ArrayLike | None = None,
    ) -> None:
        C = validation.matrix("cost", cost, "(*batch, n, m)")
        *batch, n, m = C.shape
        weights_a = validation.weights("a", a, C, n).expand(*batch, n)
        weights_b = validation.weights("b", b, C, m).expand(*batch, m)
        validation.check_total("a", weights_a)
        validation.check_total("b", weights_b)
        most = torch.minimum(weights_a.sum(-1), weights_b.sum(-1))
        s = most if mass is None else _within(validation.per_problem("mass", mass, C), most.detach())
        self._freeze(cost=C, a=weights_a, b=weights_b, mass=s)

    @property
    def reference_mass(self) -> Tensor:
        """The mass to carry, s, shape ``(*batch,)``, float64."""
        return self.mass.double()

    def objective(self, x: Tensor) -> Tensor:
        """⟨C, T⟩ of a plan ``x`` of shape ``(*batch, n, m)``: shape ``(*batch,)``, summed in float64."""
        return self.transport_cost(x)

    def marginal_error(self, x: Tensor) -> Tensor:
        """Σ (T 1 − a)₊ + Σ (Tᵀ 1 − b)₊ + |Σ T − s|, shape ``(*batch,)``, float64."""
        rows, columns = x.sum(-1, dtype=torch.float64), x.sum(-2, dtype=torch.float64)
        above = (rows - self.a).clamp(min=0).sum(-1) + (columns - self.b).clamp(min=0).sum(-1)
        return above + (rows.sum(-1) - self.mass).abs()

    def dual_objective(self, f: Tensor, g: Tensor) -> Tensor:
        """min ⟨p, f⟩ + min ⟨q, g⟩ over 0 ≤ p ≤ a and 0 ≤ q ≤ b, each of total s; shape ``(*batch,)``, float64.

        By linear programming duality this is max_λ Σ a (f − λ)₋ + λ s for the rows, likewise for the columns: the dual
        with sign constraints on the potentials and a multiplier of the total mass.
        """
        return _cheapest(self.a, f, self.mass) + _cheapest(self.b, g, self.mass)

    def independent_plan(self) -> Tensor:
        """s (a/Σa) (b/Σb)ᵀ: feasible for every cost, the plan to fall back on when time runs out."""
        p, q = (w / w.sum(-1, keepdim=True) for w in (self.a, self.b))
        return self.mass[..., None, None] * p.unsqueeze(-1) * q.unsqueeze(-2)

    def to_transport(self) -> TransportProblem:
        """The balanced (n + 1) × (m + 1) problem whose optimal plans, ``restrict``-ed, are those of this problem.

        One more node on each side takes, at no cost, what stays (Chapel et al., NeurIPS 2020, prop. 1): weights
        (a, Σb − s) and (b, Σa − s). The cost between the two is above minus every other, so that no mass goes there;
        it would otherwise be carried in excess of s. In float64, as what stays may be far more than what is carried.
        """
        a, b, s = self.a.double(), self.b.double(), self.mass.double().unsqueeze(-1)
        left_a, left_b = ((w.sum(-1, keepdim=True) - s).clamp(min=0) for w in (a, b))
        largest = self.cost.detach().double().abs().amax((-2, -1))
        C = torch.nn.functional.pad(self.cost.double(), (0, 1, 0, 1))
        C[..., -1, -1] = torch.where(largest > 0, 2 * largest, 1)
        return TransportProblem(C, torch.cat([a, left_b], -1), torch.cat([b, left_a], -1))

    def restrict(self, plan: Tensor) -> Tensor:
        """The part of a plan of ``to_transport()`` between the nodes of this problem, ``(*batch, n, m)``."""
        return plan[..., :-1, :-1]


def _within(mass: Tensor, most: Tensor) -> Tensor:
    """The mass, cut to min(Σa, Σb) where it is above by rounding only."""
    slack = 1e-6 if mass.dtype == torch.float64 else 1e-4
    wrong = ~((mass.detach() > 0) & (mass.detach() <= most * (1 + slack)))
    if bool(wrong.any()):
        k = int(wrong.reshape(-1).nonzero()[0])
        where = f" in problem {k} of the batch" if wrong.ndim else ""
        raise InvalidProblem(
            f"mass is {mass.reshape(-1)[k].item():.6g}{where}, but it must be positive and at most min(Σa, Σb) = "
            f"{most.reshape(-1)[k].item():.6g}"
        )
    return mass * torch.clamp(most / mass.detach(), max=1)


def _cheapest(weights: Tensor, potential: Tensor, mass: Tensor) -> Tensor:
    """min ⟨p, f⟩ over 0 ≤ p ≤ w with Σ p = s: the nodes are filled in the order of their potential."""
    ordered, order = torch.where(weights > 0, potential.double(), 0).sort(-1)
    w = weights.double().gather(-1, order)
    before = w.cumsum(-1) - w
    p = torch.minimum(w, (mass.double().unsqueeze(-1) - before).clamp(min=0))
    return torch.where(p > 0, p * ordered, 0).sum(-1)
