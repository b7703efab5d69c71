"""Exact transport beyond the contract: any problem, duals, degenerate problems, limits, the sign of the gradients."""

from __future__ import annotations

import time

import numpy as np
import ot
import pytest
import torch
from conftest import exact_values, make_problem
from hypothesis import example, given, settings
from hypothesis import strategies as st

import solvers.emd
from solvers import Status, TransportProblem, check, solve

KINDS = ("reals", "ties", "points", "negative")


def any_problem(n, m, seed, kind, sparse, mass, *batch):
    """A problem of unit scale; ``sparse`` takes the mass of some nodes away, ``kind`` says what costs are like."""
    rng = np.random.default_rng(seed)
    C = rng.random((*batch, n, m))
    if kind == "ties":
        C = rng.integers(0, 3, (*batch, n, m)).astype(float)
    elif kind == "points":  # some of them repeated
        x, y = rng.integers(0, 4, (*batch, n, 2)), rng.integers(0, 4, (*batch, m, 2))
        C = np.linalg.norm(x[..., :, None, :] - y[..., None, :, :], axis=-1)
    elif kind == "negative":
        C = C - 2
    weights = []
    for size in (n, m):
        w = rng.integers(1, 5, (*batch, size)).astype(float) if kind == "ties" else rng.random((*batch, size)) + 1e-3
        if sparse:
            w[rng.random(w.shape) < 0.3] = 0
            w[..., rng.integers(size)] = 1
        weights.append(mass * w / w.sum(-1, keepdims=True))
    return C, *weights


sizes = st.integers(1, 40)
problems = st.tuples(
    sizes, sizes, st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.booleans(), st.sampled_from((1.0, 25.0, 1e-6))
)
scales = st.sampled_from((1.0, 1e-12, 1e12, 2.0**-300))


@settings(max_examples=40, deadline=None)
@given(problems, scales)
def test_the_value_is_that_of_linear_programming(parts, scale):
    C, a, b = any_problem(*parts)
    if C.size > 400:
        C, a, b = any_problem(*(min(k, 20) for k in parts[:2]), *parts[2:])
    solution = solve(TransportProblem(scale * C, a, b), "emd")
    assert solution.status is Status.OPTIMAL
    mass = a.sum()
    exact = scale * mass * exact_values(TransportProblem(C, a / mass, b / mass)).item()
    size = scale * mass * np.abs(C).max()
    assert solution.value.item() == pytest.approx(exact, rel=1e-9, abs=1e-9 * size)


@settings(max_examples=60, deadline=None)
@given(problems, scales)
@example((34, 29, 13598, "points", False, 1.0), 1e-12)  # potentials that are zero but for the rounding of large costs
def test_every_answer_is_a_vertex_that_its_potentials_prove(parts, scale):
    C, a, b = any_problem(*parts)
    problem = TransportProblem(scale * C, a, b)
    solution = solve(problem, "emd")
    assert solution.status is Status.OPTIMAL
    assert check(problem, solution) == []
    assert int((solution.plan > 0).sum()) <= C.shape[0] + C.shape[1] - 1
    size = scale * a.sum() * np.abs(C).max()
    assert abs(solution.value.item() - solution.lower_bound.item()) <= 1e-12 * size


