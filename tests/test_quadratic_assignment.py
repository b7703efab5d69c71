"""The quadratic assignment: exchanges, bounds, searches and proofs, each against definitions and brute force."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from solvers import QuadraticAssignmentProblem, Status, make_solver, solve
from solvers.gurobi import _is_restricted
from solvers.highs import level_one_bound
from solvers.integrality import round_up
from solvers.kernels.compiling import compiled
from solvers.kernels.exchange import exchange, lay_out, new_position, new_scratch, objective, objectives, place
from solvers.kernels.search import DESCENT, ITERATED, TABU, go_on, new_searches
from solvers.kernels.vector_functions import exp_below_zero, log_of_positive
from solvers.kernels.vectors import BYTES, load, store
from solvers.registry import unavailable
from solvers.symmetry import orbits
from solvers.verify import recompute

PERMUTATIONS = {n: torch.tensor(list(itertools.permutations(range(n)))) for n in range(1, 8)}


def random_problem(seed: int, n: int, integers: bool = False, symmetric: bool = False, batch: tuple[int, ...] = ()):
    g = np.random.default_rng(seed)
    A, B, L = (g.integers(-5, 9, (*batch, n, n)) if integers else g.normal(size=(*batch, n, n)) for _ in range(3))
    if symmetric:
        A, B = A + A.swapaxes(-1, -2), B + B.swapaxes(-1, -2)
    return QuadraticAssignmentProblem(A, B, L, 3.0)


def grid(rows: int, columns: int) -> np.ndarray:
    """Distances between the cells of a grid, as in Nugent's instances."""
    x, y = np.divmod(np.arange(rows * columns), columns)
    return np.abs(x[:, None] - x) + np.abs(y[:, None] - y)


def nugent_like() -> QuadraticAssignmentProblem:
    """Random flows between twelve places of a grid, whose proof takes some dozens of nodes."""
    g = np.random.default_rng(0)
    flows = np.triu(g.integers(0, 6, (12, 12)) * (g.random((12, 12)) < 0.6), 1)
    return QuadraticAssignmentProblem(flows + flows.T, grid(3, 4))


@compiled
def _apply(x, exps, logs, lanes):
    for k in range(0, len(x), lanes):
        store(exps, k, exp_below_zero(load(x, k)))
        store(logs, k, log_of_positive(exp_below_zero(load(x, k))))


def test_vector_exp_and_log_are_within_rounding():
    x = -np.linspace(0, 87, 1600, dtype=np.float32)
    exps, logs = np.empty_like(x), np.empty_like(x)
    _apply(x, exps, logs, BYTES // 4)
    np.testing.assert_allclose(exps, np.exp(x.astype(float)), rtol=3e-7)
    np.testing.assert_allclose(logs, np.log(exps.astype(float)), rtol=3e-7, atol=1e-7)
    x[:] = np.resize(np.array([-1e4, -np.inf], np.float32), len(x))
    _apply(x, exps, logs, BYTES // 4)
    assert (exps == 0).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_every_exchange_changes_the_objective_by_what_was_foretold(symmetric):
    problem = random_problem(0, 9, symmetric=symmetric)
    costs, now = lay_out(problem.A, problem.B, problem.linear), new_position(9)
    assert costs.symmetric == symmetric
    place(costs, now)
    random, scratch = np.random.default_rng(1), new_scratch(9)
    for _ in range(40):
        r, s = sorted(random.choice(9, 2, replace=False))
        before, change = objective(costs, now.p), now.D[r, s]
        exchange(costs, now, r, s, scratch)
        assert objective(costs, now.p) - before == pytest.approx(change, abs=1e-11)
        assert float(problem.objective(torch.from_numpy(now.p))) - 3 == pytest.approx(
            objective(costs, now.p), abs=1e-11
        )
    np.testing.assert_array_equal(objectives(costs, now.p[None]), [objective(costs, now.p)])


@pytest.mark.parametrize("kind", [DESCENT, TABU, ITERATED])
def test_a_search_knows_the_value_of_its_best_and_goes_on_where_it_stopped(kind):
    problem = random_problem(2, 14, symmetric=True)
    costs = lay_out(problem.A, problem.B, problem.linear)
    starts = np.stack([np.random.default_rng(k).permutation(14) for k in range(33)])
    whole, parts = (new_searches(starts, np.full(33, kind), 5) for _ in range(2))
    go_on(costs, whole, 60)
    if kind == TABU:
        for _ in range(3):
            go_on(costs, parts, 20)
        np.testing.assert_array_equal(whole.best, parts.best)
    np.testing.assert_allclose(objectives(costs, whole.best), whole.value[:, 1], atol=1e-9)
    np.testing.assert_allclose(objectives(costs, whole.p), whole.value[:, 0], atol=1e-9)
    assert (whole.value[:, 1] <= objectives(costs, starts) + 1e-9).all()


@pytest.mark.parametrize("name", ["local_search", "two_opt"])
def test_a_search_does_not_depend_on_the_number_of_threads(name):
    problem, threads = random_problem(3, 15), torch.get_num_threads()
    settings = {"max_iterations": 500} if name == "local_search" else {}
    try:
        torch.set_num_threads(1)
        one = make_solver(name, **settings, seed=-3).solve(problem)
        torch.set_num_threads(2)
        two = make_solver(name, **settings, seed=-3).solve(problem)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one.permutation, two.permutation)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("schedule", ["smoothed", "published"])
def test_no_bound_is_above_the_optimum_and_no_certificate_is_wrong(n, integers, schedule):
    problem = random_problem(n, n, integers, batch=(100,))
    values = torch.stack([problem.objective(p.expand(100, n)) for p in PERMUTATIONS[n]])
    optimum = values.amin(0)
    solution = make_solver("hahn_grant", schedule=schedule, max_iterations=40).solve(problem)
    assert (solution.lower_bound <= optimum + 1e-9 * (1 + optimum.abs())).all()
    assert (solution.value >= optimum - 1e-9).all()
    proven = torch.tensor([s is Status.OPTIMAL for s in solution.statuses])
    torch.testing.assert_close(solution.value[proven], optimum[proven])
    assert proven.any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.sampled_from([1e-3, 1.0, 50.0]))
