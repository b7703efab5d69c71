"""What all benchmarks share: the profile, the instances, and the checks that keep a wrong answer from passing as fast.

Grids come from the environment variable ``MATCHMARK_BENCH``, never from the machine:

* ``fast``, the default: every solver of ours, one to three sizes each, on the CPU, in minutes on two cores. What two
  commits are compared with: peers do not change with a commit.
* ``regular``: more sizes, the other precision, CUDA, and every peer as well. What a history should be measured with.
* ``large``: larger sizes as well.

asv starts a process for every combination of parameters: forked from one that has imported this package (the launch
method ``forkserver``), so torch and POT are imported once, here. Nothing may touch CUDA or run in parallel at import:
neither survives a fork. With ``--launch-method spawn`` every process imports for itself, some seconds each.

asv takes NaN for "skipped" and NotImplementedError in ``setup`` for "skip me", so whatever is non-finite, unconverged
or broken raises something else here.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from solvers import Solution, Solver, UnknownSolver, make_solver

Array = NDArray[Any]
Call = Callable[[], Any]

PROFILES = ("fast", "regular", "large")
PROFILE = os.environ.get("MATCHMARK_BENCH", "fast")
if PROFILE not in PROFILES:
    raise ValueError(f"MATCHMARK_BENCH must be one of {', '.join(PROFILES)}, not {PROFILE!r}")


def grid(fast: Sequence[str], regular: Sequence[str] = (), large: Sequence[str] = ()) -> list[str]:
    """The values of a parameter in the chosen profile; each profile includes the smaller ones."""
    chosen = PROFILES.index(PROFILE) + 1
    return [value for values in (fast, regular, large)[:chosen] for value in values]


# ------------------------------------------------------------------------------------------------------- instances


@cache
def assignment_instance(size: str) -> Array:
    """Costs of shape (batch, n, m), float64, for a size "batch x n x m" such as "64x49x49".

    Cosine distances of random unit features in 16 dimensions, the costs vision problems have.
    """
    batch, n, m = map(int, size.split("x"))
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((batch, k, 16)) for k in (n, m))
    x, y = (z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (x, y))
    return 1 - x @ y.swapaxes(-1, -2)


@cache
def transport_instance(size: str, weights: str = "random") -> tuple[Array, Array, Array]:
    """The same costs with weights (batch, n) and (batch, m), each summing to 1: "random" ones, or "uniform" ones."""
    cost = assignment_instance(size)
    rng = np.random.default_rng(1)
    low, high = {"random": (0.5, 1.5), "uniform": (1.0, 1.0)}[weights]
    a, b = (rng.uniform(low, high, (len(cost), k)) for k in cost.shape[1:])
    return cost, a / a.sum(-1, keepdims=True), b / b.sum(-1, keepdims=True)


@cache
def point_cloud_instance(size: str) -> tuple[Array, Array, Array, Array]:
    """Points x (batch, n, 3) and y (batch, m, 3) in the unit cube, and random weights of them, each summing to 1."""
    batch, n, m = map(int, size.split("x"))
    rng = np.random.default_rng(4)
    x, y = rng.random((batch, n, 3)), rng.random((batch, m, 3))
    a, b = (rng.uniform(0.5, 1.5, (batch, k)) for k in (n, m))
    return x, y, a / a.sum(-1, keepdims=True), b / b.sum(-1, keepdims=True)


@cache
def dustbin_instance(size: str) -> tuple[Array, Array, Array]:
    """Minus scores with one more row and column of zeros, (batch, n + 1, m + 1), and weights (1 … 1, m), (1 … 1, n).

    Scores are ten times the cosines above; a dustbin takes what has no positive one.
    """
    cost = np.pad(10 * (assignment_instance(size) - 1), ((0, 0), (0, 1), (0, 1)))
    batch, n, m = cost.shape[0], cost.shape[1] - 1, cost.shape[2] - 1
    a, b = (np.append(np.ones(k), other) for k, other in ((n, m), (m, n)))
    return cost, np.tile(a, (batch, 1)), np.tile(b, (batch, 1))


@cache
def gromov_wasserstein_instance(size: str) -> tuple[Array, Array, Array]:
    """Distance matrices Dx, Dy (batch, n, n) in [0, 1], float64, and a good matching p (batch, n), for "batch x n x n".

    Euclidean distances of random points in the plane, and of the same points moved by a little noise and shuffled:
    p(i) is where point i went.
    """
    batch, n, m = map(int, size.split("x"))
    if n != m:
        raise ValueError(f"distance matrices are matched to others of their size, and {size} is not square")
    rng = np.random.default_rng(2)
    x = rng.standard_normal((batch, n, 2))
    shuffle = rng.random((batch, n)).argsort(1)
    y = np.take_along_axis(x + 0.05 * rng.standard_normal(x.shape), shuffle[..., None], 1)
    Dx, Dy = (np.linalg.norm(z[:, :, None] - z[:, None], axis=-1) for z in (x, y))
    largest = max(Dx.max(), Dy.max())
    return Dx / largest, Dy / largest, shuffle.argsort(1)


@cache
def quadratic_assignment_instance(size: str, clouds: str = "unrelated") -> tuple[Array, Array]:
    """(A, B) of shape (batch, n, n), float64, symmetric with zero diagonals, for a size "batch x n x n".

    −A and B are the standardised distances of two clouds of random unit vectors in 8 dimensions: matching them is
    Gromov–Wasserstein without its constant. "unrelated" clouds have nothing in common; "views" are two noisy looks at
    the same vectors, the second shuffled, so that what is best can partly be seen, as with blind matching.
    """
    batch, n, m = map(int, size.split("x"))
    if n != m:
        raise ValueError(f"distance matrices are matched to others of their size, and {size} is not square")
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, batch, n, 8))
    if clouds == "views":
        seen = x[0] + 0.7 * np.stack([x[1], rng.standard_normal(x[1].shape)])
        x = np.stack([seen[0], np.take_along_axis(seen[1], rng.random((batch, n)).argsort(1)[..., None], 1)])
    elif clouds != "unrelated":
        raise ValueError(f"clouds are 'unrelated' or 'views', not {clouds!r}")
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    D = np.linalg.norm(x[..., :, None, :] - x[..., None, :, :], axis=-1)
    off = ~np.eye(n, dtype=bool)
    mean, deviation = (f(D[..., off], axis=-1)[..., None, None] for f in (np.mean, np.std))
    D = np.where(off, (D - mean) / deviation, 0.0)
    return -D[0], D[1]


# ------------------------------------------------------------------------- the commit's solvers, peers and devices


def of_commit(module: str, *names: str) -> list[Any]:
    """What the measured commit has of these names; skip, from ``setup``, where it has no such module or name.

    The benchmarks are those of the working tree, and ``asv continuous`` runs them on an older commit too: one that
    lacks what is measured has nothing to compare, and an import that fails would stop the whole suite.
    """
    try:
        found = importlib.import_module(module)
        return [getattr(found, name) for name in names]
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        raise NotImplementedError(f"this commit has no {module}") from None
    except AttributeError:
        raise NotImplementedError(f"this commit has not all of {', '.join(names)} in {module}") from None


def ours(name: str, **settings: Any) -> Solver:
    """A solver of the registry; skip, from ``setup``, where this commit lacks it or this machine cannot run it."""
    try:
        solver = make_solver(name, **settings)
    except (UnknownSolver, TypeError) as error:  # no such solver, or no such setting
        raise NotImplementedError(f"not in this commit: {error}") from None
    if reason := type(solver).unavailable():
        raise NotImplementedError(reason)
    return solver


def peer(module: str) -> ModuleType:
    """The module of a peer; skip, from ``setup``, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:  # it is there and lacks something: a defect, not an absence
            raise
        raise NotImplementedError(f"{error.name} is not installed (pip install -e '.[bench,peers]')") from None


