"""Transport between point clouds: the cost is a function of the points and is never stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from solvers import validation
from solvers.kernels.matrix_free import judge_rows
from solvers.lazy_plan import FactoredCost, LazyPlan, block_size
from solvers.matrix_free_gradient import Value
from solvers.problems import PlanProblem, TransportProblem, default_tolerance, paired
from solvers.validation import ArrayLike, InvalidProblem

Metric = Literal["sqeuclidean", "cosine"]
PARTS = 16  # of the rows of a block, side by side


@dataclass(frozen=True, eq=False, init=False)
class PointCloudTransportProblem(PlanProblem):
    """Kantorovich's problem between clouds x and y with C_ij = ‖x_i − y_j‖² or C_ij = 1 − cos(x_i, y_j).

    Its arrays take memory proportional to n + m, whatever the cost would take; ``"sinkhorn"`` solves it in that memory.

    Args:
        x: points of the source, shape ``(*batch, n, d)``, finite.
        y: points of the target, shape ``(*batch, m, d)``, finite.
        a: source weights, shape ``(*batch, n)`` or ``(n,)``, non-negative; uniform with total 1 when left out.
        b: target weights, shape ``(*batch, m)`` or ``(m,)``, likewise, with the same total to rounding (relative 1e-6
            in float64, 1e-4 in float32); b is then scaled to Σa exactly.
        metric: "sqeuclidean" or "cosine".

    Raises:
        InvalidProblem: NaN or infinite entries, negative weights, totals that differ, clouds of different dimension or
            batch shape, an empty side, a point without direction under "cosine", an unknown metric, tensors on
            different devices.
    """

    x: Tensor
    y: Tensor
    a: Tensor
    b: Tensor
    metric: Metric

    def __init__(
        self,
        x: ArrayLike,
        y: ArrayLike,
        a: ArrayLike | None = None,
        b: ArrayLike | None = None,
        metric: Metric = "sqeuclidean",
    ) -> None:
        if metric not in get_args(Metric):
            raise InvalidProblem(f"metric must be 'sqeuclidean' or 'cosine', not {metric!r}")
        X, Y = validation.matrix("x", x, "(*batch, n, d)"), validation.matrix("y", y, "(*batch, m, d)")
        validation.check_same_device("y", Y, "x", X)
        if X.shape[-1] != Y.shape[-1] or X.shape[:-2] != Y.shape[:-2]:
            raise InvalidProblem(
                f"x has shape {tuple(X.shape)} and y has shape {tuple(Y.shape)}, but they must be (*batch, n, d) and "
                f"(*batch, m, d) with the same dimension d and the same batch"
            )
        if X.dtype != Y.dtype:
            X, Y = X.double(), Y.double()
        if metric == "cosine":
            for name, points in (("x", X), ("y", Y)):
                zero = (points.detach() == 0).all(-1)
                if bool(zero.any()):
                    raise InvalidProblem(
                        f"{name} has a point at the origin, {zero.nonzero()[0].tolist()}, whose cosine with another is "
                        f"not defined; drop it or use the metric 'sqeuclidean'"
                    )
        # What the weights must fit is the cost; this stands for it and takes no memory.
        C = X[..., :1].expand(*X.shape[:-1], Y.shape[-2])
        weights_a, weights_b = validation.weights("a", a, C, C.shape[-2]), validation.weights("b", b, C, C.shape[-1])
        weights_b = weights_b * validation.total_ratio(weights_a, weights_b)
        self._freeze(x=X, y=Y, a=weights_a.expand(X.shape[:-1]), b=weights_b.expand(Y.shape[:-1]))
        object.__setattr__(self, "metric", metric)

    def _tensors(self) -> dict[str, Tensor]:
        return {"x": self.x, "y": self.y, "a": self.a, "b": self.b}

    def _rebuilt(self, **tensors: Tensor) -> Self:
        twin = super()._rebuilt(**tensors)
        object.__setattr__(twin, "metric", self.metric)
        return twin

    @property
    def shape(self) -> torch.Size:
        """``(*batch, n, m)``, the shape of the cost."""
        return torch.Size((*self.a.shape, self.b.shape[-1]))

    @property
    def mass(self) -> Tensor:
        """Total mass Σa = Σb, shape ``(*batch,)``, float64."""
        return self.a.sum(-1, dtype=torch.float64)

    @property
    def reference_mass(self) -> Tensor:
        return self.mass

    def factored_cost(self) -> FactoredCost:
        """C_ij = α_i + β_j − X_i · Y_j in float64; differentiable."""
        x, y = self.x.double(), self.y.double()
        if self.metric == "cosine":
            one, zero = torch.ones_like(self.a, dtype=torch.float64), torch.zeros_like(self.b, dtype=torch.float64)
            return FactoredCost(x / x.norm(dim=-1, keepdim=True), y / y.norm(dim=-1, keepdim=True), one, zero)
        centre = y.detach().mean(-2, keepdim=True)  # distances stay, and fewer digits cancel
        x, y = x - centre, y - centre
        return FactoredCost(2 * x, y, x.square().sum(-1), y.square().sum(-1))

    def cost_rows(self, start: int, stop: int) -> Tensor:
        """C[..., start:stop, :], computed in float64 and rounded to the problem's dtype; differentiable."""
        return self.factored_cost().rows(start, stop).to(self.dtype)

    def to_dense(self) -> TransportProblem:
        """The same problem with its cost stored, n · m numbers."""
        return TransportProblem(self.cost_rows(0, self.shape[-2]), self.a, self.b)

    def largest_cost(self) -> Tensor:
        """A number no C_ij is above, shape ``(*batch,)``, float64, from the norms of the points."""
        c = self.detach().factored_cost()
        X, Y = (points.norm(dim=-1).amax(-1) for points in (c.X, c.Y))
        return c.alpha.amax(-1) + c.beta.amax(-1) + X * Y

    def objective(self, x: LazyPlan | Tensor) -> Tensor:
        """⟨C, T⟩ of a plan ``(*batch, n, m)``: shape ``(*batch,)``, float64.

        Differentiable with respect to the points and to all that the plan depends on; a lazy plan is read in blocks,
        which the gradient computes once more.
        """
        if isinstance(x, Tensor):
            return self.to_dense().objective(x)
        value = self.judge(x, x.g)[0]
        C, parts = self.factored_cost(), (x.f, x.g, x.reg)
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in (C, *parts)):
            return value
        return Value.apply(C.X, C.Y, C.alpha, C.beta, *parts, value)

    def marginal_error(self, x: LazyPlan | Tensor) -> Tensor:
        """‖T 1 − a‖₁ + ‖Tᵀ 1 − b‖₁ of a plan, both sides, shape ``(*batch,)``, float64."""
        return self.to_dense().marginal_error(x) if isinstance(x, Tensor) else self.judge(x, x.g)[1]

    def dual_objective(self, f: Tensor, g: Tensor) -> Tensor:
        """Σ a f + Σ b g (Kantorovich's dual): shape ``(*batch,)``, float64."""
        return paired(self.a, f) + paired(self.b, g)

    def is_feasible(self, x: LazyPlan | Tensor, tol: float | None = None) -> bool:
        """Whether every plan of the batch is non-negative with both marginals right, to ``tol`` × total mass."""
        if isinstance(x, Tensor):
            return self.to_dense().is_feasible(x, tol)
        tol = default_tolerance(self.dtype) if tol is None else tol
        return x.shape == self.shape and bool((self.marginal_error(x) <= tol * self.mass).all())

    def judge(self, plan: LazyPlan, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value and marginal error of a plan, and the c-transform min_j C_ij − g_j, in one reading of the cost.

        Shapes ``(*batch,)``, ``(*batch,)`` and ``(*batch, n)``, float64, without a graph. C is this problem's own.
        """
        problem, plan, g = self.detach(), plan.detach(), g.detach().double()
        C = problem.factored_cost()
        n, m = self.shape[-2:]
        rate = 1 / plan.reg
        given = [t.expand(C.alpha.shape[:-1] + t.shape[-1:]).reshape(-1, t.shape[-1]) for t in (plan.f, plan.g, g)]
        found = [
            _judged(cost, f, g_, dual, float(r))
            for cost, f, g_, dual, r in zip(C.problems(), *given, rate.reshape(-1), strict=True)
        ]
        values, sums, columns, lowest = (torch.stack(parts) for parts in zip(*found, strict=True))
        errors = (sums - problem.a.reshape(-1, n)).abs().sum(-1) + (columns - problem.b.reshape(-1, m)).abs().sum(-1)
        batch = self.batch_shape
        return values.sum(-1).reshape(batch), errors.reshape(batch), lowest.reshape(*batch, n)


def _judged(C: FactoredCost, f: Tensor, g: Tensor, dual: Tensor, rate: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one problem: the row sums of C∘T (n,), those of T, its column sums (m,), and min_j C_ij − dual_j (n,)."""
    n, m = C.shape
    values, sums, lowest = (torch.empty_like(f) for _ in range(3))
    columns = torch.zeros(PARTS, m, dtype=torch.float64, device=f.device)
    size = block_size(n, m)
    S = torch.empty(size, m, dtype=torch.float64, device=f.device)
    vectors = [t.contiguous() for t in (C.beta, g, dual)]
    for start, stop in C.blocks():
        rows = slice(start, stop)
        S_ = torch.mm(C.X[rows], C.Y.T, out=S[: stop - start])
        if f.device.type == "cpu":
            beta, g_, dual_ = (t.numpy() for t in vectors)
            ours = [t[rows].numpy() for t in (values, sums, lowest)]
            judge_rows(
                S_.numpy(),
                C.alpha[rows].contiguous().numpy(),
                beta,
                f[rows].contiguous().numpy(),
                g_,
                dual_,
                rate,
                *ours,
                columns.numpy(),
            )
        else:
            cost = C.alpha[rows, None] + C.beta - S_
            T = torch.exp((f[rows, None] + g - cost) * rate)
            values[rows], sums[rows], lowest[rows] = (cost * T).sum(-1), T.sum(-1), (cost - dual).amin(-1)
            columns[0] += T.sum(0)
    return values, sums, columns.sum(0), lowest
