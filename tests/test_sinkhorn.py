"""Sinkhorn beyond the contract: against POT, at small regularisation, and its two gradients."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from conftest import make_problem

from solvers import Status, TransportProblem, solve
from solvers.sinkhorn import Sinkhorn
from solvers.solver import Clock


@pytest.mark.parametrize("reg", [0.02, 0.1, 1.0])
def test_the_plan_is_that_of_pot(reg):
    problem = make_problem(TransportProblem, 3, n=6, m=4)
    solution = solve(problem, "sinkhorn", reg=reg, tolerance=1e-12, max_iterations=100_000)
    for k in range(3):
        a, b, C = (x[k].numpy() for x in (problem.a, problem.b, problem.cost))
        rows, columns = a > 0, b > 0
        plan = ot.sinkhorn(
            a[rows], b[columns], C[np.ix_(rows, columns)], reg, method="sinkhorn_log", stopThr=1e-13, numItermax=100_000
        )
        expected = np.zeros_like(C)
        expected[np.ix_(rows, columns)] = plan
        np.testing.assert_allclose(solution.plan[k].numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_regularisation_neither_overflows_nor_underflows(dtype):
    problem = make_problem(TransportProblem, n=20, dtype=dtype)
    solution = solve(problem, "sinkhorn", reg=1e-4, tolerance=1e-3, max_iterations=20_000)
    exact = solve(problem, "emd").value
    assert torch.isfinite(solution.plan).all()
    assert abs(float(solution.value - exact)) < 2e-3
    assert float(solution.lower_bound) <= float(exact) + 1e-5


def test_the_stopping_error_is_the_error_of_the_returned_plan():
    problem = make_problem(TransportProblem, 5, n=8, m=11)
    for tolerance in (1e-2, 1e-4, 1e-8):
        solution = solve(problem, "sinkhorn", reg=0.05, tolerance=tolerance)
        assert solution.status is Status.CONVERGED
        assert (problem.marginal_error(solution.plan) <= tolerance).all()
        before = solve(
            problem, "sinkhorn", reg=0.05, tolerance=1e-15, max_iterations=int(solution.iterations.min()) - 1
        )
        assert (before.marginal_error > 0.9 * tolerance).any(), "it could have stopped an iteration earlier"


def test_a_problem_stops_by_itself_whatever_its_neighbours():
    easy, hard = torch.zeros(4, 4, dtype=torch.float64), 10 * make_problem(TransportProblem, n=4).cost
    solution = solve(TransportProblem(torch.stack([easy, hard])), "sinkhorn", reg=0.05, tolerance=1e-8)
    assert solution.iterations[0] < solution.iterations[1]


def test_the_iteration_limit_is_told():
    problem = make_problem(TransportProblem, n=10)
    solution = solve(problem, "sinkhorn", reg=0.005, tolerance=1e-10, max_iterations=3)
    assert solution.status is Status.ITERATION_LIMIT
    assert int(solution.iterations) == 3
    assert "iteration limit" in solution.status.sentence


def test_a_tolerance_below_the_precision_is_told():
    problem = make_problem(TransportProblem, n=30, dtype=torch.float32)
    solution = solve(problem, "sinkhorn", reg=0.01, tolerance=1e-12, max_iterations=200)
    assert solution.status is Status.ITERATION_LIMIT


def test_implicit_and_unrolled_gradients_of_plan_and_potentials_agree():
    g = torch.Generator().manual_seed(3)
    C = torch.rand(2, 6, 4, generator=g, dtype=torch.float64)
    a, b = (torch.rand(2, k, generator=g, dtype=torch.float64).softmax(-1) for k in (6, 4))
    W = torch.randn(2, 6, 4, generator=g, dtype=torch.float64)
    grads = {}
    for mode in ("implicit", "unrolled"):
        leaves = [t.clone().requires_grad_() for t in (C, a, b)]
        s = solve(TransportProblem(*leaves), "sinkhorn", reg=0.1, tolerance=1e-14, max_iterations=5000, gradient=mode)
        f, h = s.potentials
        ((s.plan * W).sum() + (f * leaves[1]).sum() + (h * leaves[2]).sum()).backward()
        # A constant in the weights' gradients is not determined: the totals are fixed.
        grads[mode] = [leaves[0].grad, *(x.grad - x.grad.mean(-1, keepdim=True) for x in leaves[1:])]
    for implicit, unrolled in zip(grads["implicit"], grads["unrolled"], strict=True):
        torch.testing.assert_close(implicit, unrolled, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("mode", ["implicit", "unrolled"])
def test_nodes_without_mass_have_finite_gradients(mode):
    problem = make_problem(TransportProblem, n=5)
    leaves = [t.clone().requires_grad_() for t in (problem.cost, problem.a, problem.b)]
    solution = solve(TransportProblem(*leaves), "sinkhorn", reg=0.1, gradient=mode)
    assert float(solution.plan[0].detach().abs().sum()) == 0
    solution.value.backward()
    assert all(torch.isfinite(x.grad).all() for x in leaves)


@pytest.mark.parametrize("reg", [1e-3, 0.05, 1.0])
def test_the_compiled_iteration_is_the_log_domain_iteration(reg):
    problem = make_problem(TransportProblem, 4, n=12, m=9, seed=5)
    parts = (problem.cost, problem.a, problem.b)
    solver = Sinkhorn(reg=reg, tolerance=1e-6, max_iterations=300)
    for limit in (None, 100.0):
        compiled, plain = solver._compiled(*parts, Clock(limit)), solver._iterate(*parts, Clock(limit))
        assert compiled[2].tolist() == plain[2].tolist()
        assert compiled[3] == plain[3]
        for ours, theirs in zip(compiled[:2], plain[:2], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_settings_out_of_range_are_refused():
    problem = make_problem(TransportProblem, n=3)
    for settings in ({"reg": "0.1"}, {"max_iterations": 2.5}, {"seed": None}, {"reg": True}):
        with pytest.raises(TypeError, match=f"{next(iter(settings))} must be an? (number|integer), not"):
            solve(problem, "sinkhorn", **settings)
    for settings in (
        {"reg": 0.0},
        {"reg": np.nan},
        {"reg": -1.0},
        {"tolerance": 0.0},
        {"max_iterations": 0},
        {"gradient": "none"},
    ):
        with pytest.raises(ValueError, match=next(iter(settings))):
            solve(problem, "sinkhorn", **settings)