def test_whatever_the_dual_variables_their_bound_is_true(seed, n, size):
    problem = random_problem(seed, n)
    U, V = size * torch.from_numpy(np.random.default_rng(seed).normal(size=(2, n, n, n)))
    facts = recompute(problem, torch.arange(n), (U, V))
    assert facts.lower_bound <= problem.objective(PERMUTATIONS[n]).min() + 1e-9 * size


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.booleans(), st.sampled_from([1, 3, 10]))
def test_integer_costs_round_bounds_up_to_a_value_that_exists(seed, n, symmetric, unit):
    problem = random_problem(seed, n, integers=True, symmetric=symmetric)
    problem = QuadraticAssignmentProblem(unit * problem.A, problem.B, unit * problem.linear, 0.0)
    values = problem.objective(PERMUTATIONS[n])
    for value in values.unique():
        assert round_up(problem, value) == value
        assert value - 2 * unit < round_up(problem, value - 0.7 * unit) <= value
    half = QuadraticAssignmentProblem(problem.A / 2, problem.B, problem.linear)
    bound = torch.tensor(0.123, dtype=torch.float64)
    assert round_up(half, bound) >= bound


def test_symmetric_integer_costs_have_even_values():
    problem = QuadraticAssignmentProblem(grid(2, 3), grid(2, 3))
    assert round_up(problem, torch.tensor(10.5, dtype=torch.float64)) == 12


def test_orbits_of_a_grid_are_those_of_its_reflections_and_turns():
    nothing, cells = np.zeros((9, 9)), grid(3, 3).astype(float)
    assert orbits(cells, nothing).tolist() == [0, 1, 0, 1, 4, 1, 0, 1, 0]
    told_apart = np.zeros((9, 9))
    told_apart[0] = 1  # a corner that is not like the others leaves one reflection
    assert orbits(cells, told_apart).tolist() == [0, 1, 2, 1, 4, 5, 2, 5, 8]
    assert orbits(np.random.default_rng(0).random((9, 9)), nothing).tolist() == list(range(9))


@pytest.mark.parametrize("integers", [False, True])
def test_branch_and_bound_agrees_with_brute_force(integers):
    for n in (1, 2, 5, 7):
        problem = random_problem(n, n, integers, batch=(12,))
        optimum = torch.stack([problem.objective(p.expand(12, n)) for p in PERMUTATIONS[n]]).amin(0)
        solution = solve(problem)
        assert solution.solver == "branch_and_bound"
        assert solution.status is Status.OPTIMAL
        torch.testing.assert_close(solution.value, optimum)


