"""The published variants of Hahn and Grant's ascent: true bounds, the released code's figures, and ours beside them."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from conftest import exact_values
from scipy.optimize import linear_sum_assignment

from reproductions.blind_match.ablation import run_ours, synthetic_problem
from reproductions.blind_match.method import Distortion
from reproductions.blind_match.published_ascent import VARIANTS, run_published
from reproductions.blind_match.sampling import local_seeds
from solvers import QuadraticAssignmentProblem
from solvers.kernels.classical_assignment import FORWARD, NEW, auction, hungarian
from solvers.kernels.dual_ascent import new_dual
from solvers.kernels.exchange import lay_out, objective
from solvers.kernels.published_ascent import HUNGARIAN, Best, descend_by_first, new_assignment_scratch, visit_some

SEED = local_seeds(1)[0]
EPS = 1e-3


def with_linear(n: int, seed: int) -> QuadraticAssignmentProblem:
    """A random problem that has everything: asymmetric, entries of both signs, diagonals, linear costs, a constant."""
    g = np.random.default_rng(seed)
    A, B, L = g.normal(size=(3, n, n))
    return QuadraticAssignmentProblem(A, B, L, 3.0)


def planted(n: int) -> QuadraticAssignmentProblem:
    """The distances of a cloud to itself, in another order."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=g, dtype=torch.float64)
    distortion = Distortion("gw")
    V = distortion.kernel(x)
    p = torch.randperm(n, generator=g)
    return distortion.problem(V, V[p][:, p])


@pytest.mark.parametrize("n", [5, 8])
def test_synthetic_instances_are_those_of_the_published_seeds(n):
    torch.manual_seed(SEED)
    x, y = torch.randn(n, 1024), torch.randn(n, 1024)
    x, y = (z.double().numpy() / np.linalg.norm(z.double().numpy(), axis=1, keepdims=True) for z in (x, y))
    V, L = (np.sqrt(((z[:, None] - z) ** 2).sum(-1)) for z in (x, y))
    problem = synthetic_problem(n, SEED)
    np.testing.assert_allclose(problem.A, -V, atol=1e-6)
    np.testing.assert_allclose(problem.B, L, atol=1e-6)
    assert not problem.linear.any()
    again = synthetic_problem(n, SEED)
    assert torch.equal(problem.A, again.A)
    assert torch.equal(problem.B, again.B)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("case", ["published", "with_linear"])
