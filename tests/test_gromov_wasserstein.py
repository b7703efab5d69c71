"""Gromov–Wasserstein: against POT, against the papers' own figures, and against what must be true of any solution."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import ot
import pytest
import torch
from conftest import exact_values, make_problem

from solvers import AssignmentProblem, InvalidProblem, QuadraticAssignmentProblem, Status, check, solve
from solvers.gromov_wasserstein import gromov_wasserstein

METHODS = [{"method": "conditional_gradient"}, {"method": "entropic", "reg": 0.05}]
each_method = pytest.mark.parametrize("settings", METHODS, ids=lambda s: s["method"])


def points(n: int, seed: int, dimension: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dimension))


def distances(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x[..., :, None, :] - x[..., None, :, :], axis=-1)


def pair(n: int, seed: int = 0, *batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances of points and of the same, moved a little and shuffled; in [0, 1]."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((*batch, n, 2))
    Dx, Dy = distances(x), distances((x + 0.05 * rng.standard_normal(x.shape))[..., ::-1, :])
    return Dx / Dx.max(), Dy / Dx.max()


def unequal(n: int, m: int, seed: int = 0):
    """Distances of n and of m points with unequal weights, one of them zero; positive throughout for the KL loss."""
    rng = np.random.default_rng(seed)
    a, b = rng.random(n) + 0.1, rng.random(m) + 0.1
    a[1] = 0
    Dx, Dy = (distances(points(k, seed + k)) + 0.5 for k in (n, m))
    return Dx, Dy, a / a.sum(), b / b.sum()


def gw_by_definition(Dx, Dy, T, loss):
    value = 0.0
    for i, k in itertools.product(range(len(Dx)), repeat=2):
        x = Dx[i, k]
        ell = (x - Dy) ** 2 if loss == "square" else x * np.log(x / Dy) - x + Dy
        value += T[i] @ ell @ T[k]
    return value


# ------------------------------------------------------------------------------------------------------- the solver


@each_method
def test_isometric_shapes_are_matched_exactly(settings):
    for n, seed in itertools.product((5, 12, 40), range(3)):
        Dx, shuffle = pair(n, seed)[0], np.random.default_rng(seed).permutation(n)
        problem = QuadraticAssignmentProblem.from_gromov_wasserstein(Dx, Dx[np.ix_(shuffle, shuffle)])
        solution = solve(problem, "gromov_wasserstein", **settings, restarts=10)
        assert shuffle[solution.permutation.numpy()].tolist() == list(range(n))
        assert abs(solution.value.item()) < 1e-9 * Dx.size


@pytest.mark.parametrize("n", [6, 15, 40])
def test_conditional_gradient_is_as_good_as_pot(n):
    """Equal where the energy is concave, which distances make it: both then go from vertex to vertex."""
    for seed in range(5):
        Dx, Dy = distances(points(n, seed)), distances(points(n, seed + 50, 3))
        solution = solve(QuadraticAssignmentProblem.from_gromov_wasserstein(Dx, Dy), "gromov_wasserstein")
        T, log = ot.gromov.gromov_wasserstein(Dx, Dy, log=True)
        np.testing.assert_allclose(solution.value.item() / n**2, log["gw_dist"], rtol=1e-9)
        np.testing.assert_allclose(solution.plan, T, atol=1e-9)
        assert solution.status is Status.CONVERGED


def test_away_steps_end_where_plain_steps_zigzag():
    """Some of these have their minimum on a face, where plain conditional gradient takes thousands of steps."""
    for seed in range(8):
        problem = make_problem(QuadraticAssignmentProblem, n=8, seed=seed)
        solution = solve(problem, "gromov_wasserstein", tolerance=1e-10, max_iterations=300)
        assert solution.status is Status.CONVERGED
        X = 8 * solution.plan
        gradient = problem.A @ X @ problem.B.mT + problem.A.mT @ X @ problem.B + problem.linear
        lowest = solve(AssignmentProblem(gradient)).value
        assert (gradient * X).sum() - lowest <= 1e-10 * 2 * 8**2  # stationary: no vertex is downhill
        start = torch.full((8, 8), 1 / 8, dtype=torch.float64)
        assert problem.objective(X) < problem.objective(start)


@pytest.mark.parametrize("reg", [0.03, 0.05])
def test_the_entropic_plan_is_that_of_pot(reg):
    Dx, Dy = pair(9)
    solution = solve(
        QuadraticAssignmentProblem.from_gromov_wasserstein(Dx, Dy), "gromov_wasserstein",
        method="entropic", reg=reg, tolerance=1e-18, inner_iterations=10_000,
    )  # fmt: skip
    T = ot.gromov.entropic_gromov_wasserstein(Dx, Dy, epsilon=reg, tol=1e-11, stopThr=1e-12, numItermax=100_000)
    np.testing.assert_allclose(solution.plan, T, atol=1e-6)
    assert solution.status is Status.CONVERGED


def test_the_entropic_plan_is_stationary_where_whole_steps_go_uphill():
    """A convex energy: T = Sinkhorn(∇E(T)) must hold at the end, though stepping there wholly would oscillate."""
    rng = np.random.default_rng(0)
    M = rng.random((6, 6))
    problem = QuadraticAssignmentProblem(M @ M.T, M @ M.T + np.eye(6), rng.random((6, 6)))
    reg = 0.02
    solution = solve(
        problem, "gromov_wasserstein", method="entropic", reg=reg, tolerance=1e-18, inner_iterations=10_000
    )
    assert solution.status is Status.CONVERGED
    T, A, B = solution.plan.numpy(), problem.A.numpy(), problem.B.numpy()
    gradient = A @ T @ B.T + A.T @ T @ B + problem.linear.numpy() / 6
    w = np.full(6, 1 / 6)
    S = ot.sinkhorn(w, w, gradient, reg, method="sinkhorn_log", stopThr=1e-12, numItermax=100_000)
    np.testing.assert_allclose(T, S, atol=1e-7)


@each_method
def test_plan_and_permutation_fit_together(settings):
    problem = make_problem(QuadraticAssignmentProblem, 4, n=7)
    solution = solve(problem, "gromov_wasserstein", **settings, tolerance=1e-14)
    assert check(problem, solution) == []
    torch.testing.assert_close(solution.value, problem.objective(solution.permutation))
    torch.testing.assert_close(solution.plan.sum(-1), torch.full((4, 7), 1 / 7, dtype=torch.float64), atol=1e-6, rtol=0)
    overlap = solution.plan.gather(-1, solution.permutation.unsqueeze(-1)).sum((-2, -1))
    torch.testing.assert_close(overlap, -solve(AssignmentProblem(-solution.plan)).value)
    assert (solution.value >= exact_values(problem) - 1e-9).all()
    assert solution.iterations.shape == (4,)


@each_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_problem_is_answered_alike_alone_and_in_a_batch(settings, dtype):
    Dx, Dy = (torch.from_numpy(D).to(dtype) for D in pair(9, 1, 64))
    together = solve(QuadraticAssignmentProblem.from_gromov_wasserstein(Dx, Dy), "gromov_wasserstein", **settings)
    assert together.plan.dtype == dtype
    for k in (0, 17, 63):
        problem = QuadraticAssignmentProblem.from_gromov_wasserstein(Dx[k], Dy[k])
        alone = solve(problem, "gromov_wasserstein", **settings)
        assert torch.equal(alone.plan, together.plan[k])
        assert torch.equal(alone.permutation, together.permutation[k])
        assert alone.iterations == together.iterations[k]


@each_method
def test_restarts_never_hurt_and_depend_on_the_seed_alone(settings):
    problem, settings = make_problem(QuadraticAssignmentProblem, 6, n=7, seed=3), settings | {"reg": 0.002}
    once = solve(problem, "gromov_wasserstein", **settings)
    more = solve(problem, "gromov_wasserstein", **settings, restarts=10, seed=5)
    assert (more.value <= once.value).all()
    assert (more.value < once.value).any()
    again = solve(problem, "gromov_wasserstein", **settings, restarts=10, seed=5)
    assert torch.equal(more.permutation, again.permutation)
    one = QuadraticAssignmentProblem(**{f.name: getattr(problem, f.name)[2] for f in dataclasses.fields(problem)})
    alone = solve(one, "gromov_wasserstein", **settings, restarts=10, seed=5)
    assert torch.equal(alone.permutation, more.permutation[2])


def test_a_good_start_is_kept():
    problem = make_problem(QuadraticAssignmentProblem, 2, n=6)
    best = solve(problem, "brute_force")
    start = problem.matrix(best.permutation) / 6
    solution = solve(problem, "gromov_wasserstein", initial=start)
    assert (problem.objective(6 * solution.plan) <= best.value + 1e-12).all()
    with pytest.raises(InvalidProblem, match="shape"):
        solve(problem, "gromov_wasserstein", initial=start[0, :5])
    with pytest.raises(InvalidProblem, match="marginals are off by 4"):
        solve(problem, "gromov_wasserstein", initial=3 * start)


@each_method
def test_limits_are_told(settings):
    problem = make_problem(QuadraticAssignmentProblem, 3, n=12, seed=1)
    short = solve(problem, "gromov_wasserstein", **settings, max_iterations=1)
    assert short.status is Status.ITERATION_LIMIT
    assert short.iterations.tolist() == [1, 1, 1]
    huge = QuadraticAssignmentProblem(1e200 * problem.A, 1e200 * problem.B)
    assert solve(huge, "gromov_wasserstein", **settings).status is Status.NON_FINITE


@pytest.mark.parametrize(
    ("setting", "value"),
    [("method", "newton"), ("reg", 0.0), ("tolerance", -1.0), ("max_iterations", 0), ("restarts", -1)],
)
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(ValueError, match=setting):
        solve(make_problem(QuadraticAssignmentProblem, n=3), "gromov_wasserstein", **{setting: value})


@pytest.mark.parametrize("name", ["N6", "N8", "N8_hard", "N10", "N20", "N30"])
def test_the_official_blind_matching_instances(golden, name):
    """The entropic baseline of the paper is POT's on doubled costs at ε = 0.1; its permutation costs what ours does."""
    stored = golden(f"blind_match_{name}")
    problem = QuadraticAssignmentProblem(
        *(stored[f"gw_cost{k}"].astype(np.float64) for k in (1, 2)), constant=float(stored["gw_constant"])
    )
    n = problem.A.shape[-1]
    entropic = solve(problem, "gromov_wasserstein", method="entropic", reg=0.05, inner_iterations=1000)
    official = torch.from_numpy(stored["gw_entropic_ot_perm"])
    np.testing.assert_allclose(problem.objective(official).item(), stored["gw_entropic_ot_cost"], atol=3e-6 * n**2)
    assert entropic.value.item() <= stored["gw_entropic_ot_cost"] + 3e-6 * n**2
    if "gw_check_best_f64" in stored:
        restarted = solve(problem, "gromov_wasserstein", restarts=200)
        np.testing.assert_allclose(restarted.value.item(), stored["gw_check_best_f64"], atol=3e-6 * n**2)


