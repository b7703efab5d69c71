"""Gromov–Wasserstein: the quadratic assignment relaxed to couplings, and its rounding to a permutation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solvers import validation
from solvers.emd import EMD
from solvers.kernels import gromov_wasserstein as kernel
from solvers.kernels.assignment import compile_assignment, solve_assignment
from solvers.problems import QuadraticAssignmentProblem, TransportProblem, gromov_wasserstein_terms
from solvers.solution import Status
from solvers.solver import Answer, Clock, Solver, threads_of_torch
from solvers.validation import ArrayLike, InvalidProblem

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

WORK = 1_000_000_000  # multiplications between two looks at the clock, when there is a time limit
SERIAL_WORK = 2_000_000  # multiplications of an iteration of the whole batch, below which threads do not pay
CHUNKS_PER_THREAD = 4
STATUS = {kernel.CONVERGED: Status.CONVERGED, kernel.NON_FINITE: Status.NON_FINITE}


class Energy(NamedTuple):
    """E(T) = ⟨A T Bᵀ, T⟩ + ⟨L, T⟩ over couplings of the weights a and b, a batch of them; arrays of float64.

    A (batch, n, n), B (batch, m, m), L (batch, n, m), a (batch, n), b (batch, m).
    """

    A: Array
    B: Array
    L: Array
    a: Array
    b: Array

    @property
    def independent_plan(self) -> Array:
        """a bᵀ / Σa."""
        return self.a[:, :, None] * self.b[:, None, :] / self.a.sum(-1)[:, None, None]

    @property
    def is_assignment(self) -> bool:
        """Whether the couplings are those of n = m equal weights, whose vertices are permutations."""
        weights = np.concatenate([self.a.ravel(), self.b.ravel()])
        return self.L.shape[1] == self.L.shape[2] and bool(np.ptp(weights) <= 1e-14 * weights[0])

    def gap_limit(self, tolerance: float) -> Array:
        """The gap that counts as none, (batch,): ``tolerance`` × the spread of A times that of B plus that of L.

        Shifts of A, B and L do not change it. It is never below what rounding leaves of the gap.
        """
        mass = self.a.sum(-1)
        (low_A, high_A), (low_B, high_B), (low_L, high_L) = ((M.min((1, 2)), M.max((1, 2))) for M in self[:3])
        with np.errstate(over="ignore"):  # the kernel finds what is not finite
            spread = mass * (high_A - low_A) * (high_B - low_B) + (high_L - low_L)
            size = mass * np.maximum(high_A, -low_A) * np.maximum(high_B, -low_B) + np.maximum(high_L, -low_L)
            return mass * (tolerance * spread + 16 * np.finfo(np.float64).eps * size)


class Coupling(NamedTuple):
    """What ``gromov_wasserstein`` finds, for every problem of the batch.

    Attributes:
        plan: T, shape ``(*batch, n, m)``, in the dtype of the distances.
        value: Σ ℓ(Dx[i, k], Dy[j, l]) T[i, j] T[k, l], shape ``(*batch,)``, float64; differentiable with respect to Dx
            and Dy, at the fixed plan.
        statuses: how each problem ended, in row-major order.
    """

    plan: Tensor
    value: Tensor
    statuses: tuple[Status, ...]


@dataclass(frozen=True, kw_only=True)
class GromovWasserstein(Solver):
    """Minimises E(T) = ⟨A T Bᵀ, T⟩ + ⟨L, T⟩/n over plans T with all marginals 1/n, then rounds T to a permutation.

    E(T) is the objective of the doubly stochastic matrix nT over n², up to the constant. It is not convex: what is
    found is a stationary plan, from one start or the best from several. The plan is rounded by the linear assignment
    that overlaps it most; ``value`` is the objective of that permutation.

    * "conditional_gradient": the linearised energy is minimised exactly, by a linear assignment, and the quadratic
      along the line in closed form (Vayer et al., ICML 2019), with away steps (Guélat and Marcotte, Math. Programming
      35, 1986) that spare the zigzag where the minimum is not a permutation.
    * "entropic": projected gradient on E(T) + ε Σ T log T (Peyré, Cuturi and Solomon, ICML 2016): an iteration is a
      Sinkhorn problem, warm-started; its step is cut where a whole one could go uphill.

    Attributes:
        method: "conditional_gradient" or "entropic".
        reg: ε > 0 of the entropic method, in units of E (the objective over n²).
        tolerance: of the energy, where a problem has converged. Conditional gradient: the gap max_S ⟨∇E(T), T − S⟩ is
            at most this fraction of the spread (largest less smallest entry) of A times that of B plus that of L/n.
            Entropic: the next plan differs from the last by at most its square root in L1, and so do its marginals
            from 1/n, so that the energy changes by about ``tolerance``.
        max_iterations: of the outer method, from each start; they are the ``iterations`` of the solution.
        inner_iterations: of Sinkhorn, at most, in one iteration of the entropic method.
        initial: the plan to start from, shape ``(*batch, n, n)`` or ``(n, n)``, with marginals 1/n; uniform when left
            out.
        restarts: further starts, each a bᵀ ∘ (1 + x yᵀ) with random centred x and y, the same for every problem of the
            batch; the best permutation wins.
    """

    name: ClassVar = "gromov_wasserstein"
    problem_types: ClassVar = (QuadraticAssignmentProblem,)
    batched: ClassVar = True
    reference: ClassVar = "Vayer et al., Optimal Transport for Structured Data, 2019; Peyré, Cuturi and Solomon, 2016"

    method: Literal["conditional_gradient", "entropic"] = "conditional_gradient"
    reg: float = 0.05
    tolerance: float = 1e-10
    max_iterations: int = 1000
    inner_iterations: int = 300
    initial: Tensor | None = None
    restarts: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in ("conditional_gradient", "entropic"):
            raise ValueError(f"method must be 'conditional_gradient' or 'entropic', not {self.method!r}")
        for name, lowest in (("max_iterations", 1), ("inner_iterations", 1), ("restarts", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be at least {lowest}, not {getattr(self, name)!r}")
        for name in ("reg", "tolerance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)!r}")

    def _prepare(self, problem: QuadraticAssignmentProblem) -> tuple[Energy, Array]:
        n = problem.A.shape[-1]
        A, B, L = (_layout(M, n, n) for M in (problem.A, problem.B, problem.linear))
        weights = np.full((len(A), n), 1 / n)
        energy = Energy(A, B, L / n, weights, weights)
        start = self._first_plan(energy, problem.batch_shape)
        _compile(self.method)
        compile_assignment(L)
        return energy, start

    def _run(self, problem: QuadraticAssignmentProblem, prepared: tuple[Energy, Array], clock: Clock) -> Answer:
        n, batch = problem.A.shape[-1], problem.batch_shape

        def rounded(T: Array) -> Tensor:
            return torch.from_numpy(solve_assignment(-T)[0]).reshape(*batch, n)

        detached = problem.detach()
        T, iterations, statuses = self._search(
            *prepared, lambda T: detached.objective(rounded(T)).reshape(-1).numpy(), clock
        )
        return Answer(
            plan=torch.from_numpy(T).to(problem.dtype).reshape(*batch, n, n),
            permutation=rounded(T),
            iterations=torch.from_numpy(iterations).reshape(batch),
            statuses=statuses,
        )

    def _first_plan(self, energy: Energy, batch: torch.Size) -> Array:
        """The plan to start from, for every problem (batch, n, m)."""
        start = energy.independent_plan
        if self.initial is None:
            return start
        n, m = start.shape[1:]
        T = validation.matrix("initial", self.initial, f"(*batch, {n}, {m})").detach().double().cpu()
        if T.shape not in ((n, m), (*batch, n, m)):
            raise InvalidProblem(
                f"initial has shape {tuple(T.shape)}, but it must be a plan of shape {(*batch, n, m)} or {(n, m)}"
            )
        given = np.ascontiguousarray(np.broadcast_to(T.reshape(-1, n, m).numpy(), start.shape))
        error = np.abs(given.sum(2) - energy.a).sum(1) + np.abs(given.sum(1) - energy.b).sum(1)
        if given.min() < 0 or (error > 1e-5 * energy.a.sum(1)).any():
            raise InvalidProblem(
                "initial must be a plan with the weights of the problem as its marginals (1/n each for a quadratic "
                f"assignment); its smallest entry is {given.min():g}, its marginals are off by {error.max():g}"
            )
        return given.copy()

    def _starts(self, energy: Energy, first: Array) -> Iterator[Array]:
        yield first
        if self.restarts == 0:
            return
        rng = np.random.default_rng(self.seed)
        for _ in range(self.restarts):
            x = _centred(rng.uniform(-1, 1, (1, energy.a.shape[1])), energy.a)
            y = _centred(rng.uniform(-1, 1, (1, energy.b.shape[1])), energy.b)
            yield energy.independent_plan * (1 + x[:, :, None] * y[:, None, :])

    def _search(
        self, energy: Energy, first: Array, value: Callable[[Array], Array], clock: Clock
    ) -> tuple[Array, Integers, list[Status]]:
        """The plan of least ``value`` over all starts, of each problem, with its iterations and status."""
        T, lowest = first, np.full(len(first), np.inf)
        iterations, states = np.zeros(len(first), np.int64), np.full(len(first), kernel.RUNNING)
        for tried, start in enumerate(self._starts(energy, first)):
            if tried > 0 and clock.expired:
                return T, iterations, [Status.TIME_LIMIT] * len(T)
            found = self._descend(energy, start, clock)
            now = value(start) if self.restarts > 0 else lowest
            better = (now < lowest) | (tried == 0)
            T, iterations, states = (
                np.where(better.reshape(-1, *[1] * (x.ndim - 1)), x, y)
                for x, y in zip((start, *found), (T, iterations, states), strict=True)
            )
            lowest = np.where(better, now, lowest)
        late = [Status.ITERATION_LIMIT if k >= self.max_iterations else Status.TIME_LIMIT for k in iterations.tolist()]
        return T, iterations, [STATUS.get(s, over) for s, over in zip(states.tolist(), late, strict=True)]

    def _descend(self, energy: Energy, T: Array, clock: Clock) -> tuple[Integers, Integers]:
        """Go downhill from T, in place; returns iterations and states of each problem."""
        batch = len(T)
        iterations, states = np.zeros(batch, np.int64), np.full(batch, kernel.RUNNING)
        if self.method == "conditional_gradient" and not energy.is_assignment:
            for k in range(batch):
                iterations[k], states[k] = self._descend_by_emd(Energy(*(x[k : k + 1] for x in energy)), T[k], clock)
            return iterations, states
        step = self.max_iterations if clock.time_limit is None else 1 + WORK // _work(T)
        f, g = np.zeros_like(energy.a), np.where(energy.b > 0, 0.0, -np.inf)
        exact = self.method == "conditional_gradient"
        limit = energy.gap_limit(self.tolerance) if exact else self.tolerance**0.5 * energy.a.sum(-1)
        last = 0
        while last == 0 or not (last == self.max_iterations or states.all() or clock.expired):
            last = min(last + step, self.max_iterations)
            self._launch(energy, T, f, g, limit, last, iterations, states)
        return iterations, states

    def _launch(
        self,
        energy: Energy,
        T: Array,
        f: Array,
        g: Array,
        limit: Array,
        last: int,
        iterations: Integers,
        states: Integers,
    ) -> None:
        (A, B, L, a, b), threads = energy, numba.get_num_threads()
        if threads > 1 and (len(T) == 1 or _work(T) < SERIAL_WORK):
            numba.set_num_threads(1)  # waking the others would cost more than they save
        chunks = max(1, min(len(T), CHUNKS_PER_THREAD * numba.get_num_threads()))
        try:
            if self.method == "conditional_gradient":
                kernel.conditional_gradient(A, B, L, a[:, 0].copy(), T, limit, last, iterations, states, chunks)
            else:
                kernel.projected_gradient(
                    A, B, L, a, b, self.reg, T, f, g, limit, last, self.inner_iterations, iterations, states, chunks
                )
        finally:
            numba.set_num_threads(threads)

    def _descend_by_emd(self, energy: Energy, T: Array, clock: Clock) -> tuple[int, int]:
        """Conditional gradient for one problem (a batch of one) with any weights: the vertices are EMD's plans."""
        n, m = T.shape
        limit = float(energy.gap_limit(self.tolerance)[0])
        state = kernel.begin(energy.A[0], energy.B[0], energy.L[0], T, m, n + m - 1)
        for iteration in range(self.max_iterations):
            if not kernel.gradient(state):
                return iteration, kernel.NON_FINITE
            if clock.expired:
                return iteration, kernel.RUNNING
            vertex = EMD().solve(TransportProblem(state.G, energy.a[0], energy.b[0])).plan
            assert isinstance(vertex, Tensor)
            rows, columns = np.nonzero(vertex.numpy())
            state.mass[0] = 0.0
            state.rows[0, : len(rows)], state.columns[0, : len(rows)] = rows, columns
            state.mass[0, : len(rows)] = vertex.numpy()[rows, columns]
            if kernel.advance(state, limit):
                return iteration, kernel.CONVERGED
        return self.max_iterations, kernel.RUNNING