def test_no_bound_is_above_the_optimum_and_none_falls(name, case):
    problem = synthetic_problem(6, SEED) if case == "published" else with_linear(5, 1)
    best = exact_values(problem).item()
    run = run_published(problem, VARIANTS[name], 5.0, 0)
    assert run.bound <= best + 1e-9 * abs(best)
    assert run.value >= best - 1e-9 * abs(best)
    assert run.value == pytest.approx(problem.objective(run.permutation).item(), rel=1e-12)
    seconds, _, bounds = np.array(run.history).T
    assert (np.diff(seconds) >= 0).all()
    if name != "+ auction":  # whose duals are not optimal
        assert (np.diff(bounds) >= -1e-9 * abs(best)).all()
    assert run.stopped in ("proven", "stalled")
    assert bounds[-1] > bounds[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_planted_cloud_is_found_and_proven(name):
    run = run_published(planted(6), VARIANTS[name], 5.0, 0)
    assert run.bound <= 1e-9
    if name == "+ auction":  # sweeps that lose some of the bound count as stalled, and four of them end it
        assert run.bound > -0.1
    else:
        assert run.stopped == "proven"
        assert run.value == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_time_limit_is_kept(name):
    problem = synthetic_problem(30, SEED)
    run_published(synthetic_problem(3, SEED), VARIANTS[name], 1.0, 0)
    began = time.perf_counter()
    run = run_published(problem, VARIANTS[name], 0.002, 0)
    assert time.perf_counter() - began < 1.0
    assert run.stopped == "time"
    assert sorted(run.permutation.tolist()) == list(range(30))
    assert run.bound <= run.value


def test_ours_has_a_true_bound_and_a_better_permutation():
    problem = synthetic_problem(7, SEED)
    best = exact_values(problem).item()
    run = run_ours(problem, 0.5, 0)
    assert run.value == pytest.approx(best, rel=1e-12)
    assert run.bound <= best + 1e-9 * abs(best)
    assert run.seconds < 2.0
    published = run_published(problem, VARIANTS["+ primal heuristic"], 5.0, 0)
    assert run.bound >= published.bound - 1e-9 * abs(best)


@pytest.mark.parametrize("name", ["blind_match_N6", "blind_match_N8", "blind_match_N8_hard"])
def test_the_first_sweep_is_that_of_the_released_code(golden, name):
    stored = golden(name)
    A, B = (stored[f"gw_{k}"].astype(float) for k in ("cost1", "cost2"))
    constant, n = float(stored["gw_constant"]), len(A)
    a, b = A.min(), B.min()
    start = constant + b * A.sum() + a * B.sum() - a * b * n**2
    L = np.zeros((n, n))
    dual, order = new_dual(A - a, B - b, L), stored["gw_hg_hungarian_f64_first_order"].astype(np.int64)
    trace = stored["gw_hg_hungarian_f64_bound_after_sweeps"]
    assert np.ptp(dual.leaders) == pytest.approx(0, abs=1e-12)  # so that all of them move to the bound
    start += n * dual.leaders[0, 0]
    dual.leaders[:] = 0
    assert start == pytest.approx(trace[0], abs=1e-4)
    best = Best(np.arange(n), np.full(1, np.inf))
    costs, scratch = lay_out(A - a, B - b, L), new_assignment_scratch(n - 1)
    assert visit_some(dual, order, 0, n * n, HUNGARIAN, 0.0, 1, scratch, costs, False, best) == n * n
    gain = dual.leaders[linear_sum_assignment(dual.leaders)].sum()
    assert start + gain == pytest.approx(trace[1], abs=1e-3)


@pytest.mark.parametrize("name", ["blind_match_N6", "blind_match_N8", "blind_match_N8_hard"])
def test_bounds_come_to_where_those_of_the_released_code_come(golden, name):
    stored = golden(name)
    problem = QuadraticAssignmentProblem(
        *(stored[f"gw_{k}"].astype(float) for k in ("cost1", "cost2")), constant=float(stored["gw_constant"])
    )
    best = float(stored["gw_check_best_f64"])
    for variant, key in (("+ factorized", "hungarian"), ("+ LAP solutions", "lapjv")):
        run = run_published(problem, VARIANTS[variant], 5.0, 0)
        assert run.bound <= best + 1e-6
        reached = stored[f"gw_hg_{key}_f64_bound_after_sweeps"]
        ours = [bound for _, _, bound in run.history][: len(reached)]
        assert ours[-1] >= reached[-1] - 2.0  # ties of the order alone are worth so much
    if "gw_hg_dense_f64_bound" in stored:
        run = run_published(problem, VARIANTS["Hahn–Grant"], 5.0, 0)
        assert run.bound == pytest.approx(float(stored["gw_hg_dense_f64_bound"]), abs=1e-4)


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("tied", [False, True])
def test_hungarian_and_auction_have_feasible_duals(n, tied):
    g = np.random.default_rng(n)
    cost = g.integers(0, 3, (n, n)).astype(float) if tied else g.normal(size=(n, n))
    optimum = cost[linear_sum_assignment(cost)].sum()
    s = new_assignment_scratch(n)
    hungarian(cost, s.p, s.q, s.u, s.v, s.values[0], s.indices[0])
    assert (cost - s.u[:, None] - s.v >= -1e-12).all()
    assert s.u.sum() + s.v.sum() == pytest.approx(optimum, abs=1e-12)
    assert cost[np.arange(n), s.p].sum() == pytest.approx(optimum, abs=1e-12)
    arguments = (cost, cost.T.copy(), EPS, s.p, s.q, s.u, s.v, s.values[0], s.indices[0], s.state)
    s.state[0] = NEW
    rounds = 1
    while not auction(*arguments, 1):  # goes on where it stopped
        rounds += 1
        assert s.state[0] >= FORWARD
        assert rounds < 100_000
    assert (cost - s.u[:, None] - s.v >= -1e-12).all()
    assert optimum - n * EPS - 1e-12 <= s.u.sum() + s.v.sum() <= optimum + 1e-12
    assert sorted(s.p) == list(range(n))
    assert cost[np.arange(n), s.p].sum() <= optimum + n * EPS + 1e-12


def test_two_opt_takes_the_first_pair_that_lowers_the_objective():
    g = np.random.default_rng(3)
    A, B, L = g.normal(size=(3, 7, 7))
    costs, start = lay_out(A, B, L), g.permutation(7)
    best = Best(np.arange(7), np.full(1, np.inf))
    descend_by_first(costs, start, 1e-12, best)
    p, found = start.copy(), True
    while found:
        found = False
        for r, s in itertools.combinations(range(7), 2):
            other = p.copy()
            other[[r, s]] = other[[s, r]]
            if not found and objective(costs, other) < objective(costs, p) - 1e-12:
                p, found = other, True
    np.testing.assert_array_equal(best.p, p)


@pytest.mark.parametrize(
    ("problem", "limit", "words"),
    [(with_linear(1, 0), 1.0, "at least 2 members"), (with_linear(4, 0), 0.0, "must be positive")],
)
def test_what_cannot_run_is_refused(problem, limit, words):
    with pytest.raises(ValueError, match=words):
        run_published(problem, VARIANTS["+ factorized"], limit, 0)
    with pytest.raises(ValueError, match="at least 2 members"):
        synthetic_problem(1, 0)
