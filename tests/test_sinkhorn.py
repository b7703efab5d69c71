"""Sinkhorn beyond the contract: against POT, at small regularisation, and its two gradients."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from conftest import exact_values, make_problem

from solvers import InvalidProblem, Status, TransportProblem, solve
from solvers.kernels.sinkhorn import LARGE
from solvers.sinkhorn_iterations import Batch, scale_compiled, scale_in_log_domain
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


def batched(problem, reg):
    """What both iterations take, of a problem with one batch dimension."""
    start = torch.where(problem.b > 0, 0.0, -torch.inf).double()
    count = torch.zeros(len(problem.cost), dtype=torch.int64)
    return Batch(problem.cost, problem.a, problem.b, torch.full((len(count),), reg, dtype=torch.float64), start), count


@pytest.mark.parametrize(("n", "m"), [(12, 9), (3, 17), (1, 5), (6, 1)])
@pytest.mark.parametrize("reg", [1e-3, 0.05, 1.0])
def test_the_compiled_iteration_is_the_log_domain_iteration(reg, n, m):
    problem = make_problem(TransportProblem, 4, n=n, m=m, seed=5)
    given = batched(problem, reg)
    for limit in (None, 100.0):
        compiled, plain = (
            scale(*given, 1e-6, torch.full((4,), 300), Clock(limit)) for scale in (scale_compiled, scale_in_log_domain)
        )
        assert compiled.iterations.tolist() == plain.iterations.tolist()
        assert compiled.converged.tolist() == plain.converged.tolist()
        torch.testing.assert_close(compiled.T, plain.T, rtol=1e-8, atol=1e-11)
        for ours, theirs in zip(compiled[1:3], plain[1:3], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m"), [(517, 523), (3, 50_000), (50_000, 3)])
def test_a_large_problem_in_blocks_of_rows_is_the_same_iteration(dtype, n, m):
    problem = make_problem(TransportProblem, 2, n=n, m=m, dtype=dtype)
    assert n * m * dtype.itemsize > LARGE
    given = batched(problem, 0.01)
    compiled, plain = (
        scale(*given, 1e-30, torch.tensor([3, 30]), Clock(None)) for scale in (scale_compiled, scale_in_log_domain)
    )
    torch.testing.assert_close(compiled.T, plain.T, rtol=1e-9 if dtype == torch.float64 else 2e-3, atol=1e-12)
    assert compiled.iterations.tolist() == plain.iterations.tolist() == [3, 30]


@pytest.mark.parametrize(("n", "m"), [(49, 49), (600, 500)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_answer_depends_neither_on_the_batch_nor_on_the_threads(n, m, dtype):
    batch = 64 if n < 100 else 3
    g = torch.Generator().manual_seed(n)
    C, a, b = (torch.rand(batch, *shape, generator=g, dtype=dtype) for shape in ((n, m), (n,), (m,)))
    a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    problem = TransportProblem(C, a, b)
    settings = {"reg": 0.01, "tolerance": 1e-4, "max_iterations": 60}
    together = solve(problem, "sinkhorn", **settings)
    for k in (0, batch - 1):
        alone = solve(TransportProblem(C[k], a[k], b[k]), "sinkhorn", **settings)
        assert torch.equal(alone.plan, together.plan[k])
        assert int(alone.iterations) == int(together.iterations[k])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert torch.equal(solve(problem, "sinkhorn", **settings).plan, together.plan)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reg", [1e-2, 1e-3, 1e-4])
def test_a_small_regularisation_converges_or_says_that_it_did_not(reg, dtype):
    x, y = (torch.rand(6, k, 2, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (15, 12))
    cost = torch.cdist(x, y) ** 2
    problem = TransportProblem((cost / cost.amax((-2, -1), keepdim=True)).to(dtype))
    exact = exact_values(problem)
    for settings in ({}, {"scaling": 0.5}, {"newton": True}):
        solution = solve(problem, "sinkhorn", reg=reg, tolerance=1e-6, max_iterations=100_000, **settings)
        converged = torch.tensor([s is Status.CONVERGED for s in solution.statuses])
        error = problem.marginal_error(solution.plan)
        assert converged.all() or (reg < 1e-2 and "newton" not in settings)
        assert (error[converged] <= 1e-6).all()
        assert (solution.iterations[~converged] == 100_000).all() or "resolves" in solution.message
        # The entropic plan costs at most ε log(n m) more than the best (Peyré and Cuturi 2019, prop. 4.1).
        assert (solution.value <= exact + reg * np.log(15 * 12) + 1e-6).all()
        assert (solution.value >= exact - 2e-6).all()


def test_scaling_down_reaches_the_same_plan_in_fewer_iterations():
    problem = make_problem(TransportProblem, 8, n=30)
    settings = {"reg": 2e-3, "tolerance": 1e-8, "max_iterations": 200_000}
    plain, scaled = (solve(problem, "sinkhorn", scaling=scaling, **settings) for scaling in (None, 0.5))
    assert plain.status is scaled.status is Status.CONVERGED
    torch.testing.assert_close(plain.plan, scaled.plan, rtol=0, atol=1e-6)
    assert scaled.iterations.sum() < plain.iterations.sum()
    short = solve(problem, "sinkhorn", reg=1e-4, scaling=0.9, max_iterations=150)
    assert int(short.iterations.max()) == 150
    f, g = (p.unsqueeze(d) for p, d in zip(short.potentials, (-1, -2), strict=True))
    torch.testing.assert_close(short.plan, torch.exp((f + g - problem.cost) / 1e-4), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("n", "m"), [(30, 30), (20, 45), (45, 20), (1, 4), (3, 1)])
@pytest.mark.parametrize("reg", [1.0, 1e-2, 1e-4])
def test_newton_reaches_the_plan_that_scaling_reaches_or_never_does(reg, n, m):
    problem = make_problem(TransportProblem, 6, n=n, m=m)
    newton = solve(problem, "sinkhorn", reg=reg, tolerance=1e-10, newton=True, max_iterations=1000)
    assert newton.status is Status.CONVERGED
    assert (problem.marginal_error(newton.plan) <= 1e-10).all()
    f, g = (p.unsqueeze(d) for p, d in zip(newton.potentials, (-1, -2), strict=True))
    torch.testing.assert_close(newton.plan, torch.exp((f + g - problem.cost) / reg), rtol=1e-7, atol=1e-12)
    if reg > 1e-3:
        plain = solve(problem, "sinkhorn", reg=reg, tolerance=1e-10, max_iterations=1_000_000)
        torch.testing.assert_close(newton.plan, plain.plan, rtol=0, atol=1e-8)
        assert newton.iterations.max() <= plain.iterations.max() + 100
    for k in (0, 5):
        alone = TransportProblem(problem.cost[k], problem.a[k], problem.b[k])
        alone = solve(alone, "sinkhorn", reg=reg, tolerance=1e-10, newton=True, max_iterations=1000)
        torch.testing.assert_close(alone.plan, newton.plan[k], rtol=0, atol=1e-9)


def test_newton_says_what_it_does_not_do():
    problem = make_problem(TransportProblem, n=3)
    with pytest.raises(ValueError, match="no unrolled gradient"):
        solve(problem, "sinkhorn", newton=True, gradient="unrolled")
    with pytest.raises(ValueError, match="shorter side is at most 2048"):
        solve(TransportProblem(torch.zeros(2049, 2049)), "sinkhorn", newton=True)
    limited = solve(make_problem(TransportProblem, n=40), "sinkhorn", reg=1e-4, newton=True, max_iterations=30)
    assert limited.status is Status.ITERATION_LIMIT
    assert int(limited.iterations) <= 30
    expired = solve(make_problem(TransportProblem, n=40), "sinkhorn", reg=1e-4, newton=True, time_limit=0.0)
    assert expired.status in (Status.TIME_LIMIT, Status.CONVERGED)  # a stretch of steps may be all it takes


def test_a_warm_start_goes_on_where_it_left():
    problem = make_problem(TransportProblem, 3, n=20)
    settings = {"reg": 0.01, "tolerance": 1e-14}
    whole = solve(problem, "sinkhorn", max_iterations=50, **settings)
    half = solve(problem, "sinkhorn", max_iterations=20, **settings)
    rest = solve(problem, "sinkhorn", max_iterations=30, warm_start=half.potentials, **settings)
    torch.testing.assert_close(rest.plan, whole.plan, rtol=1e-10, atol=1e-14)
    with pytest.raises(InvalidProblem, match=r"warm_start has shapes .* but the potentials"):
        solve(problem, "sinkhorn", warm_start=(half.potentials[1], half.potentials[0][:, :4]))
    with pytest.raises(InvalidProblem, match="warm_start must be finite"):
        solve(problem, "sinkhorn", warm_start=(half.potentials[0], half.potentials[1] * np.nan))


# ------------------------------------------------------------------------------------- knowledge-constrained transport


def test_a_prior_minimises_its_own_objective():
    problem = make_problem(TransportProblem, n=6, m=4)
    P = torch.rand(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    l1, l2 = 0.1, 0.05
    solution = solve(problem, "sinkhorn", reg=l1, prior=P, prior_weight=l2, tolerance=1e-13, max_iterations=100_000)

    def objective(T):
        T = T.clamp(min=1e-300)
        return (T * problem.cost).sum() + l1 * (T * (T.log() - 1)).sum() + l2 * (T * (T / P).log() - T + P).sum()

    best = objective(solution.plan)
    g = torch.Generator().manual_seed(2)
    inside = problem.a[:, None] * problem.b[None, :] > 0
    for _ in range(50):  # every step along a direction that keeps the marginals costs more
        step = torch.zeros(6, 4, dtype=torch.float64)
        rows, columns = torch.randperm(5, generator=g)[:2] + 1, torch.randperm(3, generator=g)[:2]
        step[rows[0], columns[0]] = step[rows[1], columns[1]] = 1
        step[rows[0], columns[1]] = step[rows[1], columns[0]] = -1
        assert inside[step != 0].all()
        assert objective(solution.plan + 1e-4 * solution.plan.clamp(max=1).amin() * step) >= best - 1e-15
        assert objective(solution.plan + 0.5 * solution.plan[step != 0].min() * step) > best


def test_no_mass_goes_where_the_prior_is_zero():
    problem = make_problem(TransportProblem, 2, n=5)
    P = torch.ones(5, 5, dtype=torch.float64)
    P[1, 2] = P[3, 0] = 0
    solution = solve(problem, "sinkhorn", prior=P, prior_weight=0.1, tolerance=1e-10)
    assert solution.status is Status.CONVERGED
    assert (solution.plan[:, P == 0] == 0).all()
    for bad, sentence in (
        (torch.ones(4, 5), "prior has shape"),
        (-P, "prior has a negative entry"),
        (P * np.nan, "prior holds"),
        (P * torch.tensor([0.0, 0, 0, 0, 1]), "prior is zero wherever"),
    ):
        with pytest.raises(InvalidProblem, match=sentence):
            solve(problem, "sinkhorn", prior=bad, prior_weight=0.1)
    with pytest.raises(ValueError, match="prior_weight"):
        solve(problem, "sinkhorn", prior=P)
    with pytest.raises(ValueError, match="prior_weight"):
        solve(problem, "sinkhorn", prior_weight=0.1)


@pytest.mark.parametrize("name", ["ram_kcot_A", "ram_kcot_B", "ram_kcot_C"])
def test_the_plans_of_the_official_knowledge_constrained_transport(name, golden):
    stored = golden(name)
    reg, reg_sc = float(stored["reg"]), float(stored["reg_sc"])
    for part in ("train", "zsl", "gzsl"):
        iterations = int(stored[f"{part}_sinkhorn_iters"])
        u, v = stored[f"{part}_u"], stored[f"{part}_v"]
        settings = {"reg": reg, "tolerance": 1e-30, "max_iterations": iterations}
        if part == "train":
            cost = stored["train_cost_base"]
            settings |= {"prior": torch.from_numpy(stored["teacher_prior_masked"]), "prior_weight": reg_sc}
        else:
            cost = stored[f"{part}_cost"]
        solution = solve(TransportProblem(cost, u, v), "sinkhorn", **settings)
        np.testing.assert_allclose(solution.plan.numpy(), stored[f"{part}_plan"], rtol=0, atol=1e-6)
        columns = solution.plan.sum(-2, dtype=torch.float64).numpy()
        np.testing.assert_allclose(columns, v / v.sum(-1, keepdims=True), rtol=0, atol=1e-6)


@pytest.mark.parametrize("reg", [0.05, 0.1, 0.5])
def test_the_plans_of_the_official_sinkhorn(reg, golden):
    stored = golden("ram_sinkhorn")
    problem = TransportProblem(stored["cost"], stored["a"], stored["b"])
    # The official loop runs until its scalings change by less than 1e-3 on average, all of a batch together.
    closest = min(
        np.abs(
            solve(problem, "sinkhorn", reg=reg, tolerance=1e-30, max_iterations=k).plan.numpy()
            - stored[f"plan_reg{reg}"]
        ).max()
        for k in range(1, 101)
    )
    assert closest <= 1e-6


# --------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("mode", ["implicit", "unrolled"])
def test_gradients_of_plan_value_and_potentials_reach_the_regularisation_and_the_prior(mode):
    g = torch.Generator().manual_seed(3)
    C, P = (torch.rand(2, 4, 3, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2))
    reg = torch.tensor([0.2, 0.5], dtype=torch.float64, requires_grad=True)
    W = torch.randn(2, 4, 3, generator=g, dtype=torch.float64)

    def outputs(C, reg, P):
        settings = {"tolerance": 1e-12, "max_iterations": 3000, "gradient": mode}
        s = solve(TransportProblem(C), "sinkhorn", reg=reg, prior=P + 0.1, prior_weight=0.1, **settings)
        f, _ = s.potentials
        return s.value, (s.plan * W).sum((-2, -1)), (f - f.mean(-1, keepdim=True)).square().sum()

    assert torch.autograd.gradcheck(outputs, (C, reg, P), eps=1e-6, atol=1e-7)


def test_the_value_at_one_regularisation_for_all_has_its_gradient():
    C = make_problem(TransportProblem, 3, n=5).cost
    reg = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    settings = {"tolerance": 1e-14, "max_iterations": 5000}
    assert torch.autograd.gradcheck(lambda r: solve(TransportProblem(C), "sinkhorn", reg=r, **settings).value, (reg,))


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
        {"scaling": 1.0},
        {"reg": torch.tensor([0.1, -0.1])},
    ):
        with pytest.raises(ValueError, match=next(iter(settings))):
            solve(problem, "sinkhorn", **settings)