# --------------------------------------------------------------------------------------------- the losses as problems


def test_the_kl_loss_is_a_quadraticAssignmentProblem():
    rng = np.random.default_rng(0)
    Dx, Dy = rng.random((6, 6)), rng.random((6, 6)) + 0.1
    problem = QuadraticAssignmentProblem.from_gromov_wasserstein(Dx, Dy, loss="kl")
    for p in (np.arange(6), rng.permutation(6)):
        y = Dy[np.ix_(p, p)]
        np.testing.assert_allclose(
            problem.objective(torch.from_numpy(p)).item(), (Dx * np.log(Dx / y) - Dx + y).sum(), rtol=1e-12
        )
    Dx, Dy = pair(6)
    problem = QuadraticAssignmentProblem.from_gromov_wasserstein(Dx, Dy, loss="kl")
    off, y = ~np.eye(6, dtype=bool), Dy[::-1, ::-1]
    expected = (Dx[off] * np.log(Dx[off] / y[off]) - Dx[off] + y[off]).sum()
    np.testing.assert_allclose(problem.objective(torch.arange(6).flip(0)).item(), expected, rtol=1e-12)


def test_what_the_kl_loss_does_not_allow_is_refused():
    D = distances(points(4, 0))
    build = QuadraticAssignmentProblem.from_gromov_wasserstein
    with pytest.raises(InvalidProblem, match=r"Dx to be zero or positive, but Dx\[1, 2\] is -1"):
        build(np.where(np.arange(16).reshape(4, 4) == 6, -1.0, D), D, loss="kl")
    with pytest.raises(InvalidProblem, match=r"Dy to be positive, but Dy\[0, 1\] is 0"):
        build(D, np.where(np.arange(16).reshape(4, 4) == 1, 0.0, D), loss="kl")
    with pytest.raises(InvalidProblem, match=r"Dy\[0, 0\] is 0"):
        build(D + 1, D, loss="kl")
    with pytest.raises(InvalidProblem, match=r"Dy\[0, 0\] is 0"):
        gromov_wasserstein(D, D, loss="kl")
    with pytest.raises(ValueError, match="loss must be"):
        build(D, D, loss="absolute")