def gromov_wasserstein(
    Dx: ArrayLike,
    Dy: ArrayLike,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    loss: Literal["square", "kl"] = "square",
    **settings: Any,
) -> Coupling:
    """A coupling that is stationary for Gromov–Wasserstein, Σ ℓ(Dx[i, k], Dy[j, l]) T[i, j] T[k, l], any sizes.

    Args:
        Dx: distances within one side, shape ``(*batch, n, n)``, symmetric or not.
        Dy: distances within the other side, shape ``(*batch, m, m)``.
        a: weights, shape ``(*batch, n)`` or ``(n,)``; uniform with total 1 when left out.
        b: weights, shape ``(*batch, m)`` or ``(m,)``, likewise.
        loss: "square", ℓ(x, y) = (x − y)², or "kl", ℓ(x, y) = x log(x/y) − x + y, which needs Dx ≥ 0 and Dy > 0, the
            diagonal too: a plan that splits a node pairs distances with it.
        settings: of ``GromovWasserstein``; with restarts, the plan of least value wins.

    Raises:
        InvalidProblem: matrices that are not square or do not fit, weights as in ``TransportProblem``, entries that
            the loss does not allow.
        ValueError, TypeError: an unknown loss, or a setting out of range.
    """
    solver = GromovWasserstein(**settings)
    Dx, Dy = validation.matrix("Dx", Dx, "(*batch, n, n)"), validation.matrix("Dy", Dy, "(*batch, m, m)")
    for name, D in (("Dx", Dx), ("Dy", Dy)):
        if D.shape[-1] != D.shape[-2]:
            raise InvalidProblem(f"{name} has shape {tuple(D.shape)}, but distances within one side are square")
    if Dx.shape[:-2] != Dy.shape[:-2]:
        raise InvalidProblem(f"Dx {tuple(Dx.shape)} and Dy {tuple(Dy.shape)} must have the same batch dimensions")
    batch, n, m = Dx.shape[:-2], Dx.shape[-1], Dy.shape[-1]
    A, B, f1, f2 = gromov_wasserstein_terms(Dx, Dy, loss)
    plans = TransportProblem(torch.zeros(*batch, n, m, dtype=torch.promote_types(Dx.dtype, Dy.dtype)), a, b)
    p, q = plans.a.detach().double(), plans.b.detach().double()
    q = q * (p.sum(-1, keepdim=True) / q.sum(-1, keepdim=True))  # float32 totals agree to float32 only
    constant = torch.einsum("...ik,...i,...k->...", f1.double(), p, p)
    constant = constant + torch.einsum("...jl,...j,...l->...", f2.double(), q, q)

    def value(T: Tensor) -> Tensor:
        return constant + (A.double() @ T @ B.double().mT * T).sum((-2, -1))

    energy = Energy(_layout(A, n, n), _layout(B, m, m), np.zeros((batch.numel(), n, m)), _layout(p, n), _layout(q, m))
    with threads_of_torch():
        T, _, statuses = solver._search(
            energy,
            solver._first_plan(energy, batch),
            lambda T: value(torch.from_numpy(T).reshape(*batch, n, m)).detach().reshape(-1).numpy(),
            Clock(solver.time_limit),
        )
    plan = torch.from_numpy(T).reshape(*batch, n, m)
    return Coupling(plan.to(plans.dtype), value(plan), tuple(statuses))