def test_branch_and_bound_proves_a_symmetric_instance_of_twelve():
    problem = nugent_like()
    solution = solve(problem)
    assert solution.status is Status.OPTIMAL
    assert solution.value == solution.lower_bound
    assert solution.value <= make_solver("local_search").solve(problem).value
    again = make_solver("branch_and_bound", max_iterations=3).solve(problem)
    assert again.status is Status.ITERATION_LIMIT
    assert again.lower_bound < solution.value <= again.value


def test_branch_and_bound_goes_on_from_its_checkpoint(tmp_path):
    problem, file = nugent_like(), str(tmp_path / "tree.json")
    whole = solve(problem)
    part = make_solver("branch_and_bound", max_iterations=10, checkpoint=file).solve(problem)
    assert part.status is Status.ITERATION_LIMIT
    rest = make_solver("branch_and_bound", checkpoint=file).solve(problem)
    assert rest.status is Status.OPTIMAL
    assert rest.value == whole.value == rest.lower_bound
    assert rest.iterations > 10
    again = make_solver("branch_and_bound", checkpoint=file).solve(problem)
    assert (again.value, again.iterations, again.status) == (rest.value, rest.iterations, Status.OPTIMAL)
    with pytest.raises(ValueError, match="of another problem"):
        make_solver("branch_and_bound", checkpoint=file).solve(random_problem(9, 12))
    (tmp_path / "tree.json").write_text('{"problem": 1')
    with pytest.raises(ValueError, match="is no checkpoint"):
        make_solver("branch_and_bound", checkpoint=file).solve(problem)
    with pytest.raises(ValueError, match="a batch of 3"):
        make_solver("branch_and_bound", checkpoint=file).solve(random_problem(9, 4, batch=(3,)))


def test_the_smoothed_ascent_passes_where_the_published_one_stalls():
    g = np.random.default_rng(4)
    D, E = (np.linalg.norm(x[:, None] - x, axis=-1) for x in g.normal(size=(2, 10, 8)))
    problem = QuadraticAssignmentProblem.from_gromov_wasserstein(D, E)
    smoothed, published = (make_solver("hahn_grant", schedule=s).solve(problem) for s in ("smoothed", "published"))
    assert published.status is Status.CONVERGED
    gap = smoothed.value - published.lower_bound
    assert smoothed.lower_bound > published.lower_bound + 0.05 * gap
    bounds = [float(point.bound) for point in smoothed.history]
    assert bounds == sorted(bounds)


def test_the_smoothed_ascent_comes_near_the_optimum_of_the_relaxation():
    problem = random_problem(1, 7, symmetric=True)
    optimum = level_one_bound(*(x.numpy() for x in (problem.A, problem.B, problem.linear))) + 3
    solution = make_solver("hahn_grant", search=False).solve(problem)
    assert solution.lower_bound <= optimum + 1e-6 * abs(optimum)
    assert solution.lower_bound >= optimum - 2e-3 * float(solution.value - optimum + abs(optimum))


@pytest.mark.parametrize("solver", ["hahn_grant", "branch_and_bound"])
def test_large_means_of_the_matrices_cost_no_sweeps(solver):
    """Adding a number to all entries off the diagonal adds a constant to every value, and to the bounds."""
    torch.manual_seed(0)
    A, B = (torch.randn(9, 9, dtype=torch.float64).fill_diagonal_(0) for _ in range(2))
    off = 1 - torch.eye(9, dtype=torch.float64)
    plain = solve(QuadraticAssignmentProblem(A, B), solver, max_iterations=40)
    moved = solve(QuadraticAssignmentProblem(A + 300 * off, B - 200 * off), solver, max_iterations=40)
    constant = 300 * B.sum() - 200 * A.sum() - 300 * 200 * 72
    torch.testing.assert_close(moved.value - constant, plain.value, rtol=0, atol=1e-6)
    assert moved.lower_bound <= moved.value
    # the same but for the rounding of what the dual variables are stored in
    torch.testing.assert_close(moved.lower_bound - constant, plain.lower_bound, rtol=0, atol=0.05)


def test_the_first_bound_of_branch_and_bound_does_not_outlast_the_time_limit():
    torch.manual_seed(0)
    A, B = (torch.randn(64, 64) for _ in range(2))
    found = solve(QuadraticAssignmentProblem(A, B), "branch_and_bound", time_limit=0.5)
    assert found.solve_time < 5  # its sweeps take ten times as long
    assert torch.isfinite(found.lower_bound)


