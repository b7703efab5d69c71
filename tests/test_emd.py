"""Exact transport beyond the contract: duals, degenerate problems, limits, the sign of the gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import exact_values, make_problem

from solvers import Status, TransportProblem, check, solve


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


def test_a_time_limit_in_reach_changes_nothing():
    problem = make_problem(TransportProblem, n=60)
    free, limited = solve(problem, "emd"), solve(problem, "emd", time_limit=60.0)
    torch.testing.assert_close(free.plan, limited.plan)


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