# ------------------------------------------------------------------------------------------ any sizes, any weights


@pytest.mark.parametrize("loss", ["square", "kl"])
@pytest.mark.parametrize("sizes", [(7, 7), (5, 9), (20, 12)])
def test_any_sizes_and_weights_against_pot(loss, sizes):
    """Never above POT's conditional gradient, which takes the same steps but for the away steps."""
    for seed in range(4):
        Dx, Dy, a, b = unequal(*sizes, seed=seed)
        found = gromov_wasserstein(Dx, Dy, a, b, loss=loss, tolerance=1e-10)
        _, log = ot.gromov.gromov_wasserstein(Dx, Dy, a, b, loss_fun=f"{loss}_loss", log=True)
        assert found.statuses == (Status.CONVERGED,)
        assert found.value.item() <= log["gw_dist"] + 1e-8
        T = found.plan.numpy()
        np.testing.assert_allclose(found.value.item(), gw_by_definition(Dx, Dy, T, loss), rtol=1e-9)
        np.testing.assert_allclose(T.sum(1), a, atol=1e-12)
        np.testing.assert_allclose(T.sum(0), b, atol=1e-12)
        assert T.min() >= 0


@pytest.mark.parametrize("loss", ["square", "kl"])
def test_entropic_with_any_sizes_and_weights_against_pot(loss):
    Dx, Dy, a, b = unequal(6, 9)
    found = gromov_wasserstein(
        Dx, Dy, a, b, loss=loss, method="entropic", reg=0.2, tolerance=1e-20, inner_iterations=10_000
    )
    used = a > 0  # POT does not take a zero weight
    T, log = ot.gromov.entropic_gromov_wasserstein(
        Dx[np.ix_(used, used)], Dy, a[used], b, loss_fun=f"{loss}_loss", epsilon=0.2, tol=1e-12, stopThr=1e-13,
        numItermax=100_000, log=True,
    )  # fmt: skip
    np.testing.assert_allclose(found.plan[used], T, atol=1e-7)
    np.testing.assert_allclose(found.value.item(), log["gw_dist"], rtol=1e-6)
    assert found.statuses == (Status.CONVERGED,)


