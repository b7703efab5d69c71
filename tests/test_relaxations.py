"""Unbalanced and partial transport and the dustbin: against POT, SciPy and the papers' own iterations."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from conftest import HELD, exact_values, make_problem
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import (
    InvalidProblem,
    PartialTransportProblem,
    Status,
    TransportProblem,
    UnbalancedTransportProblem,
    check,
    solve,
)
from solvers.relaxed_iterations import RelaxedBatch, relax_compiled, relax_in_log_domain, what_holds
from solvers.solver import Clock

KINDS = [UnbalancedTransportProblem, PartialTransportProblem]
SHARP = {"tolerance": 1e-11, "max_iterations": 100_000}
REACHES = [0.01, 1.0, 30.0, (np.inf, 0.5), (2.0, np.inf), (0.3, 3.0)]
INF = float("inf")


def draw(n=6, m=5, batch=3, seed=0):
    """Costs and weights with different totals; the first row has no mass."""
    rng = np.random.default_rng(seed)
    a, b = rng.random((batch, n)) + 0.05, 1.5 * rng.random((batch, m)) + 0.05
    a[:, 0] = 0
    return rng.random((batch, n, m)), a, b


# ------------------------------------------------------------------------------------------- against other solvers


@pytest.mark.filterwarnings("ignore:If reg_type = entropy")
@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("reg", [0.02, 0.1, 1.0])
def test_the_unbalanced_plan_is_that_of_pot(reg, reach):
    C, a, b = draw()
    problem = UnbalancedTransportProblem(C, a, b, reach=reach)
    solution = solve(problem, "sinkhorn", reg=reg, **SHARP)
    assert solution.status is Status.CONVERGED
    for k in range(3):
        theirs = ot.unbalanced.sinkhorn_unbalanced(
            a[k][1:], b[k], C[k][1:], reg, tuple(problem.reach[k].tolist()), reg_type="entropy", numItermax=200_000,
            stopThr=1e-15, warn=False,
        )  # fmt: skip
        np.testing.assert_allclose(solution.plan[k][1:].numpy(), theirs, atol=1e-9)
    assert (solution.plan[:, 0] == 0).all()


@pytest.mark.parametrize("part", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("reg", [0.02, 0.1, 1.0])
def test_the_partial_plan_is_that_of_pot(reg, part):
    C, a, b = draw()
    problem = PartialTransportProblem(C, a, b, part * np.minimum(a.sum(-1), b.sum(-1)))
    solution = solve(problem, "sinkhorn", reg=reg, **SHARP)
    assert solution.status is Status.CONVERGED
    for k in range(3):
        theirs = ot.partial.entropic_partial_wasserstein(
            a[k][1:], b[k], C[k][1:], reg, m=float(problem.mass[k]), numItermax=100_000, stopThr=1e-16
        )
        np.testing.assert_allclose(solution.plan[k][1:].numpy(), theirs, atol=1e-9)


@pytest.mark.parametrize("part", [0.1, 0.6, 1.0])
def test_exact_partial_transport_is_that_of_pot_and_of_linear_programming(part):
    C, a, b = draw(7, 9)
    C = C - 0.5  # costs of both signs: the dummy nodes must not make anything of them
    problem = PartialTransportProblem(C, a, b, part * np.minimum(a.sum(-1), b.sum(-1)))
    solution = solve(problem)
    assert solution.solver == "emd"
    assert solution.status is Status.OPTIMAL
    torch.testing.assert_close(solution.value, exact_values(problem), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(solution.lower_bound, solution.value, rtol=1e-9, atol=1e-9)
    for k in range(3):  # POT takes costs ≥ 0: a constant moves the value by that times the mass
        theirs = ot.partial.partial_wasserstein2(a[k], b[k], C[k] + 0.5, m=float(problem.mass[k]))
        assert float(solution.value[k] + 0.5 * problem.mass[k]) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("reach", [0.05, 0.5, (0.2, 4.0)])
def test_the_unbalanced_value_tends_to_the_exact_one_and_the_bound_with_it(reach):
    C, a, b = draw(5, 4)
    problem = UnbalancedTransportProblem(C, a, b, reach=reach)
    exact = exact_values(problem)
    for k in range(3):
        rho = tuple(problem.reach[k].tolist())
        theirs = ot.unbalanced.mm_unbalanced(a[k], b[k], C[k], rho, div="kl", numItermax=50_000, stopThr=1e-14)
        value = problem.objective(torch.from_numpy(theirs))[k]
        assert float(value) == pytest.approx(float(exact[k]), abs=1e-4)
    for reg in (1e-2, 1e-3, 1e-4):
        solution = solve(problem, "sinkhorn", reg=reg, tolerance=1e-9, max_iterations=200_000)
        assert solution.status is Status.CONVERGED
        assert (exact <= solution.value + 1e-8).all()
        assert (solution.lower_bound <= exact + 1e-8).all()
        # The entropic plan loses at most ε times the spread of the entropy, and mass is at most 1.5 · 5 here.
        assert (solution.value - solution.lower_bound <= 25 * reg).all()


def test_the_entropic_unbalanced_solver_of_ram(golden):
    stored = golden("ram_sinkhorn")
    C, a, b = (stored[k].astype(np.float64) for k in ("cost", "a", "b"))
    K, u, v = np.exp(-C / 0.1), np.ones_like(a), np.ones_like(b)
    for iteration in range(1, 2001):
        u = (a / np.einsum("kij,kj->ki", K, v)) ** (1 / 1.1)
        v = (b / np.einsum("kij,ki->kj", K, u)) ** (1 / 1.1)
        if iteration == 30:  # where the official code stops
            plan = u[:, :, None] * K * v[:, None]
            np.testing.assert_allclose(plan, stored["plan_entropic_unbalanced_reg0.1_regm1"], atol=1e-6)
    solution = solve(UnbalancedTransportProblem(C, a, b, reach=1.0), "sinkhorn", reg=0.1, **SHARP)
    np.testing.assert_allclose(solution.plan.numpy(), u[:, :, None] * K * v[:, None], atol=1e-10)
    assert np.abs(solution.plan.numpy() - stored["plan_entropic_unbalanced_reg0.1_regm1"]).max() < 4e-5


# ---------------------------------------------------------------------------------------------------------- dustbin


def superglue(scores, z, iterations=500):
    """Log of the partial assignment P̄ of SuperGlue (CVPR 2020, eqs. 7–9) with its dustbins, marginals [1 … 1, N]."""
    M, N = scores.shape
    S = torch.full((M + 1, N + 1), 0.0, dtype=scores.dtype) + z
    S = torch.cat([torch.cat([scores, S[:-1, -1:]], 1), S[-1:]], 0)
    log_a = torch.tensor([1.0] * M + [N], dtype=scores.dtype).log()
    log_b = torch.tensor([1.0] * N + [M], dtype=scores.dtype).log()
    v = torch.zeros_like(log_b)
    for _ in range(iterations):
        u = log_a - (S + v).logsumexp(1)
        v = log_b - (S + u[:, None]).logsumexp(0)
    return S + u[:, None] + v


def test_the_dustbin_is_that_of_superglue():
    g = torch.Generator().manual_seed(0)
    scores = (3 * torch.randn(7, 5, generator=g, dtype=torch.float64)).requires_grad_()
    z = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    W = torch.randn(8, 6, generator=g, dtype=torch.float64)
    problem = TransportProblem.with_dustbin(-scores, -z)
    assert problem.cost.shape == (8, 6)
    assert float(problem.mass) == 12
    plan = solve(problem, "sinkhorn", reg=1.0, tolerance=1e-13, max_iterations=10_000).plan
    theirs = superglue(scores, z).exp()
    torch.testing.assert_close(plan, theirs, rtol=0, atol=1e-9)
    ours, reference = (torch.autograd.grad((P * W).sum(), (scores, z)) for P in (plan, theirs))
    for mine, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-7, atol=1e-8)


def test_an_exact_dustbin_leaves_what_costs_more_than_its_price():
    cost = np.array([[[0.0, 9.0], [9.0, 9.0]], [[0.0, 9.0], [9.0, 1.0]]])
    solution = solve(TransportProblem.with_dustbin(cost, np.array([2.0, 2.0])), "emd")
    np.testing.assert_allclose(solution.plan[:, :2, :2].numpy(), [[[1, 0], [0, 0]], [[1, 0], [0, 1]]], atol=1e-12)
    weighted = TransportProblem.with_dustbin(cost, 2.0, a=[0.5, 1.0], b=[2.0, 0.25])
    torch.testing.assert_close(weighted.a[0], torch.tensor([0.5, 1.0, 2.25], dtype=torch.float64))
    torch.testing.assert_close(weighted.b[0], torch.tensor([2.0, 0.25, 1.5], dtype=torch.float64))


# ------------------------------------------------------------------------------------------------------------ limits


def test_an_infinite_reach_and_the_whole_mass_are_the_balanced_problem():
    balanced = make_problem(TransportProblem, 3, n=8, m=6)
    parts = (balanced.cost, balanced.a, balanced.b)
    expected = solve(balanced, "sinkhorn", reg=0.05, **SHARP)
    hard = solve(UnbalancedTransportProblem(*parts, reach=INF), "sinkhorn", reg=0.05, **SHARP)
    whole = solve(PartialTransportProblem(*parts), "sinkhorn", reg=0.05, **SHARP)
    for solution in (hard, whole):
        torch.testing.assert_close(solution.plan, expected.plan, rtol=0, atol=1e-10)
        torch.testing.assert_close(solution.value, expected.value, rtol=1e-9, atol=1e-9)
    far = solve(UnbalancedTransportProblem(*parts, reach=1e7), "sinkhorn", reg=0.05, **SHARP)
    torch.testing.assert_close(far.plan, expected.plan, rtol=0, atol=1e-6)
    torch.testing.assert_close(solve(PartialTransportProblem(*parts)).value, solve(balanced).value)


def test_a_large_reach_takes_no_more_iterations_than_the_balanced_problem():
    balanced = make_problem(TransportProblem, n=12)
    parts = (balanced.cost, balanced.a, balanced.b)
    settings = {"reg": 0.05, "tolerance": 1e-9, "max_iterations": 10_000}
    expected = int(solve(balanced, "sinkhorn", **settings).iterations)
    for reach in (1e2, 1e4, 1e6):  # plain scaling would need about ρ/ε iterations
        problem = UnbalancedTransportProblem(parts[0], parts[1], 2 * parts[2], reach=reach)
        solution = solve(problem, "sinkhorn", **settings)
        assert solution.status is Status.CONVERGED
        assert int(solution.iterations) <= expected + 5


def test_no_reach_destroys_everything():
    C, a, b = draw()
    problem = UnbalancedTransportProblem(1 + C, a, b, reach=1e-3)
    solution = solve(problem, "sinkhorn", reg=1e-3)
    assert float(solution.plan.sum()) < 1e-100
    expected = 1e-3 * torch.from_numpy(a.sum(-1) + b.sum(-1))
    torch.testing.assert_close(solution.value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(solution.lower_bound, expected, rtol=1e-9, atol=0)


def test_a_semi_relaxed_side_is_held():
    C, a, b = draw()
    solution = solve(UnbalancedTransportProblem(C, a, b, reach=(INF, 0.2)), "sinkhorn", reg=0.05, tolerance=1e-10)
    np.testing.assert_allclose(solution.plan.sum(-1).numpy(), a, atol=1e-9)
    assert (solution.marginal_error <= 1e-9).all()
    assert np.abs(solution.plan.sum(-2).numpy() - b).max() > 0.01


# -------------------------------------------------------------------------------------------------------- iterations


def relaxed_batch(problem, reg):
    flat = problem.flattened()
    count = torch.zeros(len(flat.cost), dtype=torch.int64)
    start = torch.where(flat.b > 0, 0.0, -torch.inf).double()
    eps = torch.full((len(count),), reg, dtype=torch.float64)
    return RelaxedBatch(flat.cost, flat.a, flat.b, eps, start, what_holds(flat)), count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m"), [(12, 9), (3, 17), (1, 5), (6, 1)])
@pytest.mark.parametrize("reg", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_compiled_iteration_is_the_log_domain_iteration(kind, reg, n, m, dtype):
    problem = make_problem(kind, 4, n=n, m=m, dtype=dtype, seed=5)
    batch, count = relaxed_batch(problem, reg)
    for limit in (None, 100.0):
        compiled, plain = (
            relax(batch, count, 1e-6, torch.full((4,), 200), Clock(limit))
            for relax in (relax_compiled, relax_in_log_domain)
        )
        assert compiled.iterations.tolist() == plain.iterations.tolist()
        assert compiled.converged.tolist() == plain.converged.tolist()
        torch.testing.assert_close(compiled.T, plain.T, rtol=1e-8 if dtype == torch.float64 else 1e-5, atol=1e-9)
        for ours, theirs in zip(compiled[1:3], plain[1:3], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_problem_stops_by_itself_whatever_its_neighbours(kind):
    easy, hard = torch.zeros(4, 4, dtype=torch.float64), 10 * make_problem(kind, n=4).cost
    together = solve(kind(torch.stack([easy, hard]), **HELD[kind]), "sinkhorn", reg=0.05, tolerance=1e-8)
    assert together.iterations[0] < together.iterations[1]
    for k, cost in enumerate((easy, hard)):
        alone = solve(kind(cost, **HELD[kind]), "sinkhorn", reg=0.05, tolerance=1e-8)
        assert torch.equal(alone.plan, together.plan[k])
        assert int(alone.iterations) == int(together.iterations[k])


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_down_and_a_warm_start_reach_the_same_plan(kind):
    problem = make_problem(kind, 2, n=15, m=12)
    settings = {"reg": 5e-3, "tolerance": 1e-9, "max_iterations": 50_000}
    plain = solve(problem, "sinkhorn", **settings)
    scaled = solve(problem, "sinkhorn", scaling=0.5, **settings)
    again = solve(problem, "sinkhorn", warm_start=plain.potentials, **settings)
    for other in (scaled, again):
        assert other.status is Status.CONVERGED
        torch.testing.assert_close(other.plan, plain.plan, rtol=0, atol=1e-7)
    assert int(again.iterations.max()) <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_limits_are_told(kind):
    problem = make_problem(kind, n=10)
    if kind is PartialTransportProblem:  # with all the mass to carry it takes more than a few iterations
        problem = PartialTransportProblem(problem.cost, problem.a, problem.b)
    short = solve(problem, "sinkhorn", reg=0.005, tolerance=1e-10, max_iterations=3)
    assert short.status is Status.ITERATION_LIMIT
    assert int(short.iterations) == 3
    single = solve(make_problem(kind, n=30, dtype=torch.float32), "sinkhorn", reg=0.05, tolerance=1e-13)
    assert single.status is Status.ITERATION_LIMIT
    assert "resolves" in single.message


# --------------------------------------------------------------------------------------------------------- gradients


def leaves(kind, n, m, seed=0):
    """Cost, weights and what holds the marginals, two problems of each, all requiring a gradient."""
    g = torch.Generator().manual_seed(seed)
    C = torch.rand(2, n, m, generator=g, dtype=torch.float64)
    a, b = (torch.rand(2, k, generator=g, dtype=torch.float64) + 0.1 for k in (n, m))
    smaller = torch.minimum(a.sum(-1), b.sum(-1))
    held = torch.tensor([[0.5, 2.0], [50.0, 0.1]]).double() if kind is UnbalancedTransportProblem else 0.7 * smaller
    return [x.requires_grad_() for x in (C, a, b, held, torch.tensor([0.1, 0.2]).double())]


def answered(kind, C, a, b, held, reg, **settings):
    problem = kind(C, a, b, **{next(iter(HELD[kind])): held})
    solution = solve(problem, "sinkhorn", reg=reg, max_iterations=20_000, **settings)
    return solution.value, solution.plan, *solution.potentials


@pytest.mark.parametrize(("n", "m"), [(3, 5), (5, 3), (1, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_implicit_gradients_are_those_of_finite_differences(kind, n, m):
    def everything(*given):
        return answered(kind, *given, tolerance=1e-13)

    assert torch.autograd.gradcheck(everything, leaves(kind, n, m), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_unrolled_gradients_are_the_implicit_ones(kind):
    W = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = []
    for mode in ("implicit", "unrolled"):
        *given, reg = leaves(kind, 6, 4)
        given.append((3 * reg.detach()).requires_grad_())  # fewer iterations to unroll
        value, plan, f, g = answered(kind, *given, tolerance=1e-13, gradient=mode)
        loss = value.sum() + (plan * W).sum() + (f * given[1]).sum() + (g * given[2]).sum()
        grads.append(torch.autograd.grad(loss, given))
    for implicit, unrolled in zip(*grads, strict=True):
        torch.testing.assert_close(implicit, unrolled, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mode", ["implicit", "unrolled"])
@pytest.mark.parametrize("kind", KINDS)
def test_nodes_without_mass_have_finite_gradients(kind, mode):
    problem = make_problem(kind, n=5)
    given = [getattr(problem, k).clone().requires_grad_() for k in ("cost", "a", "b", *HELD[kind])]
    solution = solve(kind(*given[:3], **dict.fromkeys(HELD[kind], given[3])), "sinkhorn", reg=0.1, gradient=mode)
    assert float(solution.plan[0].detach().abs().sum()) == 0
    solution.value.backward()
    assert all(torch.isfinite(x.grad).all() for x in given)


def test_the_exact_partial_value_is_differentiable_in_the_mass_too():
    C, a, b, mass, _ = leaves(PartialTransportProblem, 4, 6)
    assert torch.autograd.gradcheck(
        lambda *given: solve(PartialTransportProblem(*given), "emd").value, (C, a, b, mass), eps=1e-6, atol=1e-6
    )


# ------------------------------------------------------------------------------------------------------ any problem


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 40),
    m=st.integers(1, 40),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    reg=st.sampled_from([1e-4, 1e-2, 1.0, 10.0]),
    held=st.sampled_from([0.01, 0.3, 0.9, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_any_problem_is_answered_honestly(kind, n, m, scale, reg, held, dtype, seed):
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 4, (n + m, 2)).astype(float)  # many of them repeated
    C = scale * ((points[:n, None] - points[None, n:]) ** 2).sum(-1) - scale * rng.integers(0, 2)
    a, b = (rng.random(k) * (rng.random(k) < 0.7) + (np.arange(k) == 0) for k in (n, m))
    parts = [torch.from_numpy(x).to(dtype) for x in (C, a, b)]
    how = {"reach": 10 * held * scale} if kind is UnbalancedTransportProblem else {}
    how = how or {"mass": held * float(min(parts[1].sum(), parts[2].sum()))}
    problem = kind(*parts, **how)
    solution = solve(problem, "sinkhorn", reg=reg * scale, tolerance=1e-4, max_iterations=2000)
    assert check(problem, solution) == []
    assert solution.status in (Status.CONVERGED, Status.ITERATION_LIMIT)
    assert torch.isfinite(solution.plan).all()
    assert (solution.plan[parts[1] == 0] == 0).all()
    if solution.status is Status.CONVERGED:
        assert problem.is_feasible(solution.plan, tol=2e-4)
    if kind is PartialTransportProblem:
        exact = solve(problem, "emd")
        assert exact.status is Status.OPTIMAL
        dearest = float(problem.mass * problem.cost.abs().max())
        assert float(solution.lower_bound) <= float(exact.value) + 1e-5 * dearest
        if solution.status is Status.CONVERGED:  # then it misses the bounds and the total by 1e-4 at most
            assert float(exact.value) <= float(solution.value) + 4e-4 * dearest
    else:  # every plan is feasible
        assert float(solution.lower_bound) <= float(solution.value) + 1e-5 * abs(float(solution.value))


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda C: UnbalancedTransportProblem(C, reach=0.0), "reach must be positive.*holds 0"),
        (lambda C: UnbalancedTransportProblem(C, reach=(1.0, float("nan"))), "reach must be positive.*nan"),
        (lambda C: UnbalancedTransportProblem(C, reach=np.ones(5)), r"reach has a part of shape \(5,\)"),
        (lambda C: UnbalancedTransportProblem(C, a=np.zeros(3), reach=1.0), "a has total mass 0"),
        (lambda C: UnbalancedTransportProblem(C, b=2 * np.ones(4), reach=INF), "Σa = 1 and Σb = 8"),
        (lambda C: PartialTransportProblem(C, mass=1.5), r"mass is 1.5 in problem 0.*at most min\(Σa, Σb\) = 1"),
        (lambda C: PartialTransportProblem(C, mass=[0.5, 0.0]), "mass is 0 in problem 1"),
        (lambda C: PartialTransportProblem(C, mass=[0.5, 0.5, 0.5]), r"mass has shape \(3,\).*have shape \(2,\)"),
        (lambda C: PartialTransportProblem(C, b=np.zeros(4)), "b has total mass 0"),
        (lambda C: TransportProblem.with_dustbin(C, np.inf), "bin_cost holds 1 NaN or infinite"),
        (lambda C: TransportProblem.with_dustbin(C, np.ones((2, 3))), r"bin_cost has shape \(2, 3\)"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, words):
    with pytest.raises(InvalidProblem, match=words) as caught:
        make(np.ones((2, 3, 4)))
    assert "\n" not in str(caught.value)


def test_a_reach_may_be_a_number_a_pair_or_one_of_each_problem():
    C = np.ones((2, 3, 4))
    per_problem = torch.tensor([1.0, 2.0]).double()
    for reach, expected in (
        (3, [[3, 3], [3, 3]]),
        ((1.0, INF), [[1, INF], [1, INF]]),
        (per_problem, [[1, 1], [2, 2]]),
        ((per_problem, 5.0), [[1, 5], [2, 5]]),
        (np.array([[1.0, 2.0], [3.0, 4.0]]), [[1, 2], [3, 4]]),
    ):
        assert UnbalancedTransportProblem(C, reach=reach).reach.tolist() == expected
    assert UnbalancedTransportProblem(C[0], reach=[1.0, 2.0]).reach.tolist() == [1, 2]


def test_totals_that_both_sides_hold_exactly_are_made_equal():
    C = np.ones((2, 3, 4))
    nearly = UnbalancedTransportProblem(C, b=np.full(4, 0.25 * (1 + 5e-7)), reach=torch.tensor([INF, 1.0]).double())
    assert abs(float(nearly.b[0].sum()) - 1) < 1e-15
    assert float(nearly.b[1].sum()) == pytest.approx(1 + 5e-7, abs=1e-12)
