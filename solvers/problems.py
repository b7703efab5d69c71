"""The problems: what is to be matched, validated once, knowing its own objective.

Every problem minimises. Leading dimensions are batch dimensions: a cost of shape ``(*batch, n, m)`` is a batch of
problems. Arrays are torch tensors inside; NumPy arrays and nested lists are accepted at the border, integers and
booleans become float64, half precision becomes float32. What the caller passed is never written to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from solvers.kernels.referee import are_matchings

ArrayLike: TypeAlias = Any
"""A torch tensor, a NumPy array, or nested sequences of numbers."""


class InvalidProblem(ValueError):
    """What was passed cannot be a problem; the message says what it was and what to pass instead."""


@runtime_checkable
class Problem(Protocol):
    """What every problem offers to the solver template and to the referee."""

    @property
    def batch_shape(self) -> torch.Size: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def requires_grad(self) -> bool: ...
    def objective(self, x: Tensor) -> Tensor: ...
    def is_feasible(self, x: Tensor, tol: float | None = None) -> bool: ...
    def to(self, device: torch.device | str) -> Problem: ...
    def detach(self) -> Problem: ...


def default_tolerance(dtype: torch.dtype) -> float:
    """Relative tolerance to which a certificate must hold: 1e-9 in float64, 1e-5 in float32."""
    return 1e-9 if dtype == torch.float64 else 1e-5


# --------------------------------------------------------------------------------------------- the three problems


@dataclass(frozen=True, eq=False, init=False)
class TransportProblem:
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
        C = _matrix("cost", cost, "(*batch, n, m)")
        *batch, n, m = C.shape
        weights_a = _weights("a", a, C, n)
        weights_b = _weights("b", b, C, m)
        weights_b = weights_b * _total_ratio(weights_a, weights_b)
        _freeze(self, cost=C, a=weights_a.expand(*batch, n), b=weights_b.expand(*batch, m))

    @classmethod
    def from_similarity(
        cls, similarity: ArrayLike, a: ArrayLike | None = None, b: ArrayLike | None = None
    ) -> TransportProblem:
        """The problem whose minimum is minus the largest transported similarity: C = −S."""
        return cls(-_matrix("similarity", similarity, "(*batch, n, m)"), a, b)

    @property
    def batch_shape(self) -> torch.Size:
        return self.cost.shape[:-2]

    @property
    def dtype(self) -> torch.dtype:
        return self.cost.dtype

    @property
    def device(self) -> torch.device:
        return self.cost.device

    @property
    def requires_grad(self) -> bool:
        return self.cost.requires_grad or self.a.requires_grad or self.b.requires_grad

    @property
    def mass(self) -> Tensor:
        """Total mass Σa = Σb, shape ``(*batch,)``, float64."""
        return self.a.sum(-1, dtype=torch.float64)

    def objective(self, x: Tensor) -> Tensor:
        """⟨C, T⟩ of a plan ``x`` of shape ``(*batch, n, m)``: shape ``(*batch,)``, summed in float64."""
        return (self.cost * x).sum((-2, -1), dtype=torch.float64)

    def marginal_error(self, x: Tensor) -> Tensor:
        """‖T 1 − a‖₁ + ‖Tᵀ 1 − b‖₁ of a plan, both sides, shape ``(*batch,)``, float64."""
        rows = x.sum(-1, dtype=torch.float64) - self.a
        columns = x.sum(-2, dtype=torch.float64) - self.b
        return rows.abs().sum(-1) + columns.abs().sum(-1)

    def is_feasible(self, x: Tensor, tol: float | None = None) -> bool:
        """Whether every plan of the batch is non-negative with both marginals right, to ``tol`` × total mass."""
        tol = default_tolerance(self.dtype) if tol is None else tol
        if x.shape != self.cost.shape or not bool(torch.isfinite(x).all()):
            return False
        limit = tol * self.mass
        return bool((x.amin((-2, -1)) >= -limit).all() and (self.marginal_error(x) <= limit).all())

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

    def to(self, device: torch.device | str) -> TransportProblem:
        return _rebuilt(self, cost=self.cost.to(device), a=self.a.to(device), b=self.b.to(device))

    def detach(self) -> TransportProblem:
        return _rebuilt(self, cost=self.cost.detach(), a=self.a.detach(), b=self.b.detach())


@dataclass(frozen=True, eq=False, init=False)
class AssignmentProblem:
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
        _freeze(self, cost=_matrix("cost", cost, "(*batch, n, m)"))

    @classmethod
    def from_similarity(cls, similarity: ArrayLike) -> AssignmentProblem:
        """The problem whose minimum is minus the largest total similarity: C = −S."""
        return cls(-_matrix("similarity", similarity, "(*batch, n, m)"))

    @property
    def batch_shape(self) -> torch.Size:
        return self.cost.shape[:-2]

    @property
    def dtype(self) -> torch.dtype:
        return self.cost.dtype

    @property
    def device(self) -> torch.device:
        return self.cost.device

    @property
    def requires_grad(self) -> bool:
        return self.cost.requires_grad

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

    def to(self, device: torch.device | str) -> AssignmentProblem:
        return _rebuilt(self, cost=self.cost.to(device))

    def detach(self) -> AssignmentProblem:
        return _rebuilt(self, cost=self.cost.detach())


@dataclass(frozen=True, eq=False, init=False)
class QuadraticAssignmentProblem:
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
        A, B = _matrix("A", A, words), _matrix("B", B, words)
        L = None if linear is None else _matrix("linear", linear, words)
        named = {"A": A, "B": B} | ({} if L is None else {"linear": L})
        n = A.shape[-1]
        for name, M in named.items():
            if M.shape[-2:] != (n, n):
                raise InvalidProblem(
                    f"{name} has shape {tuple(M.shape)}, but A, B and linear must be square matrices of one size, "
                    f"{words}; A has shape {tuple(A.shape)}"
                )
            _same_device(name, M, "A", A)
        dtype = max((M.dtype for M in named.values()), key=lambda t: torch.finfo(t).bits)
        c = _tensor("constant", constant).to(dtype=dtype, device=A.device)
        if not bool(torch.isfinite(c).all()):
            raise InvalidProblem("constant must be finite, but it holds NaN or infinity")
        try:
            batch = torch.broadcast_shapes(*(M.shape[:-2] for M in named.values()), c.shape)
        except RuntimeError:
            shapes = ", ".join(f"{k} {tuple(M.shape)}" for k, M in named.items())
            raise InvalidProblem(f"the batch dimensions of {shapes} and constant {tuple(c.shape)} do not fit") from None
        L = torch.zeros((), dtype=dtype, device=A.device) if L is None else L
        square = (*batch, n, n)
        _freeze(
            self,
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
        L = None if linear is None else -_matrix("linear", linear, "(*batch, n, n)")
        return cls(-_matrix("A", A, "(*batch, n, n)"), B, L, -_tensor("constant", constant))

    @classmethod
    def from_gromov_wasserstein(cls, Dx: ArrayLike, Dy: ArrayLike) -> QuadraticAssignmentProblem:
        """Gromov–Wasserstein over permutations, Σ_ij (Dx[i, j] − Dy[p(i), p(j)])², which is exactly a QAP.

        The squares expand to A = −2 Dx, B = Dy and the constant ‖Dx‖² + ‖Dy‖².
        """
        Dx, Dy = _matrix("Dx", Dx, "(*batch, n, n)"), _matrix("Dy", Dy, "(*batch, n, n)")
        return cls(-2 * Dx, Dy, constant=Dx.square().sum((-2, -1)) + Dy.square().sum((-2, -1)))

    @property
    def batch_shape(self) -> torch.Size:
        return self.A.shape[:-2]

    @property
    def dtype(self) -> torch.dtype:
        return self.A.dtype

    @property
    def device(self) -> torch.device:
        return self.A.device

    @property
    def requires_grad(self) -> bool:
        return any(t.requires_grad for t in (self.A, self.B, self.linear, self.constant))

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

    def to(self, device: torch.device | str) -> QuadraticAssignmentProblem:
        return _rebuilt(self, **{k: getattr(self, k).to(device) for k in ("A", "B", "linear", "constant")})

    def detach(self) -> QuadraticAssignmentProblem:
        return _rebuilt(self, **{k: getattr(self, k).detach() for k in ("A", "B", "linear", "constant")})


# ------------------------------------------------------------------------------------------------- what checks them


def _freeze(problem: Any, **fields: Tensor) -> None:
    for name, value in fields.items():
        object.__setattr__(problem, name, value)


def _rebuilt(problem: Any, **fields: Tensor) -> Any:
    """A copy with other tensors, without validating again what is already valid."""
    twin = object.__new__(type(problem))
    _freeze(twin, **fields)
    return twin


def _tensor(name: str, x: ArrayLike) -> Tensor:
    """``x`` as a float32 or float64 tensor that shares memory with it where it can."""
    if not isinstance(x, Tensor):
        try:
            array = np.asarray(x)
        except ValueError as error:
            raise InvalidProblem(f"{name} is not a rectangular array of numbers ({error})") from None
        if array.dtype.kind not in "biuf":
            raise InvalidProblem(f"{name} must hold real numbers, but its dtype is {array.dtype}")
        if array.dtype.kind in "biu" or array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if not array.flags.writeable or any(s < 0 for s in array.strides):
            array = array.copy()  # torch can neither mark memory read-only nor step backwards
        x = torch.from_numpy(array)
    if x.is_complex():
        raise InvalidProblem(f"{name} must hold real numbers, but its dtype is {x.dtype}")
    if x.dtype in (torch.float16, torch.bfloat16):
        return x.float()
    return x if x.dtype in (torch.float32, torch.float64) else x.double()


def _matrix(name: str, x: ArrayLike, words: str) -> Tensor:
    M = _tensor(name, x)
    if M.ndim < 2:
        raise InvalidProblem(
            f"{name} has shape {tuple(M.shape)}, but it must be a matrix or a batch of matrices, {words}"
        )
    if M.numel() == 0:
        raise InvalidProblem(f"{name} has shape {tuple(M.shape)}, but no side may be empty")
    _check_finite(name, M)
    return M


def _check_finite(name: str, M: Tensor) -> None:
    if bool(torch.isfinite(M.detach().sum())):
        return  # one pass: a sum is finite only if every entry is
    bad = ~torch.isfinite(M.detach())
    if not bool(bad.any()):
        return  # finite entries whose sum overflows
    where = bad.nonzero()
    kind = "NaN" if bool(torch.isnan(M.detach()[tuple(where[0])])) else "infinite"
    raise InvalidProblem(
        f"{name} holds {len(where)} NaN or infinite {'entry' if len(where) == 1 else 'entries'}, the first ({kind}) at "
        f"{where[0].tolist()}; every entry must be a finite number (give a forbidden pair a large finite cost)"
    )


def _weights(name: str, w: ArrayLike | None, C: Tensor, size: int) -> Tensor:
    """Weights ``(*batch, size)`` or ``(size,)`` in the cost's dtype; uniform with total 1 when left out."""
    if w is None:
        return torch.full((size,), 1.0 / size, dtype=C.dtype, device=C.device)
    weights = _tensor(name, w)
    expected = (*C.shape[:-2], size)
    if tuple(weights.shape) not in (expected, (size,)):
        raise InvalidProblem(
            f"{name} has shape {tuple(weights.shape)}, but for a cost of shape {tuple(C.shape)} it must have shape "
            f"{expected}" + (f" or ({size},)" if C.ndim > 2 else "")
        )
    _same_device(name, weights, "cost", C)
    _check_finite(name, weights)
    lowest = weights.detach().min().item()
    if lowest < 0:
        raise InvalidProblem(
            f"{name} has a negative weight, {lowest:g}; weights are masses and must be zero or positive"
        )
    return weights.to(C.dtype)


