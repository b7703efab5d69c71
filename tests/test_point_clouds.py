"""Point clouds: matrix-free Sinkhorn against the stored one, its lazy plan, its gradients and its memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from solvers import InvalidProblem, LazyPlan, PointCloudTransportProblem, Status, check, make_solver, solve
from solvers import matrix_free_sinkhorn as matrix_free
from solvers.lazy_plan import FactoredCost

METRICS = ["sqeuclidean", "cosine"]


def clouds(n=30, m=20, d=5, dtype=torch.float64, metric="sqeuclidean", seed=0, batch=()):
    """Two clouds with unequal weights and one node without mass on each side."""
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(*batch, k, d, generator=g, dtype=torch.float64) for k in (n, m))
    a, b = (torch.rand(*batch, k, generator=g, dtype=torch.float64) + 0.1 for k in (n, m))
    a[..., 3], b[..., 0] = 0, 0
    a, b = (w / w.sum(-1, keepdim=True) for w in (a, b))
    return PointCloudTransportProblem(*(t.to(dtype) for t in (x, y + 0.4, a, b)), metric=metric)


def mean_cost(problem):
    return float(problem.cost_rows(0, problem.shape[-2]).double().mean())


@pytest.mark.parametrize("metric", METRICS)
def test_the_cost_is_the_definition(metric):
    problem = clouds(metric=metric, batch=(2,))
    x, y = problem.x.unsqueeze(-2), problem.y.unsqueeze(-3)
    expected = (x - y).square().sum(-1) if metric == "sqeuclidean" else 1 - torch.cosine_similarity(x, y, dim=-1)
    torch.testing.assert_close(problem.to_dense().cost, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(problem.cost_rows(3, 9), expected[:, 3:9], rtol=0, atol=1e-13)
    assert (problem.largest_cost() >= expected.amax((-2, -1))).all()
    assert problem.to_dense().cost.shape == problem.shape


def test_a_cloud_far_from_the_origin_loses_no_digits():
    near = clouds()
    far = PointCloudTransportProblem(near.x + 1e6, near.y + 1e6, near.a, near.b)
    torch.testing.assert_close(far.to_dense().cost, near.to_dense().cost, rtol=0, atol=1e-8)


@pytest.mark.parametrize("reg", [1e-3, 0.05, 2.0])
@pytest.mark.parametrize("metric", METRICS)
def test_the_answer_is_that_of_the_stored_cost(metric, reg):
    problem = clouds(metric=metric, seed=1)
    settings = {"reg": reg * mean_cost(problem), "tolerance": 1e-12, "max_iterations": 5000}
    lazy = solve(problem, "sinkhorn", **settings)
    # Without extrapolation the smallest ε takes some 100,000 iterations: there the stored solve confirms the answer.
    start = lazy.potentials if reg < 0.01 else None
    stored = solve(problem.to_dense(), "sinkhorn", warm_start=start, **settings)
    assert lazy.status is stored.status is Status.CONVERGED
    assert check(problem, lazy) == []
    torch.testing.assert_close(lazy.value, stored.value, rtol=1e-10, atol=0)
    torch.testing.assert_close(lazy.plan.dense(), stored.plan, rtol=0, atol=1e-10)
    torch.testing.assert_close(lazy.lower_bound, stored.lower_bound, rtol=1e-8, atol=1e-8)
    assert float(lazy.marginal_error) <= 1e-12


@pytest.mark.parametrize("metric", METRICS)
def test_float32_agrees_with_float64_and_stays_float32(metric):
    problem, wide = clouds(metric=metric, dtype=torch.float32), clouds(metric=metric)
    settings = {"reg": 0.02 * mean_cost(wide), "tolerance": 1e-6, "max_iterations": 10_000}
    narrow, wide = solve(problem, "sinkhorn", **settings), solve(wide, "sinkhorn", **settings)
    assert narrow.status is Status.CONVERGED
    torch.testing.assert_close(narrow.value, wide.value, rtol=1e-6, atol=0)
    assert narrow.value.dtype == torch.float64
    assert all(p.dtype == torch.float32 for p in (*narrow.potentials, narrow.plan.dense(), problem.to_dense().cost))


def test_scaling_and_warm_start_lead_to_the_same_answer_sooner():
    problem = clouds(n=200, m=150, d=2)
    settings = {"reg": 0.002 * mean_cost(problem), "tolerance": 1e-9, "max_iterations": 20_000}
    cold = solve(problem, "sinkhorn", **settings)
    scaled = solve(problem, "sinkhorn", scaling=0.25, **settings)
    warm = solve(problem, "sinkhorn", warm_start=cold.potentials, **settings)
    for other in (scaled, warm):
        assert other.status is Status.CONVERGED
        torch.testing.assert_close(other.value, cold.value, rtol=1e-7, atol=0)
    assert int(warm.iterations) < int(cold.iterations) / 2


def test_extrapolation_saves_most_of_the_passes():
    problem = clouds(n=200, m=150, d=2)
    settings = {"reg": 0.01 * mean_cost(problem), "tolerance": 1e-7, "max_iterations": 20_000}
    lazy, plain = solve(problem, "sinkhorn", **settings), solve(problem.to_dense(), "sinkhorn", **settings)
    assert 2 * int(lazy.iterations) < int(plain.iterations)


def test_many_blocks_are_as_good_as_one(monkeypatch):
    problem = clouds(n=100, m=70)
    settings = {"reg": 0.05 * mean_cost(problem), "tolerance": 1e-12}
    whole = solve(problem, "sinkhorn", **settings)
    monkeypatch.setattr("solvers.lazy_plan.BLOCK", 70 * 24)
    assert [stop - start for start, stop in whole.plan.cost.blocks()] == [24, 24, 24, 24, 4]
    parts = solve(problem, "sinkhorn", **settings)
    torch.testing.assert_close(parts.value, whole.value, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.lower_bound, whole.lower_bound, rtol=1e-9, atol=0)
    torch.testing.assert_close(parts.plan.dense(), whole.plan.dense(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [1, 7, 64, 5000])
def test_a_pass_is_two_log_sum_exps(m, dtype):
    g = torch.Generator().manual_seed(m)
    X, Y = (torch.randn(k, 3, generator=g, dtype=torch.float64) for k in (21, m))
    X, v, a = 30 * X, torch.randn(m, generator=g, dtype=torch.float64), torch.rand(21, generator=g).double()
    logs, columns = matrix_free._Kernel(X, Y, dtype).scale(a, v, None)
    K = X @ Y.T + v
    atol = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(logs, K.logsumexp(-1), rtol=0, atol=atol)
    torch.testing.assert_close(columns, (a[:, None] * K.softmax(-1)).sum(0), rtol=0, atol=atol)


def test_columns_lost_to_underflow_are_found_again():
    x, y = torch.zeros(4, 2, dtype=torch.float64), torch.tensor([[0.0, 0.0], [40.0, 0.0], [0.0, 60.0]]).double()
    problem = PointCloudTransportProblem(x + 0.1 * torch.arange(8).reshape(4, 2), y)
    for reg in (1.0, 20.0):
        settings = {"reg": reg, "tolerance": 1e-12, "max_iterations": 50_000}
        solution, stored = solve(problem, "sinkhorn", **settings), solve(problem.to_dense(), "sinkhorn", **settings)
        assert solution.status is Status.CONVERGED
        torch.testing.assert_close(solution.plan.dense(), stored.plan, rtol=0, atol=1e-9)


def test_the_lazy_plan_is_the_plan():
    problem = clouds(batch=(2,))
    plan = solve(problem, "sinkhorn", reg=0.5).plan
    T = plan.dense()
    assert tuple(T.shape) == tuple(plan.shape) == (2, 30, 20)
    g = torch.Generator().manual_seed(1)
    v, V = (torch.randn(2, 20, *k, generator=g, dtype=torch.float64) for k in ((), (3,)))
    u, U = (torch.randn(2, 30, *k, generator=g, dtype=torch.float64) for k in ((), (3,)))
    torch.testing.assert_close(plan.rows(4, 11), T[:, 4:11])
    torch.testing.assert_close(plan.apply(V), T @ V)
    torch.testing.assert_close(plan.apply(v), (T @ v.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(plan.apply_transposed(U), T.mT @ U)
    torch.testing.assert_close(plan.apply_transposed(u), (T.mT @ u.unsqueeze(-1)).squeeze(-1))
    used = problem.a > 0
    assert torch.equal(plan.argmax()[used], T.argmax(-1)[used])
    centres = (T @ problem.y) / T.sum(-1, keepdim=True)
    torch.testing.assert_close(plan.barycenters(problem.y)[used], centres[used])
    assert torch.isfinite(plan.barycenters(problem.y)).all()
    with pytest.raises(ValueError, match=r"v has shape \(2, 30\).*must have shape \(2, 20\)"):
        plan.apply(u)


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_are_those_of_the_stored_cost_and_of_finite_differences(metric):
    problem = clouds(n=6, m=4, d=3, metric=metric)
    logits = [w.clamp(min=0.05).log() for w in (problem.a, problem.b)]
    reg = torch.tensor(0.2, dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in (problem.x, problem.y, *logits, reg)]

    def solution(x, y, a, b, reg, stored=False):
        problem = PointCloudTransportProblem(x, y, a.softmax(-1), b.softmax(-1), metric=metric)
        problem = problem.to_dense() if stored else problem
        return solve(problem, "sinkhorn", reg=reg, tolerance=1e-13, max_iterations=20_000)

    def value(*leaves):
        return solution(*leaves).value

    assert torch.autograd.gradcheck(value, leaves, eps=1e-6, atol=1e-6)

    def loss(s, T):
        f, g = s.potentials
        W = torch.linspace(0, 1, T.numel(), dtype=torch.float64).reshape(T.shape)
        return s.value + (T * W).sum() + (f.unsqueeze(-1) + g).square().mean()

    lazy, stored = solution(*leaves), solution(*leaves, stored=True)
    ours = torch.autograd.grad(loss(lazy, lazy.plan.dense()), leaves)
    theirs = torch.autograd.grad(loss(stored, stored.plan), leaves)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-7, atol=1e-8)


def test_nodes_without_mass_have_finite_gradients():
    problem = clouds(n=8, m=6)
    leaves = [t.clone().requires_grad_() for t in (problem.x, problem.y, problem.a, problem.b)]
    solution = solve(PointCloudTransportProblem(*leaves), "sinkhorn", reg=0.5, tolerance=1e-10)
    solution.value.backward()
    assert all(torch.isfinite(t.grad).all() for t in leaves)
    assert float(leaves[0].grad[3].abs().sum()) == 0


def test_a_gradient_that_is_not_exact_says_so():
    problem = clouds(n=40, m=40, d=2)
    x = problem.x.clone().requires_grad_()
    with_graph = PointCloudTransportProblem(x, problem.y, problem.a, problem.b)
    solution = solve(with_graph, "sinkhorn", reg=0.5, max_iterations=2)
    with pytest.warns(RuntimeWarning, match="allow more max_iterations"):
        solution.value.backward()


def test_the_referee_notices_what_is_wrong():
    problem = clouds()
    solution = solve(problem, "sinkhorn", reg=0.5)
    assert check(problem, solution) == []
    plan, (f, _) = solution.plan, solution.potentials
    faulty = {
        "the value is not the objective's": {"value": solution.value * (1 + 1e-6)},
        "the marginal error is not the plan's": {"marginal_error": solution.marginal_error + 1e-6},
        "a converged plan misses": {"plan": replace(plan, f=plan.f + 0.01), "value": None, "marginal_error": None},
        "the lower bound is above the one": {"lower_bound": solution.lower_bound + 1e-3},
        "the plan is one between other": {"plan": replace(plan, cost=replace(plan.cost, alpha=plan.cost.alpha + 1))},
        "OPTIMAL": {"status": Status.OPTIMAL, "statuses": (Status.OPTIMAL,)},
        "the second potential has shape": {"potentials": (f, f)},
        "yet there is no plan": {"plan": None},
    }
    for sentence, changes in faulty.items():
        changed = replace(solution, **{k: v for k, v in changes.items() if v is not None or k == "plan"})
        if "value" in changes and changes["value"] is None:
            T = changed.plan
            changed = replace(changed, value=problem.objective(T), marginal_error=problem.marginal_error(T))
        assert any(sentence in fault for fault in check(problem, changed)), sentence
    stored = replace(solution, plan=plan.dense())
    assert check(problem, stored) == []
    assert check(problem, replace(stored, plan=1.1 * plan.dense())) != []


@pytest.mark.parametrize("metric", METRICS)
def test_the_judge_computes_the_definitions(metric):
    problem = clouds(metric=metric, batch=(2,))
    plan, dense = solve(problem, "sinkhorn", reg=0.3, max_iterations=3).plan, problem.to_dense()
    g = torch.randn(2, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    value, error, f = problem.judge(plan, g)
    torch.testing.assert_close(value, dense.objective(plan.dense()), rtol=1e-13, atol=0)
    torch.testing.assert_close(value, problem.objective(plan), rtol=1e-13, atol=0)
    torch.testing.assert_close(error, dense.marginal_error(plan.dense()), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(f, (dense.cost - g.unsqueeze(-2)).amin(-1), rtol=1e-13, atol=1e-13)


def test_the_status_is_honest():
    problem = clouds(n=60, m=50)
    reg = 0.005 * mean_cost(problem)
    stopped = solve(problem, "sinkhorn", reg=reg, tolerance=1e-10, max_iterations=4)
    assert stopped.status is Status.ITERATION_LIMIT
    assert int(stopped.iterations) == 4
    assert float(stopped.marginal_error) > 1e-10
    late = solve(problem, "sinkhorn", reg=reg, tolerance=1e-10, time_limit=0.0)
    assert late.status is Status.TIME_LIMIT
    assert torch.isfinite(late.value)
    hopeless = solve(problem, "sinkhorn", reg=1e-308, max_iterations=5)
    assert hopeless.status is Status.NON_FINITE
    for solution in (stopped, late, hopeless):
        assert check(problem, solution) == []


def test_each_problem_of_a_batch_is_solved_by_itself():
    problem = clouds(batch=(2, 2))
    reg = torch.tensor([[0.2, 0.5], [1.0, 2.0]], dtype=torch.float64)
    together = solve(problem, "sinkhorn", reg=reg)
    for k in np.ndindex(2, 2):
        alone = PointCloudTransportProblem(problem.x[k], problem.y[k], problem.a[k], problem.b[k])
        alone = solve(alone, "sinkhorn", reg=float(reg[k]))
        assert int(together.iterations[k]) == int(alone.iterations)
        torch.testing.assert_close(together.plan.dense()[k], alone.plan.dense(), rtol=0, atol=1e-12)
    assert check(problem, together) == []


def test_inputs_are_never_modified():
    problem = clouds()
    before = [t.clone() for t in problem._tensors().values()]
    solve(problem, "sinkhorn", reg=0.5)
    assert all(torch.equal(t, u) for t, u in zip(problem._tensors().values(), before, strict=True))


@pytest.mark.parametrize(
    ("passed", "sentence"),
    [
        ({"x": np.zeros((3, 2)), "y": np.zeros((4, 3))}, r"x has shape \(3, 2\) and y has shape \(4, 3\).*dimension"),
        ({"x": np.zeros((2, 3, 2)), "y": np.zeros((4, 2))}, "the same batch"),
        ({"x": np.zeros((0, 2)), "y": np.zeros((4, 2))}, "no side may be empty"),
        ({"x": [[np.nan]], "y": [[0.0]]}, "x holds 1 NaN"),
        ({"x": np.ones((2, 2)), "y": [[1.0, 0.0], [0.0, 0.0]], "metric": "cosine"}, r"y has a point at the origin.*1"),
        ({"x": np.ones((2, 2)), "y": np.ones((2, 2)), "metric": "manhattan"}, "metric must be.*not 'manhattan'"),
        ({"x": np.ones((2, 2)), "y": np.ones((2, 2)), "a": [1.0, -1.0]}, "negative weight"),
        ({"x": np.ones((2, 2)), "y": np.ones((2, 2)), "a": [1.0, 1.0]}, "same total"),
        ({"x": np.ones((2, 2)), "y": np.ones((3, 2)), "b": [1.0, 1.0]}, r"b has shape \(2,\).*\(3,\)"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(passed, sentence):
    with pytest.raises(InvalidProblem, match=sentence):
        PointCloudTransportProblem(**passed)


def test_settings_that_need_a_stored_cost_are_refused():
    problem = clouds()
    with pytest.raises(ValueError, match=r"prior.*to_dense"):
        solve(problem, "sinkhorn", prior=torch.ones(30, 20), prior_weight=0.1)
    x = problem.x.clone().requires_grad_()
    with pytest.raises(ValueError, match=r"unrolled.*to_dense"):
        solve(PointCloudTransportProblem(x, problem.y), "sinkhorn", gradient="unrolled")
    with pytest.raises(TypeError, match=r"emd solves a .*not a PointCloudTransportProblem; problem.to_dense\(\)"):
        solve(problem, "emd")


MEASURE = """
import resource, torch
from solvers import PointCloudTransportProblem, Status, solve
n = {n}
g = torch.Generator().manual_seed(0)
problem = PointCloudTransportProblem(torch.randn(n, 64, generator=g), 1.2 * torch.randn(n, 64, generator=g) + 0.3)
reg = 0.05 * float(problem.cost_rows(0, 100).mean())
solution = solve(problem, "sinkhorn", reg=reg)
assert solution.status is Status.CONVERGED and float(solution.marginal_error) <= 1e-5
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_grows_with_the_points_and_not_with_the_pairs():
    def peak(n):
        done = subprocess.run([sys.executable, "-c", MEASURE.format(n=n)], check=True, capture_output=True, text=True)
        return int(done.stdout) / 1024  # in MB

    small, large = peak(1000), peak(20_000)  # the cost of the large one alone has 1600 MB in float32
    assert large - small < 400


def test_the_plan_moves_with_the_solution():
    plan = make_solver("sinkhorn", reg=0.5).solve(clouds()).plan
    assert isinstance(plan, LazyPlan)
    moved = plan.to("cpu")
    assert isinstance(moved.cost, FactoredCost)
    assert torch.equal(moved.dense(), plan.dense())