@cache
def _compile(method: Literal["conditional_gradient", "entropic"]) -> None:
    """Compile the kernel, or find it compiled: once, as it takes float64 whatever the problem."""
    plans, weights, numbers, none = np.empty((0, 1, 1)), np.empty((0, 1)), np.empty(0), np.empty(0, np.int64)
    nothing = Energy(plans, plans, plans, weights, weights)
    GromovWasserstein(method=method)._launch(nothing, plans, weights, weights, numbers, 0, none, none)


def _work(T: Array) -> int:
    """Multiplications in one iteration of the whole batch, about."""
    batch, n, m = T.shape
    return max(1, batch * n * m * (n + m))


def _layout(x: Tensor, *shape: int) -> Array:
    """A float64 batch (batch, *shape), C-contiguous."""
    return np.ascontiguousarray(x.detach().cpu().numpy().reshape(-1, *shape), dtype=np.float64)


def _centred(x: Array, weights: Array) -> Array:
    """The numbers x (1, n) less their mean under each of the weights (batch, n), scaled to at most 1."""
    centred = x - (weights * x).sum(-1, keepdims=True) / weights.sum(-1, keepdims=True)
    return centred / np.maximum(np.abs(centred).max(-1, keepdims=True), np.finfo(np.float64).tiny)