@each_method
def test_a_batch_of_couplings_is_a_loop(settings):
    cases = [unequal(5, 7, seed) for seed in range(3)]
    together = gromov_wasserstein(*(np.stack(x) for x in zip(*cases, strict=True)), **settings)
    for k, case in enumerate(cases):
        alone = gromov_wasserstein(*case, **settings, restarts=0)
        assert torch.equal(alone.plan, together.plan[k])
        torch.testing.assert_close(alone.value, together.value[k], rtol=1e-12, atol=0)
        better = gromov_wasserstein(*case, **settings, restarts=5)
        assert better.value <= alone.value


def test_the_value_is_differentiable_in_the_distances():
    Dx, Dy, a, b = (torch.from_numpy(x) for x in unequal(5, 6))
    Dx, Dy = Dx.requires_grad_(), Dy.requires_grad_()
    gromov_wasserstein(Dx, Dy, a, b, tolerance=1e-10).value.backward()
    ours, Dx.grad = Dx.grad, None
    T = gromov_wasserstein(Dx, Dy, a, b, tolerance=1e-10).plan
    by_hand = 2 * Dx.detach() * a[:, None] * a - 2 * T @ Dy.detach() @ T.T
    torch.testing.assert_close(ours, by_hand)


def test_distances_that_do_not_fit_are_refused():
    D = distances(points(4, 0))
    with pytest.raises(InvalidProblem, match="square"):
        gromov_wasserstein(D[:3], D)
    with pytest.raises(InvalidProblem, match="batch dimensions"):
        gromov_wasserstein(np.stack([D, D]), D)
