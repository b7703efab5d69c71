"""What the tests share: seeded problems of every type, and independent references for their optimal values."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment, linprog, minimize
from torch import Tensor

from reproductions import UserError
from solvers import (
    AssignmentProblem,
    PartialTransportProblem,
    PointCloudTransportProblem,
    QuadraticAssignmentProblem,
    TransportProblem,
    UnbalancedTransportProblem,
)

# What a problem of the type is made with besides cost and weights.
HELD = {UnbalancedTransportProblem: {"reach": 0.5}, PartialTransportProblem: {"mass": 0.6}}
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core: threads would only wait for each other
    torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared"


def benchmark_modules(*names: str) -> dict[str, ModuleType]:
    """Modules of the benchmarks in the fast profile, imported without leaving their threads to the other tests."""
    environment, path = dict(os.environ), list(sys.path)
    os.environ.pop("MATCHMARK_BENCH", None)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    try:
        return {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path


@pytest.fixture(scope="session")
def suite():
    """The benchmarks' modules by name, those of the contenders in ``competing``, what asv finds in ``found``."""
    discovery = pytest.importorskip("asv_runner.discovery")
    root = Path(__file__).parents[1]
    files = [path.stem for path in (root / "benchmarks").glob("*.py") if path.stem != "__init__"]
    families = [path.stem for path in (root / "benchmarks" / "contenders").glob("*.py") if path.stem != "__init__"]
    modules = benchmark_modules(*files, "contenders")
    assert Path(modules["common"].__file__).is_relative_to(root)
    competing = benchmark_modules(*(f"contenders.{name}" for name in families))
    competing = {name.partition(".")[2]: module for name, module in competing.items()}
    return SimpleNamespace(
        **modules, competing=competing, found=list(discovery.disc_benchmarks(str(root / "benchmarks")))
    )


@pytest.fixture
def golden():
    """Opens an input/output pair of a paper's own code; the test skips where those files are not at hand."""

    def load(name: str) -> dict[str, np.ndarray]:
        path = SHARED / "golden" / f"{name}.npz"
        if not path.exists():
            pytest.skip("the papers' input/output pairs are not at hand")
        with np.load(path, allow_pickle=False) as stored:
            return {k: stored[k] for k in stored.files}

    return load


def make_problem(kind: type, *batch: int, n: int = 5, m: int | None = None, dtype=torch.float64, seed: int = 0):
    """A random problem; transport problems get unequal weights and one node without mass on each side.

    The totals are 1, and 1.5 for the columns where they may differ.
    """
    g = torch.Generator().manual_seed(seed)
    m = n if m is None else m
    if kind is QuadraticAssignmentProblem:
        A, B, L = (torch.rand(*batch, n, n, generator=g, dtype=torch.float64).to(dtype) for _ in range(3))
        return QuadraticAssignmentProblem(A, B, L, 0.5)
    C = torch.rand(*batch, n, m, generator=g, dtype=torch.float64)
    if kind is AssignmentProblem:
        return AssignmentProblem(C.to(dtype))
    a, b = (torch.rand(*batch, k, generator=g, dtype=torch.float64) + 0.1 for k in (n, m))
    a[..., 0] = 0 if n > 1 else 1
    b[..., -1] = 0 if m > 1 else 1
    a, b = (w / w.sum(-1, keepdim=True) for w in (a, b))
    if kind is PointCloudTransportProblem:
        x, y = (torch.rand(*batch, k, 2, generator=g, dtype=torch.float64) for k in (n, m))
        return kind(*(t.to(dtype) for t in (x, y, a, b)))
    b = 1.5 * b if kind in HELD else b
    return kind(C.to(dtype), a.to(dtype), b.to(dtype), **HELD.get(kind, {}))


def exact_values(problem) -> Tensor:
    """The optimal value of every problem of a batch, from SciPy or by trying all permutations in Python."""
    if isinstance(problem, QuadraticAssignmentProblem):
        n = problem.A.shape[-1]
        fields = [getattr(problem, k).reshape(-1, n, n) for k in ("A", "B", "linear")]
        constants = problem.constant.reshape(-1)
        values = [_qap(*(M[k].double().numpy() for M in fields)) + c.item() for k, c in enumerate(constants)]
    elif isinstance(problem, AssignmentProblem):
        costs = problem.cost.reshape(-1, *problem.cost.shape[-2:]).double().numpy()
        values = [C[linear_sum_assignment(C)].sum() for C in costs]
    else:
        problem = problem.to_dense() if isinstance(problem, PointCloudTransportProblem) else problem
        flat = problem.flattened()
        exact, held = {
            TransportProblem: (_transport, ()),
            PartialTransportProblem: (_partial, ("mass",)),
            UnbalancedTransportProblem: (_unbalanced, ("reach",)),
        }[type(problem)]
        parts = [getattr(flat, name).double().numpy() for name in ("cost", "a", "b", *held)]
        values = [exact(*one) for one in zip(*parts, strict=True)]
    return torch.tensor(values, dtype=torch.float64).reshape(problem.batch_shape)


def _qap(A: np.ndarray, B: np.ndarray, L: np.ndarray) -> float:
    rows = np.arange(len(A))
    values = []
    for order in itertools.permutations(range(len(A))):
        p = np.array(order)
        values.append((A * B[np.ix_(p, p)]).sum() + L[rows, p].sum())
    return min(values)


def _transport(C: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    n, m = C.shape
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    b = b * (a.sum() / b.sum())
    constraints, totals = np.vstack([rows, columns])[:-1], np.concatenate([a, b])[:-1]
    return linprog(C.ravel(), A_eq=constraints, b_eq=totals, method="highs").fun


def _partial(C: np.ndarray, a: np.ndarray, b: np.ndarray, mass: float) -> float:
    n, m = C.shape
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    bounds = np.concatenate([a, b])
    return linprog(
        C.ravel(), A_ub=np.vstack([rows, columns]), b_ub=bounds, A_eq=np.ones((1, n * m)), b_eq=[mass], method="highs"
    ).fun


def _unbalanced(C: np.ndarray, a: np.ndarray, b: np.ndarray, reach: np.ndarray) -> float:
    """The dual, max −ρ₁ Σ a (e^{−f/ρ₁} − 1) − ρ₂ Σ b (e^{−g/ρ₂} − 1) over f_i + g_j ≤ C_ij, for small finite reach."""
    C, a, b = C[np.ix_(a > 0, b > 0)], a[a > 0], b[b > 0]
    n, m = C.shape
    weights, rho = np.concatenate([a, b]), np.repeat(reach, [n, m])
    pairs = np.hstack([np.kron(np.eye(n), np.ones((m, 1))), np.kron(np.ones((n, 1)), np.eye(m))])
    found = minimize(
        lambda h: (weights * rho * np.expm1(-h / rho)).sum(),
        np.full(n + m, C.min() / 2),
        jac=lambda h: -weights * np.exp(-h / rho),
        constraints={"type": "ineq", "fun": lambda h: C.ravel() - pairs @ h, "jac": lambda h: -pairs},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    return -found.fun


def picture(path, color=(255, 0, 0), size=(40, 30)):
    """Write an image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def write(path, text):
    """Write a text file, its folders too, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refused(load, *parts):
    """Check that the call is refused with one sentence that holds these parts."""
    with pytest.raises(UserError) as caught:
        load()
    message = str(caught.value)
    assert all(str(part) in message for part in parts), message
    assert "\n" not in message
    assert not message.endswith(".")
    assert ". " not in message