@pytest.mark.parametrize(("n", "m"), [(200, 200), (300, 40), (40, 300), (120, 121), (1, 50), (50, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_larger_problems_agree_with_pot(n, m, kind):
    C, a, b = any_problem(n, m, n, kind, True, 1.0)
    solution = solve(TransportProblem(C, a, b), "emd")
    assert solution.status is Status.OPTIMAL
    assert solution.value.item() == pytest.approx(ot.emd2(a, b, C, numItermax=10**7), rel=1e-9, abs=1e-12)
    assert solution.gap.item() <= 1e-9


@pytest.mark.parametrize("shape", [(7, 7), (25, 25), (12, 30), (30, 12)])
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(shape):
    C, a, b = any_problem(*shape, 3, "points", True, 1.0, 64)
    if shape[0] == shape[1]:
        a[::2], b[::2] = 1 / shape[0], 1 / shape[0]  # every other one is an assignment
    together = solve(TransportProblem(C, a, b), "emd")
    for k in (0, 1, 6, 63):
        alone = solve(TransportProblem(C[k], a[k], b[k]), "emd")
        assert torch.equal(alone.plan, together.plan[k])
        assert torch.equal(alone.value, together.value[k])
        assert all(torch.equal(x, y[k]) for x, y in zip(alone.potentials, together.potentials, strict=True))


def test_equal_sides_with_uniform_weights_are_an_assignment():
    C = np.random.default_rng(0).random((3, 40, 40))
    solution = solve(TransportProblem(C), "emd")
    assert bool(((solution.plan == 0) | (solution.plan == 1 / 40)).all())
    torch.testing.assert_close(solution.value, exact_values(TransportProblem(C)), rtol=1e-9, atol=0)
    assert int(solution.iterations.max()) == 0


def test_deepemd_episodes(golden):
    stored = golden("deepemd_fcn_1shot_640d_25n")
    a, b = stored["weight_query"].astype(float), stored["weight_proto"].swapaxes(0, 1).astype(float)
    a, b = (25 * w / w.sum(-1, keepdims=True) for w in (a, b))
    solution = solve(TransportProblem(1 - stored["similarity"].astype(float), a, b), "emd")
    np.testing.assert_allclose(solution.value.numpy() / 25, stored["check_cost_exact_lp"], rtol=0, atol=1e-6)


def test_forbidden_pairs_of_huge_cost_do_not_blunt_the_optimum():
    rng = np.random.default_rng(5)
    C = rng.random((2, 30, 30))
    a, b = (rng.random((2, 30)) + 0.1 for _ in range(2))
    a, b = a / a.sum(-1, keepdims=True), b / b.sum(-1, keepdims=True)
    forbidden = rng.random(C.shape) < 0.3
    solution = solve(TransportProblem(np.where(forbidden, 1e12, C), a, b), "emd")
    moderate = solve(TransportProblem(np.where(forbidden, 1e3, C), a, b), "emd")
    torch.testing.assert_close(solution.value, moderate.value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_the_unit_of_mass_does_not_matter(scale):
    problem = make_problem(TransportProblem, n=6, m=9)
    scaled = TransportProblem(problem.cost, scale * problem.a, scale * problem.b)
    value, reference = solve(scaled, "emd").value.item() / scale, solve(problem, "emd").value.item()
    assert value == pytest.approx(reference, rel=1e-12)


def test_float32_is_solved_in_float64():
    problem = make_problem(TransportProblem, 8, n=30, m=20, dtype=torch.float32)
    solution = solve(problem, "emd")
    assert solution.plan.dtype == torch.float32
    torch.testing.assert_close(solution.value, exact_values(problem), rtol=1e-6, atol=0)


def test_the_potentials_are_feasible_tight_and_worth_the_value():
    problem = make_problem(TransportProblem, 20, n=12, m=9)
    solution = solve(problem, "emd")
    f, g = solution.potentials
    slack = problem.cost - f.unsqueeze(-1) - g.unsqueeze(-2)
    assert float(slack.min()) >= -1e-12
    assert float((slack * solution.plan).abs().max()) <= 1e-12
    dual = (problem.a * f).sum(-1) + (problem.b * g).sum(-1)
    torch.testing.assert_close(dual, solution.value, rtol=0, atol=1e-12)


def test_degenerate_problems_are_solved():
    n = 6
    ties = TransportProblem(torch.ones(n, n))
    permutation = TransportProblem(1 - torch.eye(n, dtype=torch.float64))
    one_source = TransportProblem(torch.rand(n, n, dtype=torch.float64), a=np.eye(n)[2], b=np.full(n, 1 / n))
    for problem in (ties, permutation, one_source):
        solution = solve(problem, "emd")
        assert solution.status is Status.OPTIMAL
        torch.testing.assert_close(solution.value, exact_values(problem), rtol=0, atol=1e-6)


def test_any_total_mass_is_carried():
    problem = TransportProblem(np.random.default_rng(0).random((5, 5)), a=np.arange(1.0, 6), b=np.arange(5.0, 0, -1))
    solution = solve(problem, "emd")
    assert float(solution.plan.sum()) == pytest.approx(15)
    assert solution.value.item() == pytest.approx(exact_values(problem).item())


def test_an_unfinished_simplex_gives_a_feasible_plan_and_a_true_bound():
    problem = make_problem(TransportProblem, n=40)
    solution = solve(problem, "emd", max_iterations=3)
    assert solution.status is Status.ITERATION_LIMIT
    assert problem.is_feasible(solution.plan)
    assert check(problem, solution) == []
    exact = float(exact_values(problem))
    assert float(solution.lower_bound) <= exact <= float(solution.value)
    assert "independent" in solution.message or "a bᵀ" in solution.message


@pytest.mark.parametrize("batch", [(), (30,)])
def test_a_time_limit_in_reach_changes_nothing(monkeypatch, batch):
    problem = make_problem(TransportProblem, *batch, n=60)
    free = solve(problem, "emd")
    monkeypatch.setattr(solvers.emd, "WORK", 2_000)  # the clock is looked at every few pivots
    limited = solve(problem, "emd", time_limit=60.0)
    assert int(free.iterations.min()) > 20
    assert torch.equal(free.plan, limited.plan)
    assert torch.equal(free.iterations, limited.iterations)


def test_a_time_limit_ends_a_large_problem_with_a_bound():
    rng = np.random.default_rng(2)
    a = rng.random(1500) + 0.1
    problem = TransportProblem(rng.random((1500, 1500)), a / a.sum())
    solve(make_problem(TransportProblem, n=3), "emd")  # compiled
    start = time.perf_counter()
    solution = solve(problem, "emd", time_limit=0.05)
    assert time.perf_counter() - start < 10
    assert solution.status is Status.TIME_LIMIT
    assert problem.is_feasible(solution.plan)
    assert 0 < float(solution.lower_bound) < float(solution.value)  # at least what minima of rows and columns prove
    assert int(solution.iterations) > 0


def test_gradients_are_plan_and_potentials():
    problem = make_problem(TransportProblem, n=5)
    leaves = [x.clone().requires_grad_() for x in (problem.cost, problem.a, problem.b)]
    solution = solve(TransportProblem(*leaves), "emd")
    solution.value.backward()
    torch.testing.assert_close(leaves[0].grad, solution.plan)
    torch.testing.assert_close(leaves[1].grad, solution.potentials[0])
    torch.testing.assert_close(leaves[2].grad, solution.potentials[1])


@pytest.mark.parametrize("name", ["sinkhorn", "emd"])
def test_costs_beyond_the_number_range_are_answered_or_told(name):
    C = 1e300 * np.random.default_rng(1).random((4, 4))
    settings = {"reg": 1e-6, "max_iterations": 50} if name == "sinkhorn" else {}
    solution = solve(TransportProblem(C), name, **settings)
    assert solution.status in (Status.OPTIMAL, Status.NON_FINITE, Status.ITERATION_LIMIT)
    assert check(solution.problem, solution) == []