def test_gurobi_says_what_its_licence_does_not_cover():
    if unavailable("gurobi") is not None or not _is_restricted():
        pytest.skip("needs the bundled licence")
    solution = make_solver("gurobi").solve(random_problem(0, 15))
    assert solution.status is Status.UNAVAILABLE
    assert "n ≤ 14" in solution.message
    assert solution.permutation is None


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("n", [1, 3, 17])
def test_faq_from_the_barycenter_is_frank_wolfe_step_by_step(n, symmetric):
    problem = random_problem(n, n, symmetric=symmetric)
    A, B, L = (x.numpy() for x in (problem.A, problem.B, problem.linear))
    P = np.full((n, n), 1 / n)
    steps, alpha = 0, 1.0
    while steps < 30:
        steps += 1
        F = A @ P @ B.T + A.T @ P @ B + L
        Q = np.eye(n)[linear_sum_assignment(F)[1]]
        D = Q - P
        curvature, slope = (A @ D @ B.T * D).sum(), (F * D).sum()
        ends = [0.0, 1.0, *([np.clip(-slope / (2 * curvature), 0, 1)] if curvature > 0 else [])]
        alpha = min(ends, key=lambda x: slope * x + curvature * x * x)
        P = P + alpha * D
        if alpha * np.linalg.norm(D) / np.sqrt(n) < 0.03:
            break
    expected = torch.from_numpy(linear_sum_assignment(-P)[1])
    solution = make_solver("faq").solve(problem)
    assert torch.equal(solution.permutation, expected)
    assert solution.iterations == steps
    more = make_solver("faq", starts=50).solve(problem)
    assert more.value <= solution.value


def test_local_cka_solves_what_its_settings_say():
    g = np.random.default_rng(3)
    x = g.normal(size=(12, 6))
    shuffle = g.permutation(12)
    y = (x @ np.linalg.qr(g.normal(size=(6, 6)))[0] + 7)[shuffle]  # turned, moved and shuffled: CKA sees none of it
    K, M = x @ x.T, y @ y.T
    problem = QuadraticAssignmentProblem.from_similarity(K, M)
    solution = make_solver("local_cka").solve(problem)
    assert solution.permutation.tolist() == np.argsort(shuffle).tolist()
    skewed = random_problem(5, 10)
    transposed = QuadraticAssignmentProblem(skewed.A.mT, skewed.B, skewed.linear, skewed.constant)
    official = make_solver("local_cka", setting="official").solve(skewed)
    assert torch.equal(official.permutation, make_solver("faq").solve(transposed).permutation)
    assert official.value == skewed.objective(official.permutation)


@pytest.mark.parametrize("name", ["hahn_grant", "branch_and_bound", "local_search"])
def test_ctrl_c_returns_what_has_been_found(name):
    problem = random_problem(0, 22)
    many = {"max_iterations": 10**9} if name != "hahn_grant" else {"max_iterations": 10**9, "tolerance": 0.0}
    solver = make_solver(name, **many)
    make_solver(name, time_limit=0.0).solve(problem)  # compiled
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    before, start = signal.getsignal(signal.SIGINT), time.perf_counter()
    timer.start()
    solution = solver.solve(problem)
    assert time.perf_counter() - start < 15
    assert solution.status is Status.TIME_LIMIT
    assert solution.message.startswith("interrupted")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("name", "setting", "words"),
    [
        ("hahn_grant", {"schedule": "fast"}, "schedule must be 'smoothed' or 'published'"),
        ("hahn_grant", {"max_iterations": 0}, "max_iterations must be at least 1"),
        ("hahn_grant", {"tolerance": -1.0}, "tolerance must be"),
        ("branch_and_bound", {"max_iterations": 0}, "max_iterations must be at least 1"),
        ("local_search", {"method": "magic"}, "method must be one of"),
        ("local_search", {"starts": 0}, "starts must be at least 1"),
        ("two_opt", {"starts": 0}, "starts must be at least 1"),
        ("local_cka", {"setting": "best"}, "setting must be 'published' or 'official'"),
        ("faq", {"starts": 0}, "starts must be at least 1"),
        ("faq", {"tolerance": float("nan")}, "tolerance must be"),
    ],
)
def test_settings_out_of_range_are_refused(name, setting, words):
    with pytest.raises(ValueError, match=words):
        make_solver(name, **setting)
