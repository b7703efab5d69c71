"""Sinkhorn on whatever hypothesis comes up with: sizes, zero weights, repeated points, huge and tiny costs."""

from __future__ import annotations

import numpy as np
import ot
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import Status, TransportProblem, check, solve

EXPONENTS = st.sampled_from([-12, -6, 0, 6, 12])


@st.composite
def problems(draw):
    """Point sets with repetitions, some weights zero, costs of any size; and the size of the costs."""
    n, m = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x, y = rng.integers(0, 4, (n, 2)) if draw(st.booleans()) else rng.random((n, 2)), rng.random((m, 2))
    scale = 10.0 ** draw(EXPONENTS)
    C = scale * ((x[:, None] - y[None]) ** 2).sum(-1) + draw(st.sampled_from([0.0, scale, -scale]))
    a, b = (rng.random(k) * (rng.random(k) > draw(st.sampled_from([0.0, 0.5]))) for k in (n, m))
    a[rng.integers(n)] = b[rng.integers(m)] = 1.0
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    mass = 10.0 ** draw(st.sampled_from([-6, 0, 6]))
    return TransportProblem(
        C.astype(dtype), (mass * a / a.sum()).astype(dtype), (mass * b / b.sum()).astype(dtype)
    ), scale


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from([1.0, 0.05, 1e-3]), st.sampled_from([{}, {"scaling": 0.5}, {"newton": True}]))
def test_a_plan_keeps_what_its_status_promises(drawn, reg, ways):
    problem, scale = drawn
    solution = solve(
        problem, "sinkhorn", reg=reg * scale, tolerance=1e-5, max_iterations=2000, **ways
    )  # the referee has looked at it already
    assert check(problem, solution) == []
    assert torch.isfinite(solution.plan).all()
    assert (solution.plan[problem.a == 0] == 0).all()
    assert (solution.plan[:, problem.b == 0] == 0).all()
    mass = float(problem.mass)
    a, b = (w.double().numpy() / w.double().numpy().sum() for w in (problem.a, problem.b))
    exact = ot.emd2(a, b, problem.cost.double().numpy() / scale) * scale * mass
    slack = 1e-4 * scale * mass
    assert float(solution.lower_bound) <= exact + slack
    if solution.status is Status.CONVERGED:
        assert float(solution.marginal_error) <= 1.01e-5 * mass
        n, m = problem.cost.shape
        assert exact - slack <= float(solution.value) <= exact + reg * scale * mass * np.log(n * m) + slack
    else:
        assert solution.status is Status.ITERATION_LIMIT
        assert int(solution.iterations) == 2000 or "resolves" in solution.message


@settings(max_examples=60, deadline=None)
@given(problems())
def test_a_regularisation_far_from_the_size_of_the_costs_is_survived(drawn):
    problem, _ = drawn
    solution = solve(problem, "sinkhorn", reg=0.05, max_iterations=50)
    assert torch.isfinite(solution.plan).all()
    assert solution.status in (Status.CONVERGED, Status.ITERATION_LIMIT)
    # The last half of an iteration makes the columns exact, whatever went before, to what the potentials resolve.
    error = (solution.plan.sum(-2, dtype=torch.float64) - problem.b).abs().sum()
    resolved = 1e-15 * float(problem.cost.abs().max()) / 0.05 + (1e-9 if problem.dtype == torch.float64 else 1e-4)
    assert float(error) <= resolved * float(problem.mass)


@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from([1.0, 0.1]))
def test_gradients_are_finite_and_sum_to_what_they_must(drawn, reg):
    problem, scale = drawn
    C = problem.cost.clone().requires_grad_()
    solution = solve(TransportProblem(C, problem.a, problem.b), "sinkhorn", reg=reg * scale, max_iterations=5000)
    solution.value.backward()
    assert torch.isfinite(C.grad).all()
    if solution.status is Status.CONVERGED:  # a shift of all costs shifts the value by the mass
        total, size = float(C.grad.sum(dtype=torch.float64)), float(C.grad.abs().sum(dtype=torch.float64))
        assert abs(total - float(problem.mass)) <= 1e-3 * max(size, float(problem.mass))
