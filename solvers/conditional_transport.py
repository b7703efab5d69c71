"""Conditional transport: two navigators instead of a plan with both marginals, in closed form.

Zheng and Zhou, "Exploiting Chain Rule and Bayes' Theorem to Compare Probability Distributions", NeurIPS 2021. For
P = Σ_n θ_n δ(x_n) and Q = Σ_m β_m δ(y_m), affinity s_nm, cost c_nm and navigator temperature τ:

    π_f(m|n) = q_m exp(s_nm/τ) / Σ_m' q_m' exp(s_nm'/τ)      forward, from x_n to the y
    π_b(n|m) = p_n exp(s_nm/τ) / Σ_n' p_n' exp(s_n'm/τ)      backward, from y_m to the x
    L_f = Σ_n θ_n Σ_m π_f(m|n) c_nm,   L_b = Σ_m β_m Σ_n π_b(n|m) c_nm,   L_CT = ρ L_f + (1 − ρ) L_b

The weights of the navigators are q = β and p = θ unless other priors are given: uniform ones (WeTe, ICLR 2022, words),
or a running prior (Tanwisuth et al., NeurIPS 2021). As τ → 0, L_f becomes the weighted cost of the nearest y (Chamfer);
as τ → ∞, that of the independent coupling. θ π_f has the row marginal θ only and π_b β the column marginal β only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from solvers import validation
from solvers.kernels.navigators import COSINE, EXPONENTIAL, INNER, SQEUCLIDEAN
from solvers.navigators import Costs, FeatureCosts, distance, nearness, plain_costs, plan_of
from solvers.problems import TransportProblem
from solvers.solution import Status
from solvers.solver import Answer, Clock, Solver
from solvers.validation import ArrayLike, InvalidProblem

Affinity: TypeAlias = Literal["cosine", "inner", "sqeuclidean"]
Cost: TypeAlias = Literal["cosine", "inner", "sqeuclidean", "exponential"]
FORMS = {"cosine": COSINE, "inner": INNER, "sqeuclidean": SQEUCLIDEAN, "exponential": EXPONENTIAL}


@dataclass(frozen=True, eq=False)
class CTResult:
    """Costs of shape ``(*batch,)`` and, made when they are asked for, maps of shape ``(*batch, n, m)``.

    Attributes:
        loss: L_CT = ρ L_f + (1 − ρ) L_b.
        forward_cost: L_f.
        backward_cost: L_b.
    """

    loss: Tensor
    forward_cost: Tensor
    backward_cost: Tensor
    _transported: Callable[[bool, float, float], Tensor] = field(repr=False)
    _rho: float = field(repr=False)

    @cached_property
    def forward_map(self) -> Tensor:
        """π_f(m|n): rows sum to 1, those of masked points to 0."""
        return self._transported(False, 1.0, 0.0)

    @cached_property
    def backward_map(self) -> Tensor:
        """π_b(n|m): columns sum to 1, those of masked points to 0."""
        return self._transported(False, 0.0, 1.0)

    @cached_property
    def plan(self) -> Tensor:
        """ρ θ_n π_f(m|n) + (1 − ρ) π_b(n|m) β_m, so that L_CT = ⟨c, plan⟩."""
        return self._transported(True, self._rho, 1 - self._rho)


def conditional_transport(
    affinity: ArrayLike,
    cost: ArrayLike,
    theta: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    temperature: float | Tensor = 1.0,
    rho: float = 0.5,
    prior_x: ArrayLike | None = None,
    prior_y: ArrayLike | None = None,
    mask_x: Tensor | None = None,
    mask_y: Tensor | None = None,
) -> CTResult:
    """L_CT between two weighted point sets, differentiable in affinity, cost, weights, priors and temperature.

    The gradients are closed-form and can be taken once. A point of weight zero has the one-sided derivative.

    Args:
        affinity: s, shape ``(*batch, n, m)``, in any unit; larger for pairs that belong together.
        cost: c, shape ``(*batch, n, m)``.
        theta: θ, shape ``(*batch, n)`` or ``(n,)``, masses ≥ 0 of any total; 1/n each when left out.
        beta: β, shape ``(*batch, m)`` or ``(m,)``, likewise.
        temperature: τ > 0 in the unit of s, a number or a tensor of shape ``()`` or ``(*batch,)``.
        rho: ρ in [0, 1], the share of the forward cost.
        prior_x: p, weights ≥ 0 of the x in the backward navigator, on any scale; θ when left out.
        prior_y: q, weights of the y in the forward navigator; β when left out.
        mask_x: bool ``(*batch, n)`` or ``(n,)``, False for padding: such a point takes no part, whatever its entries
            are (NaN too), and 1/n counts the others only.
        mask_y: likewise for the y.

    Raises:
        InvalidProblem: shapes that do not fit, NaN or infinite entries, negative weights, a side with no weight, a
            temperature or rho out of range.
    """
    s, c = validation.tensor("affinity", affinity), validation.tensor("cost", cost)
    if s.shape != c.shape:
        raise InvalidProblem(f"affinity has shape {tuple(s.shape)} and cost {tuple(c.shape)}; they must be the same")
    validation.check_same_device("affinity", s, "cost", c)
    if s.ndim >= 2 and (mask_x is not None or mask_y is not None):
        keep = (
            _mask("mask_x", mask_x, s, s.shape[-2])[..., :, None]
            & _mask("mask_y", mask_y, s, s.shape[-1])[..., None, :]
        )
        s, c = torch.where(keep, s, 0), torch.where(keep, c, 0)
    s, c = (validation.matrix(name, M, "(*batch, n, m)") for name, M in (("affinity", s), ("cost", c)))
    dtype = torch.promote_types(s.dtype, c.dtype)
    s, c = s.to(dtype), c.to(dtype)
    sides = _Sides.of(s, theta, beta, temperature, prior_x, prior_y, mask_x, mask_y, rho)
    S, C = (M.reshape(-1, *M.shape[-2:]).contiguous() for M in (s, c))
    costs = Costs.apply(S, C, *sides.tensors) if s.device.type == "cpu" else plain_costs(S, C, *sides.tensors)
    return _result(costs, lambda: S, sides, s.shape)


def conditional_transport_features(
    x: ArrayLike,
    y: ArrayLike,
    affinity: Affinity = "cosine",
    cost: Cost = "cosine",
    theta: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    temperature: float | Tensor = 1.0,
    rho: float = 0.5,
    prior_x: ArrayLike | None = None,
    prior_y: ArrayLike | None = None,
    mask_x: Tensor | None = None,
    mask_y: Tensor | None = None,
) -> CTResult:
    """L_CT between two sets of features, differentiable in the features and in all that is below.

    On the CPU the inner products and, in the gradient, their derivative are the only matrices made.

    Args:
        x: features ``(*batch, n, d)``, or ``(n, d)`` for one set shared by the batch.
        y: features ``(*batch, m, d)`` or ``(m, d)``.
        affinity: s: "cosine" (0 with a zero vector), "inner" (⟨x, y⟩), "sqeuclidean" (−‖x − y‖²).
        cost: c: "cosine" (1 − cos), "inner" (−⟨x, y⟩), "sqeuclidean" (‖x − y‖²), "exponential" (exp(−⟨x, y⟩) clamped to
            [1e-30, 1e10], WeTe).
        theta: θ; this and all that follows as in ``conditional_transport``.
        beta: β.
        temperature: τ.
        rho: ρ.
        prior_x: p.
        prior_y: q.
        mask_x: False for padding.
        mask_y: False for padding.

    Raises:
        InvalidProblem: as in ``conditional_transport``.
        ValueError: an affinity or cost that is not one of these.
    """
    for what, kind, known in (("affinity", affinity, list(FORMS)[:3]), ("cost", cost, list(FORMS))):
        if kind not in known:
            raise ValueError(f"{what} must be one of {', '.join(map(repr, known))}, not {kind!r}")
    x, y = validation.tensor("x", x), validation.tensor("y", y)
    validation.check_same_device("x", x, "y", y)
    batch = max(x.shape[:-2], y.shape[:-2], key=len)
    fits = x.ndim >= 2 and y.ndim >= 2 and x.shape[-1] == y.shape[-1]
    if not fits or any(f.ndim > 2 and f.shape[:-2] != batch for f in (x, y)):
        raise InvalidProblem(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}, but they must be (*batch, n, d) and (*batch, m, d); "
            f"one without batch dimensions is shared by the batch"
        )
    dtype = torch.promote_types(x.dtype, y.dtype)
    n, m = x.shape[-2], y.shape[-2]
    like = torch.zeros((), dtype=dtype, device=x.device).expand(*batch, n, m)
    if mask_x is not None:
        x = torch.where(_mask("mask_x", mask_x, like, n).unsqueeze(-1), x, 0)
    if mask_y is not None:
        y = torch.where(_mask("mask_y", mask_y, like, m).unsqueeze(-1), y, 0)
    x, y = (validation.matrix(name, f, f"(*batch, {k}, d)").to(dtype) for name, f, k in (("x", x, "n"), ("y", y, "m")))
    sides = _Sides.of(like, theta, beta, temperature, prior_x, prior_y, mask_x, mask_y, rho)
    X, Y = (f.reshape(-1, *f.shape[-2:]) for f in (x, y))
    if affinity == cost == "sqeuclidean":  # distances do not change, and their rounding errors shrink
        centre = Y.detach().mean((0, 1))
        X, Y = X - centre, Y - centre
    if x.device.type == "cpu":
        costs = FeatureCosts.apply(X, Y, *sides.tensors, (FORMS[affinity], FORMS[cost]))
    else:
        costs = plain_costs(nearness(X, Y, affinity), distance(X, Y, cost), *sides.tensors)
    return _result(costs, lambda: nearness(X, Y, affinity).expand(len(sides.theta), n, m), sides, like.shape)


# -------------------------------------------------------------------------------------------------- what is passed


@dataclass(frozen=True, eq=False)
class _Sides:
    """Both point sets of a batch of B problems without their geometry, and ρ.

    Attributes:
        theta, beta: weights θ (B, n) and β (B, m).
        p, q: weights in the navigators, the largest of each 1.
        temperature: τ (B,), float64.
        keep_x, keep_y: 1 for the points that take part, 0 for padding.
    """

    theta: Tensor
    beta: Tensor
    p: Tensor
    q: Tensor
    temperature: Tensor
    keep_x: Tensor
    keep_y: Tensor
    rho: float

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.theta, self.beta, self.p, self.q, self.temperature

    @classmethod
    def of(
        cls,
        like: Tensor,
        theta: ArrayLike | None,
        beta: ArrayLike | None,
        temperature: float | Tensor,
        prior_x: ArrayLike | None,
        prior_y: ArrayLike | None,
        mask_x: Tensor | None,
        mask_y: Tensor | None,
        rho: float,
    ) -> _Sides:
        """Validated, with defaults filled in, for matrices like ``like`` (*batch, n, m)."""
        if not 0 <= rho <= 1:
            raise InvalidProblem(f"rho must be in [0, 1], not {rho!r}")

        def side(
            weights: ArrayLike | None, prior: ArrayLike | None, mask: Tensor | None, names: str, size: int
        ) -> tuple[Tensor, ...]:
            of_weights, of_prior, of_mask = names.split()
            shape = (*like.shape[:-2], size)
            keep = _mask(of_mask, mask, like, size).expand(shape).to(like.dtype)
            w = keep / keep.sum(-1, keepdim=True) if weights is None else None
            w = validation.weights(of_weights, weights, like, size).expand(shape) * keep if w is None else w
            v = w if prior is None else validation.weights(of_prior, prior, like, size).expand(shape) * keep
            largest = v.detach().amax(-1, keepdim=True)
            if not bool((largest > 0).all()):
                k = int((~(largest > 0)).reshape(-1).nonzero()[0])
                where = f" in problem {k} of the batch" if len(shape) > 1 else ""
                blame = of_mask if mask is not None else of_weights if prior is None else of_prior
                raise InvalidProblem(f"{blame} leaves no point with a positive weight{where}; give at least one")
            return tuple(t.reshape(-1, size).contiguous() for t in (w, v / largest, keep))

        n, m = like.shape[-2:]
        theta, p, keep_x = side(theta, prior_x, mask_x, "theta prior_x mask_x", n)
        beta, q, keep_y = side(beta, prior_y, mask_y, "beta prior_y mask_y", m)
        tau = _temperature(temperature, like).expand(like.shape[:-2]).reshape(-1).contiguous()
        return cls(theta, beta, p, q, tau, keep_x, keep_y, rho)


def _mask(name: str, mask: Tensor | None, like: Tensor, size: int) -> Tensor:
    """Which points take part, bool ``(*batch, size)`` or ``(size,)``."""
    if mask is None:
        return torch.ones(size, dtype=torch.bool, device=like.device)
    mask = torch.as_tensor(mask)
    expected = (*like.shape[:-2], size)
    if mask.dtype != torch.bool or tuple(mask.shape) not in (expected, (size,)):
        raise InvalidProblem(
            f"{name} has shape {tuple(mask.shape)} and dtype {mask.dtype}, but it must be bool of shape {expected}"
            + (f" or ({size},)" if len(expected) > 1 else "")
        )
    validation.check_same_device(name, mask, "the rest", like)
    return mask


def _temperature(temperature: float | Tensor, like: Tensor) -> Tensor:
    if not isinstance(temperature, Tensor):
        temperature = torch.tensor(temperature, dtype=torch.float64, device=like.device)
    tau = temperature.double()
    if tuple(tau.shape) not in ((), tuple(like.shape[:-2])):
        raise InvalidProblem(
            f"temperature has shape {tuple(tau.shape)}, but it must be a number or of shape {tuple(like.shape[:-2])}"
        )
    validation.check_same_device("temperature", tau, "the rest", like)
    smallest = torch.finfo(like.dtype).tiny
    if not bool(((tau >= smallest) & torch.isfinite(tau)).all()):
        worst = tau.detach().min().item()
        raise InvalidProblem(
            f"temperature must be positive and finite (in {like.dtype} ≥ {smallest:.2g}), not {worst:g}"
        )
    return tau


def _result(costs: tuple[Tensor, Tensor], affinity: Callable[[], Tensor], sides: _Sides, shape: torch.Size) -> CTResult:
    rho = sides.rho
    forward, backward = (cost.reshape(shape[:-2]) for cost in costs)

    def transported(weighted: bool, share_f: float, share_b: float) -> Tensor:
        theta, beta = (sides.theta, sides.beta) if weighted else (sides.keep_x, sides.keep_y)
        return plan_of(affinity(), share_f * theta, share_b * beta, *sides.tensors[2:]).reshape(shape)

    return CTResult(rho * forward + (1 - rho) * backward, forward, backward, transported, rho)


# ----------------------------------------------------------------------------------------------------- as a solver


@dataclass(frozen=True, kw_only=True)
class ConditionalTransport(Solver):
    """The plan ρ diag(a) π_f + (1 − ρ) π_b diag(b) of the two navigators, in closed form and with total mass Σa.

    ``value`` is ⟨C, plan⟩ = ρ Σ_n a_n E_π_f[C] + (1 − ρ) Σ_m b_m E_π_b[C], the loss L_CT for Σa = 1. Its first half
    has the row marginal a alone and its second the column marginal b alone, so the plan is not feasible and its value
    bounds the optimal one neither way; ``marginal_error`` says by how much it misses.

    Attributes:
        temperature: τ > 0 of the navigators, in units of the affinity.
        rho: ρ in [0, 1], the share of the forward half.
        affinity: s, of the cost's shape; −C when left out.
    """

    name: ClassVar = "conditional_transport"
    problem_types: ClassVar = (TransportProblem,)
    feasible: ClassVar = False
    differentiable: ClassVar = ("closed form",)
    batched: ClassVar = True
    devices: ClassVar = ("cpu", "cuda")
    reference: ClassVar = "Zheng and Zhou, Exploiting Chain Rule and Bayes' Theorem, NeurIPS 2021"

    temperature: float = 1.0
    rho: float = 0.5
    affinity: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be positive and finite, not {self.temperature!r}")
        if not 0 <= self.rho <= 1:
            raise ValueError(f"rho must be in [0, 1], not {self.rho!r}")

    def _prepare(self, problem: TransportProblem) -> tuple[Tensor, _Sides]:
        C = problem.cost
        if self.affinity is None:
            s = -C
        else:
            s = validation.matrix("affinity", self.affinity, "of the cost's shape")
            validation.check_same_device("affinity", s, "cost", C)
            if s.shape != C.shape:
                raise InvalidProblem(
                    f"affinity has shape {tuple(s.shape)} and cost {tuple(C.shape)}; they must be the same"
                )
            s = s.to(C.dtype)
        sides = _Sides.of(C, problem.a, problem.b, self.temperature, None, None, None, None, self.rho)
        s = s.reshape(-1, *C.shape[-2:])
        if C.device.type == "cpu":  # compiles for this dtype, or finds it compiled
            plan_of(s[:0].detach(), *(t[:0] for t in sides.tensors))
        return s, sides

    def _run(self, problem: TransportProblem, prepared: tuple[Tensor, _Sides], clock: Clock) -> Answer:
        s, sides = prepared
        plan = plan_of(s, self.rho * sides.theta, (1 - self.rho) * sides.beta, *sides.tensors[2:])
        return Answer(plan=plan.reshape(problem.cost.shape), statuses=Status.CONVERGED)
