"""What answers are measured against: optima and gradients in float64, by formulas that no contender uses."""

from __future__ import annotations

from functools import cache

import numpy as np
import ot

from benchmarks import common
from benchmarks.contenders import Array
from solvers import QuadraticAssignmentProblem, make_solver


@cache
def transport_optimum(size: str, weights: str) -> Array:
    """A lower bound on the cost of every plan, (batch,), tight to rounding, that needs no trust in who computed it.

    For any g, f_i = min_j C_ij − g_j makes (f, g) dual feasible, and by weak duality no plan costs less than
    ⟨f, a⟩ + ⟨g, b⟩. The g of an optimal solver makes it tight; a wrong g would only show as a gap.
    """
    cost, a, b = common.transport_instance(size, weights)
    logs = (ot.emd(*w, costs, numItermax=10_000_000, log=True)[1] for *w, costs in zip(a, b, cost, strict=True))
    g = np.stack([log["v"] for log in logs])
    f = (cost - g[:, None, :]).min(-1)
    return (f * a).sum(-1) + (g * b).sum(-1)


@cache
def sinkhorn_gradient(size: str, reg: float) -> Array:
    """The gradient of Σ ⟨C, T(C)⟩ to C at the converged plan T, (batch, n, m), one problem at a time.

    With W = C∘T/ε, differentiating T = exp((f + g − C)/ε) and its marginals gives T − W + T∘(x_i + y_j), where
    [[diag(T 1), T], [Tᵀ, diag(Tᵀ 1)]] (x, y) = (W 1, Wᵀ 1), a dense linear system with one free constant.
    """
    return np.stack([_gradient(*arrays, reg) for arrays in zip(*common.transport_instance(size), strict=True)])


def _gradient(C: Array, a: Array, b: Array, reg: float) -> Array:
    T = ot.sinkhorn(a, b, C, reg, method="sinkhorn_stabilized", numItermax=100_000, stopThr=1e-13)
    W = C * T / reg
    rows, columns = T.sum(1), T.sum(0)
    H = np.block([[np.diag(rows), T], [T.T, np.diag(columns)]])
    constant = np.concatenate([np.ones_like(a), -np.ones_like(b)])  # H maps it to zero
    solved = np.linalg.solve(
        H + np.outer(constant, constant) / len(constant) ** 2, np.concatenate([W.sum(1), W.sum(0)])
    )
    x, y = np.split(solved, [len(a)])
    return T - W + T * (x[:, None] + y)


@cache
def point_cloud_value(size: str, reg: float) -> Array:
    """⟨C, T⟩ of the entropic plan between point clouds, (batch,): C stored, plain scaling, to 1e-10."""
    clouds = zip(*common.point_cloud_instance(size), strict=True)
    costs = [(ot.dist(x, y), a, b) for x, y, a, b in clouds]
    return np.array([(C * ot.sinkhorn(a, b, C, reg, numItermax=5000, stopThr=1e-10)).sum() for C, a, b in costs])


def gradient_error(gradient: Array, reference: Array) -> float:
    """‖G − G*‖₁ / ‖G*‖₁, the largest of the batch."""
    return float((np.abs(gradient - reference).sum((-2, -1)) / np.abs(reference).sum((-2, -1))).max())


@cache
def conditional_transport(size: str, temperature: float) -> Array:
    """L_CT with s = −C and ρ = 1/2, (batch,): the definitions, in float64."""
    return conditional_transport_of(*common.transport_instance(size), temperature)[0]


@cache
def conditional_transport_gradient(size: str, temperature: float) -> Array:
    """The gradient of Σ L_CT to C, (batch, n, m): with L_i = Σ_j π_ij C_ij and s = −C, π (1 − (C − L)/τ) for each
    navigator, times its weight.
    """
    return conditional_transport_of(*common.transport_instance(size), temperature)[1]


def conditional_transport_of(C: Array, a: Array, b: Array, temperature: float) -> tuple[Array, Array]:
    """L_CT with s = −C, ρ = 1/2, (batch,), and its gradient to C, in float64."""
    losses, gradient = np.zeros(len(C)), np.zeros_like(C)
    for source, target, axis in ((a[:, :, None], b[:, None, :], 2), (b[:, None, :], a[:, :, None], 1)):
        navigator = target * np.exp(-(C - C.min(axis, keepdims=True)) / temperature)
        navigator /= navigator.sum(axis, keepdims=True)
        expected = (navigator * C).sum(axis, keepdims=True)
        losses += 0.5 * (source * expected).sum((1, 2))
        gradient += 0.5 * source * navigator * (1 - (C - expected) / temperature)
    return losses, gradient


def gromov_wasserstein_gap(size: str, answer: Array) -> float:
    """How far the mean energy of the answers is above that of undoing the shuffle, at least 0.

    In units of how far that of matching everything with everything is above it: 1 is no matching at all.
    """
    Dx, Dy, p = common.gromov_wasserstein_instance(size)
    everything = np.full(Dx.shape, 1 / Dx.shape[-1] ** 2)
    value, best, worst = (gromov_wasserstein(Dx, Dy, couplings(x)).mean() for x in (answer, p, everything))
    return float(max(0, (value - best) / (worst - best)))


def gromov_wasserstein(Dx: Array, Dy: Array, T: Array) -> Array:
    """Σ_ijkl (Dx[i, j] − Dy[k, l])² T[i, k] T[j, l] of couplings T (batch, n, n), in float64, (batch,)."""
    T = T.astype(np.float64)
    rows, columns = T.sum(-1), T.sum(-2)
    squares = np.einsum("bij,bi,bj->b", Dx**2, rows, rows) + np.einsum("bij,bi,bj->b", Dy**2, columns, columns)
    return squares - 2 * ((Dx @ T @ Dy.swapaxes(-1, -2)) * T).sum((-2, -1))


def couplings(matching: Array) -> Array:
    """Matchings p (batch, n) as couplings of uniform weights, T[i, p(i)] = 1/n; couplings themselves as they are."""
    if matching.ndim == 3:
        return matching
    return np.eye(matching.shape[-1])[matching] / matching.shape[-1]


@cache
def quadratic_assignment_best(size: str, clouds: str = "unrelated") -> Array:
    """The best values known, (batch,): of a search far longer, and from other starts, than any that is compared."""
    A, B = common.quadratic_assignment_instance(size, clouds)
    search = make_solver("local_search", starts=16, max_iterations=20_000, seed=12345)
    return search.solve(QuadraticAssignmentProblem(A, B)).value.numpy()


def quadratic_assignment_gap(size: str, answer: Array, clouds: str = "unrelated") -> float:
    """How far the values of matchings (batch, n) are above the best known, relative to their size; at least 0."""
    A, B = common.quadratic_assignment_instance(size, clouds)
    values = np.stack([(a * b[np.ix_(p, p)]).sum() for a, b, p in zip(A, B, answer, strict=True)])
    best = quadratic_assignment_best(size, clouds)
    return float(max(0, ((values - best) / abs(best)).max()))