def _total_ratio(a: Tensor, b: Tensor) -> Tensor:
    """Σa / Σb, which must be 1 to rounding, as a factor for b: shape ``(*batch, 1)``, no gradient."""
    total_a, total_b = a.detach().sum(-1, dtype=torch.float64), b.detach().sum(-1, dtype=torch.float64)
    total_a, total_b = torch.broadcast_tensors(total_a, total_b)
    if bool((torch.minimum(total_a, total_b) <= 0).any()):
        side = "a" if bool((total_a <= 0).any()) else "b"
        raise InvalidProblem(f"{side} has total mass 0; at least one weight on each side must be positive")
    off = (total_a - total_b).abs() > (1e-6 if a.dtype == torch.float64 else 1e-4) * total_a
    if bool(off.any()):
        k = int(off.reshape(-1).nonzero()[0])
        where = f" in problem {k} of the batch" if off.ndim else ""
        raise InvalidProblem(
            f"the weights do not sum to the same total: Σa = {total_a.reshape(-1)[k].item():.6g} and "
            f"Σb = {total_b.reshape(-1)[k].item():.6g}{where}; scale them so that both totals agree, for instance to 1"
        )
    return (total_a / total_b).to(a.dtype).unsqueeze(-1)


def _same_device(name: str, M: Tensor, other: str, reference: Tensor) -> None:
    if M.device != reference.device:
        raise InvalidProblem(f"{name} is on {M.device} and {other} on {reference.device}; pass both on one device")


def _is_matching(x: Tensor, n: int, m: int) -> bool:
    """Whether every row of ``x`` (…, n) matches min(n, m) members, each to another of m partners."""
    return bool(are_matchings(x.long().reshape(-1, n).contiguous().cpu().numpy(), m).all())
