"""The assignment kernel against SciPy, on random matrices and on the ones that are hard for such codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from solvers import AssignmentProblem, Status, check, solve
from solvers.kernels.assignment import solve_assignment


def families(n: int, m: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Cost matrices by name: smooth, tied, and tied up to rounding."""
    u, v = rng.random((n, 1)), rng.random((1, m))
    x, y = rng.random((n, 2)), rng.random((m, 2))
    block = rng.integers(0, 2, (n // 3 + 1, m // 3 + 1)).astype(float)
    noise = 1e-16 * rng.standard_normal((n, m))
    return {
        "uniform": rng.random((n, m)),
        "geometric": ((x[:, None] - y[None]) ** 2).sum(-1),
        "constant": np.full((n, m), 0.7),
        "zero-one": rng.integers(0, 2, (n, m)).astype(float),
        "small integers": rng.integers(0, 4, (n, m)).astype(float),
        "blocks": np.kron(block, np.ones((3, 3)))[:n, :m],
        "sum of potentials": u + v,
        "sum of potentials with noise": u + v + noise,
        "rank one": u @ v,
        "sorted rank one": np.sort(u, 0) @ np.sort(v, 1),
        "reduced costs": np.maximum(rng.random((n, m)) - 0.8, 0) + noise,
        "negative": -rng.random((n, m)),
        "large range": 10.0 ** rng.uniform(-9, 9, (n, m)),
        "large offset": 1e9 + rng.random((n, m)),
        "repeated rows": np.repeat(rng.random((n // 4 + 1, m)), 4, 0)[:n],
    }


def assert_optimal(cost: np.ndarray) -> None:
    """Value as SciPy's; potentials feasible to 1e-12 of the costs' size, tight on the matching, right in sign."""
    n, m = cost.shape
    p, u, v = (x[0] for x in solve_assignment(cost[None]))
    rows = np.flatnonzero(p >= 0)
    assert len(rows) == min(n, m) == len(set(p[rows]))
    size = max(1.0, np.abs(cost).max())
    best = cost[linear_sum_assignment(cost)].sum()
    assert abs(cost[rows, p[rows]].sum() - best) <= 1e-12 * size * n
    slack = cost - u[:, None] - v[None, :]
    assert slack.min() >= -1e-12 * size
    assert abs(slack[rows, p[rows]]).max() <= 1e-12 * size
    assert abs(u.sum() + v.sum() - best) <= 1e-12 * size * (n + m)
    if n != m:
        larger, matched = (v, p[rows]) if n < m else (u, rows)
        assert larger.max() <= 0
        assert np.all(np.delete(larger, matched) == 0)


@pytest.mark.parametrize("family", families(3, 3, np.random.default_rng(0)))
def test_every_family_is_solved_to_optimality_with_its_duals(family):
    rng = np.random.default_rng(1)
    for n, m in [(1, 1), (1, 7), (7, 1), (2, 2), (10, 10), (29, 29), (40, 61), (61, 40), (100, 100)]:
        assert_optimal(families(n, m, rng)[family])


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(
        lambda shape: arrays(np.float64, shape, elements=st.sampled_from([0.0, 1.0, 2.0, 1e-16, 0.1, 0.3, -1.0, 1e6]))
    )
)
def test_small_matrices_full_of_ties(cost):
    assert_optimal(cost)


def test_float32_input_is_solved_in_float64():
    cost = np.random.default_rng(2).random((5, 30, 30)).astype(np.float32)
    p, u, v = solve_assignment(cost)
    assert u.dtype == v.dtype == np.float64
    slack = cost.astype(np.float64) - u[:, :, None] - v[:, None, :]
    assert slack.min() >= -1e-12
    assert abs(np.take_along_axis(slack, p[:, :, None], 2)).max() <= 1e-12


def test_the_solver_keeps_the_potentials_feasible_to_1e12():
    cost = np.random.default_rng(3).random((50, 29, 29))
    problem = AssignmentProblem(cost)
    solution = solve(problem, "jonker_volgenant")
    u, v = (x.numpy() for x in solution.potentials)
    assert (cost - u[:, :, None] - v[:, None, :]).min() >= -1e-12
    assert float(solution.gap.max()) <= 1e-12
    assert solution.status is Status.OPTIMAL


def test_a_stopped_batch_keeps_what_is_solved(monkeypatch):
    import solvers.jonker_volgenant as module

    monkeypatch.setattr(module, "SLICE", 2 * 5 * 5)
    ticks = iter([False, False, True])
    monkeypatch.setattr("solvers.solver.Clock.expired", property(lambda clock: next(ticks)))
    problem = AssignmentProblem(np.random.default_rng(4).random((7, 5, 5)))
    solution = solve(problem, "jonker_volgenant", time_limit=1.0)
    assert [s is Status.OPTIMAL for s in solution.statuses] == [True] * 4 + [False] * 3
    assert solution.status is Status.TIME_LIMIT
    assert check(problem, solution) == []
