"""The problems: what is to be matched, validated once, knowing its own objective.

Every problem minimises. Leading dimensions are batch dimensions: a cost of shape ``(*batch, n, m)`` is a batch of
problems. Arrays are torch tensors inside; NumPy arrays and nested lists are accepted at the border, integers and
booleans become float64, half precision becomes float32. What the caller passed is never written to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Literal, Self

import torch
from torch import Tensor

from solvers import validation
from solvers.kernels.referee import are_matchings
from solvers.validation import ArrayLike, InvalidProblem

__all__ = [
    "ArrayLike",
    "AssignmentProblem",
    "InvalidProblem",
    "PlanProblem",
    "Problem",
    "QuadraticAssignmentProblem",
    "TransportProblem",
    "default_tolerance",
    "paired",
]


class Problem(ABC):
    """What every problem is: a frozen dataclass of tensors, the first of shape ``(*batch, n, m)``."""

    @abstractmethod
    def objective(self, x: Tensor) -> Tensor:
        """The objective of a plan or matching, shape ``(*batch,)``, summed in float64."""

    @abstractmethod
    def is_feasible(self, x: Tensor, tol: float | None = None) -> bool:
        """Whether ``x`` is feasible for every problem of the batch."""

    def _tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]

    @property
    def _first(self) -> Tensor:
        return getattr(self, next(iter(self.__dataclass_fields__)))  # type: ignore[attr-defined]

    @property
    def shape(self) -> torch.Size:
        """``(*batch, n, m)``: that of the cost, or of its like."""
        return self._first.shape

    @property
    def batch_shape(self) -> torch.Size:
        return self.shape[:-2]

    @property
    def dtype(self) -> torch.dtype:
        return self._first.dtype

    @property
    def device(self) -> torch.device:
        return self._first.device

    @property
    def requires_grad(self) -> bool:
        return any(t.requires_grad for t in self._tensors().values())

    def to(self, device: torch.device | str) -> Self:
        """The problem on another device."""
        return self._rebuilt(**{name: t.to(device) for name, t in self._tensors().items()})

    def detach(self) -> Self:
        """The problem without its graph."""
        return self._rebuilt(**{name: t.detach() for name, t in self._tensors().items()})

    def flattened(self) -> Self:
        """The same problems with one batch dimension, also where there was none."""
        lead = len(self.batch_shape)
        return self._rebuilt(**{name: t.reshape(-1, *t.shape[lead:]) for name, t in self._tensors().items()})

    def _rebuilt(self, **tensors: Tensor) -> Self:
        """A copy with other tensors, without validating again what is already valid."""
        twin = object.__new__(type(self))
        twin._freeze(**tensors)
        return twin

    def _freeze(self, **tensors: Tensor) -> None:
        for name, value in tensors.items():
            object.__setattr__(self, name, value)


class PlanProblem(Problem):
    """A problem whose answer is a transport plan: minimise ⟨C, T⟩ + F(T 1) + G(Tᵀ 1) over T ≥ 0.

    F and G hold the two marginals to the weights a and b, each type of problem in its way: by equality, by a price or
    by inequalities (Chizat et al., Math. Comp. 87, 2018). Lower bounds come from min_T ⟨C, T⟩ + F + G ≥
    min_p ⟨f, p⟩ + F(p) + min_q ⟨g, q⟩ + G(q), true for any potentials with f_i + g_j ≤ C_ij.
    """

    cost: Tensor
    a: Tensor
    b: Tensor

    def largest_cost(self) -> Tensor:
        """No |C_ij| is above it, shape ``(*batch,)``."""
        return self.cost.abs().amax((-2, -1))

    @property
    @abstractmethod
    def reference_mass(self) -> Tensor:
        """The mass that errors of a plan are relative to, shape ``(*batch,)``, float64."""

    @abstractmethod
    def marginal_error(self, x: Tensor) -> Tensor:
        """How far the marginals of a plan are from feasible ones, in L1, both sides; shape ``(*batch,)``, float64."""

    @abstractmethod
    def dual_objective(self, f: Tensor, g: Tensor) -> Tensor:
        """A lower bound on the optimal value from potentials with f_i + g_j ≤ C_ij: shape ``(*batch,)``, float64.

        f has shape ``(*batch, n)`` and g ``(*batch, m)``; a node without mass may have any potential, −∞ too.
        Differentiable with respect to the weights and what else holds the marginals, not through the cost.
        """

    def transport_cost(self, x: Tensor) -> Tensor:
        """⟨C, T⟩ of a plan ``x`` of shape ``(*batch, n, m)``: shape ``(*batch,)``, summed in float64."""
        return (self.cost * x).sum((-2, -1), dtype=torch.float64)

    def is_feasible(self, x: Tensor, tol: float | None = None) -> bool:
        """Whether every plan of the batch is non-negative with feasible marginals, to ``tol`` × reference mass."""
        tol = default_tolerance(self.dtype) if tol is None else tol
        if x.shape != self.cost.shape or not bool(torch.isfinite(x).all()):
            return False
        limit = tol * self.reference_mass
        return bool((x.amin((-2, -1)) >= -limit).all() and (self.marginal_error(x) <= limit).all())


def default_tolerance(dtype: torch.dtype) -> float:
    """Relative tolerance to which a certificate must hold: 1e-9 in float64, 1e-5 in float32."""
    return 1e-9 if dtype == torch.float64 else 1e-5


def paired(weights: Tensor, potential: Tensor) -> Tensor:
    """Σ w p with 0 · ±∞ = 0, a node without mass may have any potential: shape ``(*batch,)``, float64."""
    unused = (weights == 0) & potential.isinf()
    return (weights * torch.where(unused, 0, potential)).sum(-1, dtype=torch.float64)


# --------------------------------------------------------------------------------------------- the three problems


@dataclass(frozen=True, eq=False, init=False)
class TransportProblem(PlanProblem):
    """Kantorovich's problem: minimise ⟨C, T⟩ over transport plans T ≥ 0 with T 1 = a and Tᵀ 1 = b.

    Args:
        cost: C, shape ``(*batch, n, m)``, finite.
        a: source weights, shape ``(*batch, n)`` or ``(n,)``, non-negative; uniform with total 1 when left out.
        b: target weights, shape ``(*batch, m)`` or ``(m,)``, likewise. Any positive common total is allowed; Σa and Σb
            must agree to rounding (relative 1e-6 in float64, 1e-4 in float32), b is then scaled to Σa exactly.

    Raises:
        InvalidProblem: NaN or infinite entries, negative weights, totals that differ, shapes that do not fit, an empty
            side, tensors on different devices.
    """

    cost: Tensor
    a: Tensor
    b: Tensor

    def __init__(self, cost: ArrayLike, a: ArrayLike | None = None, b: ArrayLike | None = None) -> None:
        C = validation.matrix("cost", cost, "(*batch, n, m)")
        *batch, n, m = C.shape
        weights_a = validation.weights("a", a, C, n)
        weights_b = validation.weights("b", b, C, m)
        weights_b = weights_b * validation.total_ratio(weights_a, weights_b)
        self._freeze(cost=C, a=weights_a.expand(*batch, n), b=weights_b.expand(*batch, m))

    @classmethod
    def from_similarity(
        cls, similarity: ArrayLike, a: ArrayLike | None = None, b: ArrayLike | None = None
    ) -> TransportProblem:
        """The problem whose minimum is minus the largest transported similarity: C = −S."""
        return cls(-validation.matrix("similarity", similarity, "(*batch, n, m)"), a, b)

    @classmethod
    def with_dustbin(
        cls, cost: ArrayLike, bin_cost: ArrayLike, a: ArrayLike | None = None, b: ArrayLike | None = None
    ) -> TransportProblem:
        """Partial matching with a price: one more node on each side takes what is better left unmatched.

        The (n + 1) × (m + 1) problem of SuperGlue (Sarlin et al., CVPR 2020, eqs. 7–9): cost [[C, z], [z, z]] and
        weights (a, Σb) and (b, Σa). With minus the scores as cost, reg = 1 and the default weights its entropic plan
        is the P̄ of the paper, of total mass n + m; the last row and column are the dustbins. Differentiable with
        respect to everything passed.

        Args:
            cost: C, shape ``(*batch, n, m)``.
            bin_cost: z, the cost of leaving a unit of mass unmatched: a number or shape ``(*batch,)``.
            a: weights of the n rows, shape ``(*batch, n)`` or ``(n,)``; 1 each when left out (each may match one).
            b: weights of the m columns, likewise; Σa and Σb may differ.

        Raises:
            InvalidProblem: as for the problem itself, or a bin_cost that does not fit or is not finite.
        """
        C = validation.matrix("cost", cost, "(*batch, n, m)")
        *batch, n, m = C.shape
        z = validation.per_problem("bin_cost", bin_cost, C)[..., None, None]
        weights_a = validation.weights("a", torch.ones(n, device=C.device) if a is None else a, C, n).expand(*batch, n)
        weights_b = validation.weights("b", torch.ones(m, device=C.device) if b is None else b, C, m).expand(*batch, m)
        C = torch.cat([C, z.expand(*batch, n, 1)], -1)
        C = torch.cat([C, z.expand(*batch, 1, m + 1)], -2)
        all_a = torch.cat([weights_a, weights_b.sum(-1, keepdim=True)], -1)
        return cls(C, all_a, torch.cat([weights_b, weights_a.sum(-1, keepdim=True)], -1))

    @property
    def mass(self) -> Tensor:
        """Total mass Σa = Σb, shape ``(*batch,)``, float64."""
        return self.a.sum(-1, dtype=torch.float64)

    @property
    def reference_mass(self) -> Tensor:
        return self.mass

    def objective(self, x: Tensor) -> Tensor:
        """⟨C, T⟩ of a plan ``x`` of shape ``(*batch, n, m)``: shape ``(*batch,)``, summed in float64."""
        return self.transport_cost(x)

    def dual_objective(self, f: Tensor, g: Tensor) -> Tensor:
        """Σ a f + Σ b g (Kantorovich's dual): shape ``(*batch,)``, float64."""
        return paired(self.a, f) + paired(self.b, g)

    def marginal_error(self, x: Tensor) -> Tensor:
        """‖T 1 − a‖₁ + ‖Tᵀ 1 − b‖₁ of a plan, both sides, shape ``(*batch,)``, float64."""
        rows = x.sum(-1, dtype=torch.float64) - self.a
        columns = x.sum(-2, dtype=torch.float64) - self.b
        return rows.abs().sum(-1) + columns.abs().sum(-1)

    def independent_plan(self) -> Tensor:
        """a bᵀ / Σa: feasible for every cost, the plan to fall back on when time runs out."""
        return self.a.unsqueeze(-1) * self.b.unsqueeze(-2) / self.mass.to(self.dtype)[..., None, None]

    def to_assignment(self) -> AssignmentProblem:
        """The same problem as an assignment; exact for n = m with uniform weights (Birkhoff).

        Raises:
            InvalidProblem: the sides differ in size or a weight differs from the others.
        """
        n, m = self.cost.shape[-2:]
        w = (self.mass / n).to(self.dtype)[..., None]
        same = 1e-12 if self.dtype == torch.float64 else 1e-6
        if n != m or bool(((self.a - w).abs() > same * w).any() or ((self.b - w).abs() > same * w).any()):
            raise InvalidProblem(
                f"a transport problem is an assignment only when both sides have the same size and uniform weights; "
                f"this one is {n} × {m}{'' if n != m else ' with unequal weights'}: solve it with 'emd'"
            )
        return AssignmentProblem(self.cost * w.unsqueeze(-1))


@dataclass(frozen=True, eq=False, init=False)
class AssignmentProblem(Problem):
    """Linear assignment: minimise Σ_i C[i, p(i)] over matchings p of the smaller side into the larger.

    A matching is an integer tensor of shape ``(*batch, n)``: the column of each row, −1 for a row left unmatched
    (only when n > m, and then exactly n − m of them).

    Args:
        cost: C, shape ``(*batch, n, m)``, finite; n and m may differ.

    Raises:
        InvalidProblem: NaN or infinite entries, fewer than two dimensions, an empty side.
    """

    cost: Tensor

    def __init__(self, cost: ArrayLike) -> None:
        self._freeze(cost=validation.matrix("cost", cost, "(*batch, n, m)"))

    @classmethod
    def from_similarity(cls, similarity: ArrayLike) -> AssignmentProblem:
        """The problem whose minimum is minus the largest total similarity: C = −S."""
        return cls(-validation.matrix("similarity", similarity, "(*batch, n, m)"))

    def objective(self, x: Tensor) -> Tensor:
        """Σ_i C[i, p(i)] of matchings ``(*batch, n)``, or ⟨C, X⟩ of matrices ``(*batch, n, m)``; float64."""
        if x.is_floating_point():
            return (self.cost * x).sum((-2, -1), dtype=torch.float64)
        return self.matched_costs(x).sum(-1, dtype=torch.float64)

    def matched_costs(self, permutation: Tensor) -> Tensor:
        """C[i, p(i)] of every row, 0 for an unmatched one, shape ``(*batch, n)``."""
        picked = self.cost.gather(-1, permutation.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return picked if self.cost.shape[-2] <= self.cost.shape[-1] else torch.where(permutation >= 0, picked, 0)

    def is_feasible(self, x: Tensor, tol: float | None = None) -> bool:
        """Whether ``x`` matches every member of the smaller side, each to another partner."""
        n, m = self.cost.shape[-2:]
        if x.is_floating_point():
            if x.shape != self.cost.shape or not bool(torch.isfinite(x).all()):
                return False
            tol = default_tolerance(self.dtype) if tol is None else tol
            integral = bool(((x - x.round()).abs() <= tol).all()) and bool((x >= -tol).all())
            matched = x.round().long()
            rows, columns = matched.sum(-1), matched.sum(-2)
            full, part = (rows, columns) if n <= m else (columns, rows)
            return integral and bool((full == 1).all() and (part <= 1).all())
        return x.shape == self.cost.shape[:-1] and _is_matching(x, n, m)

    def matrix(self, permutation: Tensor) -> Tensor:
        """The matching as a 0/1 matrix ``(*batch, n, m)`` in the cost's dtype."""
        X = torch.zeros(self.cost.shape, dtype=self.dtype, device=permutation.device)
        matched = (permutation >= 0).to(self.dtype).unsqueeze(-1)
        return X.scatter_(-1, permutation.clamp(min=0).unsqueeze(-1), matched)

    def to_transport(self) -> TransportProblem:
        """The same problem as a transport problem with unit masses (exact for n = m, by Birkhoff's theorem).

        Raises:
            InvalidProblem: the sides differ in size.
        """
        n, m = self.cost.shape[-2:]
        if n != m:
            raise InvalidProblem(
                f"only a square assignment problem is a balanced transport problem; this one is {n} × {m}"
            )
        ones = torch.ones(n, dtype=self.dtype, device=self.device)
        return TransportProblem(self.cost, ones, ones)


@dataclass(frozen=True, eq=False, init=False)
class QuadraticAssignmentProblem(Problem):
    """Koopmans–Beckmann: minimise ⟨A P Bᵀ, P⟩ + ⟨L, P⟩ + c = Σ_ij A[i, j] B[p(i), p(j)] + Σ_i L[i, p(i)] + c.

    Args:
        A: shape ``(*batch, n, n)``, finite, symmetric or not.
        B: shape ``(*batch, n, n)``, likewise.
        linear: L, shape ``(*batch, n, n)``; zero when left out.
        constant: c, a number or shape ``(*batch,)``.

    Raises:
        InvalidProblem: NaN or infinite entries, matrices that are not square or do not fit each other.
    """

    A: Tensor
    B: Tensor
    linear: Tensor
    constant: Tensor

    def __init__(self, A: ArrayLike, B: ArrayLike, linear: ArrayLike | None = None, constant: ArrayLike = 0.0) -> None:
        words = "(*batch, n, n)"
        A, B = validation.matrix("A", A, words), validation.matrix("B", B, words)
        L = None if linear is None else validation.matrix("linear", linear, words)
        named = {"A": A, "B": B} | ({} if L is None else {"linear": L})
        n = A.shape[-1]
        for name, M in named.items():
            if M.shape[-2:] != (n, n):
                raise InvalidProblem(
                    f"{name} has shape {tuple(M.shape)}, but A, B and linear must be square matrices of one size, "
                    f"{words}; A has shape {tuple(A.shape)}"
                )
            validation.check_same_device(name, M, "A", A)
        dtype = max((M.dtype for M in named.values()), key=lambda t: torch.finfo(t).bits)
        c = validation.tensor("constant", constant).to(dtype=dtype, device=A.device)
        if not bool(torch.isfinite(c).all()):
            raise InvalidProblem("constant must be finite, but it holds NaN or infinity")
        try:
            batch = torch.broadcast_shapes(*(M.shape[:-2] for M in named.values()), c.shape)
        except RuntimeError:
            shapes = ", ".join(f"{k} {tuple(M.shape)}" for k, M in named.items())
            raise InvalidProblem(f"the batch dimensions of {shapes} and constant {tuple(c.shape)} do not fit") from None
        L = torch.zeros((), dtype=dtype, device=A.device) if L is None else L
        square = (*batch, n, n)
        self._freeze(
            A=A.to(dtype).expand(square),
            B=B.to(dtype).expand(square),
            linear=L.to(dtype).expand(square),
            constant=c.expand(batch),
        )

    @classmethod
    def from_similarity(
        cls, A: ArrayLike, B: ArrayLike, linear: ArrayLike | None = None, constant: ArrayLike = 0.0
    ) -> QuadraticAssignmentProblem:
        """The problem whose minimum is minus the maximum of ⟨A P Bᵀ, P⟩ + ⟨L, P⟩ + c."""
        L = None if linear is None else -validation.matrix("linear", linear, "(*batch, n, n)")
        return cls(-validation.matrix("A", A, "(*batch, n, n)"), B, L, -validation.tensor("constant", constant))

    @classmethod
    def from_gromov_wasserstein(
        cls, Dx: ArrayLike, Dy: ArrayLike, loss: Literal["square", "kl"] = "square"
    ) -> QuadraticAssignmentProblem:
        """Gromov–Wasserstein over permutations, Σ_ij ℓ(Dx[i, j], Dy[p(i), p(j)]), which is exactly a QAP.

        Args:
            Dx: distances (or similarities) within one side, shape ``(*batch, n, n)``, symmetric or not.
            Dy: the same within the other side, shape ``(*batch, n, n)``.
            loss: "square", ℓ(x, y) = (x − y)², or "kl", ℓ(x, y) = x log(x/y) − x + y. The latter needs Dx ≥ 0 and
                Dy > 0, but for the diagonal of Dy: it may be zero where that of Dx is zero throughout. Permutations
                pair diagonals with diagonals, and 0 log(0/0) is 0; the relaxed problem takes such a zero of Dy for its
                smallest positive entry.

        Raises:
            InvalidProblem: as for the problem itself; entries that the loss does not allow.
        """
        Dx, Dy = validation.matrix("Dx", Dx, "(*batch, n, n)"), validation.matrix("Dy", Dy, "(*batch, n, n)")
        if loss == "kl" and bool((torch.diagonal(Dx, 0, -2, -1) == 0).all()):
            positive = torch.where(Dy > 0, Dy, torch.inf).amin((-2, -1), keepdim=True)
            unused = (Dy == 0) & torch.eye(Dy.shape[-1], dtype=torch.bool, device=Dy.device)
            filled = torch.where(unused, positive.nan_to_num(posinf=1.0), Dy)
            A, B, f1, _ = gromov_wasserstein_terms(Dx, filled, loss)
            return cls(A, B, constant=f1.sum((-2, -1)) + Dy.sum((-2, -1)))
        A, B, f1, f2 = gromov_wasserstein_terms(Dx, Dy, loss)
        return cls(A, B, constant=f1.sum((-2, -1)) + f2.sum((-2, -1)))

    @property
    def is_symmetric(self) -> bool:
        """Whether A and B are both symmetric, exactly."""
        return bool((self.A == self.A.mT).all() and (self.B == self.B.mT).all())

    def objective(self, x: Tensor) -> Tensor:
        """The objective of permutations ``(*batch, n)`` or of matrices ``(*batch, n, n)``: ``(*batch,)``, float64.

        For one problem, ``x`` may carry any leading dimensions of its own: many permutations, one value each.
        """
        if x.is_floating_point():
            x = x.double()
            quadratic = (self.A.double() @ x @ self.B.double().mT * x).sum((-2, -1))
            return quadratic + (self.linear.double() * x).sum((-2, -1)) + self.constant
        n = self.A.shape[-1]
        lead = torch.broadcast_shapes(x.shape[:-1], self.batch_shape)
        p = x.expand(*lead, n)
        B = self.B.expand(*lead, n, n).gather(-2, p.unsqueeze(-1).expand(*lead, n, n))
        B = B.gather(-1, p.unsqueeze(-2).expand(*lead, n, n))
        quadratic = (self.A * B).sum((-2, -1), dtype=torch.float64)
        picked = self.linear.expand(*lead, n, n).gather(-1, p.unsqueeze(-1))
        return quadratic + picked.sum((-2, -1), dtype=torch.float64) + self.constant

    def is_feasible(self, x: Tensor, tol: float | None = None) -> bool:
        """Whether ``x`` holds permutations of 0…n−1 (or permutation matrices, to ``tol``)."""
        n = self.A.shape[-1]
        if x.is_floating_point():
            return AssignmentProblem(torch.zeros_like(self.A)).is_feasible(x, tol)
        return x.shape == self.A.shape[:-1] and _is_matching(x, n, n)

    def matrix(self, permutation: Tensor) -> Tensor:
        """The permutation as a 0/1 matrix P ``(*batch, n, n)``, P[i, p(i)] = 1."""
        return torch.nn.functional.one_hot(permutation, self.A.shape[-1]).to(self.dtype)


def gromov_wasserstein_terms(
    Dx: Tensor, Dy: Tensor, loss: Literal["square", "kl"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(A, B, f₁, f₂) with ℓ(Dx[i, k], Dy[j, l]) = f₁[i, k] + f₂[j, l] + A[i, k] B[j, l], each of its matrix's shape.

    These are Peyré, Cuturi and Solomon's, ICML 2016, Proposition 1, with A = −h₁ and B = h₂.

    Raises:
        InvalidProblem: for "kl", a negative entry of Dx or an entry of Dy that is not positive.
        ValueError: an unknown loss.
    """
    if loss == "square":
        return -2 * Dx, Dy, Dx.square(), Dy.square()
    if loss != "kl":
        raise ValueError(f"loss must be 'square' or 'kl', not {loss!r}")
    for name, wrong, words in (("Dx", Dx < 0, "zero or positive"), ("Dy", ~(Dy > 0), "positive")):
        if bool(wrong.any()):
            where = wrong.nonzero()[0].tolist()
            value = (Dx if name == "Dx" else Dy)[tuple(where)].item()
            raise InvalidProblem(
                f"the loss 'kl' needs every entry of {name} to be {words}, but {name}{where} is {value:g}; "
                "add a small constant to both matrices, or use the loss 'square'"
            )
    return -Dx, Dy.log(), torch.xlogy(Dx, Dx) - Dx, Dy


def _is_matching(x: Tensor, n: int, m: int) -> bool:
    """Whether every row of ``x`` (…, n) matches min(n, m) members, each to another of m partners."""
    return bool(are_matchings(x.long().reshape(-1, n).contiguous().cpu().numpy(), m).all())