def require_device(device: str) -> None:
    """Skip, from ``setup``, where there is no such device."""
    if device != "cuda":
        return
    try:  # asking the driver first spares machines without one the import of torch, once for every combination
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        raise NotImplementedError("no CUDA driver on this machine") from None
    if not torch.cuda.is_available():
        raise NotImplementedError("no CUDA device on this machine")


def synchronize(device: str) -> None:
    """Wait for the device: a CUDA kernel is only queued when its call returns."""
    if device == "cuda":
        torch.cuda.synchronize()


# ---------------------------------------------------------------------------------------------------------- checks


def solved(solution: Solution, *others: str) -> Solution:
    """A solution of ours, if it is optimal or converged, or ended with one of the statuses named.

    Raises:
        RuntimeError: any other status.
    """
    status = solution.status
    if status.name not in ("OPTIMAL", "CONVERGED", *others):
        raise RuntimeError(f"{solution.solver} ended with {status.name}: {solution.message or status.sentence}")
    return solution


def finite(x: Any) -> Array:
    """A tensor, an array or a list of arrays as a NumPy array.

    Raises:
        FloatingPointError: NaN or infinity in it.
    """
    array = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    if not np.isfinite(array).all():
        raise FloatingPointError("the solver returned NaN or infinity")
    return array


def warmed_up(call: Call) -> Call:
    """``call`` itself, after one run of it that compiles what is to be compiled, and whose result is checked.

    Raises:
        RuntimeError: the call raised NotImplementedError, which asv would take for a wish to be skipped.
    """
    try:
        finite(call())
    except NotImplementedError as error:
        raise RuntimeError(f"the solver failed: {error!r}") from error
    return call


def tracked(value: float) -> float:
    """A number for asv to compare: six significant digits, at least 1e-9, so that rounding is no regression.

    Raises:
        FloatingPointError: NaN or infinity, or a negative value; lower is better, down to 0.
    """
    if not (math.isfinite(value) and value >= 0):
        raise FloatingPointError(f"the tracked value is {value}")
    return max(float(f"{value:.5e}"), 1e-9)


def marginal_error(plan: Any, a: Array, b: Array) -> float:
    """‖T 1 − a‖₁ + ‖Tᵀ 1 − b‖₁, the largest of the batch, in float64."""
    plan = finite(plan).astype(np.float64)
    return float((np.abs(plan.sum(-1) - a).sum(-1) + np.abs(plan.sum(-2) - b).sum(-1)).max())


def relative_gap(value: Array, optimum: Array) -> float:
    """|value − optimum| / |optimum|, the largest of the batch; absolute, as an infeasible answer may undercut."""
    return float((np.abs(value - optimum) / np.abs(optimum)).max())


def rounded_value(cost: Array, plan: Any, a: Array, b: Array) -> Array:
    """⟨C, T'⟩ of the feasible plan T' nearest by, (batch,), in float64: never below the optimum.

    T' is the plan with its rows, then its columns, scaled down to their weights, and the missing mass put back as a
    product (Altschuler, Weed and Rigollet, NeurIPS 2017, Algorithm 2).
    """
    T = finite(plan).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):  # an empty row stays empty
        T = T * np.fmin(1, a / T.sum(-1))[..., None]
        T = T * np.fmin(1, b / T.sum(-2))[..., None, :]
    rows, columns = a - T.sum(-1), b - T.sum(-2)
    missing = np.abs(rows).sum(-1)
    product = rows[..., None] * columns[..., None, :] / np.where(missing > 0, missing, 1)[..., None, None]
    return (cost * (T + product)).sum((-2, -1))
