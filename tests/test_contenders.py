"""The contenders of the benchmarks: that ours and the peers solve the same problems, and say what they cannot."""

import math

import numpy as np
import pytest
import torch

from solvers import QuadraticAssignmentProblem, make_solver
from solvers.registry import solver_names

pytest.importorskip("asv")


def test_contenders_say_which_are_ours(suite):
    for family in ("sinkhorn", "emd", "conditional_transport", "gromov_wasserstein", "quadratic_assignment"):
        made = suite.competing[family]
        for name, contender in [*made.SOLVERS.items(), *getattr(made, "GRADIENTS", {}).items()]:
            of_a_solver = any(name == solver or name.startswith(f"{solver}_") for solver in solver_names())
            assert contender.is_ours == of_a_solver, name


def prepared(contender, instance, **task):
    """The contender's call; skip where its library is not installed."""
    try:
        return contender.prepared(instance, **task)
    except NotImplementedError as error:
        pytest.skip(str(error))


SINKHORNS = (
    "sinkhorn", "pot_batch_log", "pot_batch_scaling", "pot_log", "pot_scaling", "pot_scaling_torch", "pot_stabilized",
    "ott_log", "ott_scaling", "geomloss", "torch_log", "torch_scaling",
)  # fmt: skip
UNROLLED = [name for name in SINKHORNS if name not in ("pot_scaling", "pot_stabilized", "geomloss")]


def test_every_contender_is_tested(suite):
    assert list(suite.competing["sinkhorn"].SOLVERS) == list(SINKHORNS)
    assert list(suite.competing["sinkhorn"].GRADIENTS) == UNROLLED


def instance(suite, size, dtype="float64", **how):
    return suite.contenders.Instance(suite.common.transport_instance(size, **how), dtype)


@pytest.mark.filterwarnings("ignore")  # of peers
@pytest.mark.parametrize("name", SINKHORNS)
def test_sinkhorns_agree_on_the_plan(suite, name):
    """With that of the plain loop of the log domain; the schedule of GeomLoss has not converged by then."""
    problem, family = instance(suite, "1x7x6"), suite.competing["sinkhorn"].SOLVERS
    T = suite.common.finite(prepared(family[name], problem, reg=0.2, iterations=200)())
    wanted = family["torch_log"].prepared(problem, reg=0.2, iterations=200)()
    np.testing.assert_allclose(T, wanted, atol=1e-3 if name == "geomloss" else 1e-10)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in SINKHORNS if name != "geomloss"])
def test_sinkhorns_stop_at_the_tolerance(suite, name):
    problem, family = instance(suite, "1x7x6"), suite.competing["sinkhorn"].SOLVERS
    call = prepared(family[name], problem, reg=0.05, iterations=2000, tolerance=1e-4)
    assert 1e-13 < suite.common.marginal_error(call(), *problem.arrays[1:]) <= 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", UNROLLED)
def test_sinkhorns_agree_on_the_gradient(suite, name):
    """With the implicit formula, which finite differences confirm below."""
    problem, family = instance(suite, "1x7x6"), suite.competing["sinkhorn"].GRADIENTS
    G = suite.common.finite(prepared(family[name], problem, reg=0.2, iterations=200)())
    assert suite.reference.gradient_error(G, suite.reference.sinkhorn_gradient("1x7x6", 0.2)) < 1e-5


def test_ours_is_held_to_the_number_of_iterations(suite):
    """It stops where the error is exactly zero: with a single column after one iteration."""
    problem = suite.contenders.Instance((np.ones((1, 2, 1)), np.full((1, 2), 0.5), np.ones((1, 1))))
    with pytest.raises(RuntimeError, match="not 5 iterations"):
        suite.competing["sinkhorn"].SOLVERS["sinkhorn"].prepared(problem, reg=1.0, iterations=5)()


def test_the_gradients_of_reference_are_those_of_finite_differences(suite):
    C, a, b = suite.common.transport_instance("1x4x3")
    D, h = np.random.default_rng(0).standard_normal(C.shape), 1e-5

    def sinkhorn(C):
        problem = suite.contenders.Instance((C, a, b))
        plan = suite.competing["sinkhorn"].SOLVERS["torch_log"].prepared(problem, reg=0.3, iterations=500)()
        return (C * plan.numpy()).sum()

    def conditional_transport(C):
        problem = suite.contenders.Instance((C, a, b))
        return suite.competing["conditional_transport"].SOLVERS["torch"].prepared(problem, temperature=0.3)().sum()

    for loss, gradient in (
        (sinkhorn, suite.reference.sinkhorn_gradient("1x4x3", 0.3)),
        (conditional_transport, suite.reference.conditional_transport_gradient("1x4x3", 0.3)),
    ):
        slope = float(loss(C + h * D) - loss(C - h * D)) / (2 * h)
        assert slope == pytest.approx((gradient * D).sum(), rel=1e-6)


@pytest.mark.parametrize("weights", ["random", "uniform"])
@pytest.mark.parametrize("name", ["emd", "pot", "opencv", "scipy", "lapx"])
def test_exact_solvers_reach_the_optimum(suite, name, weights):
    problem = instance(suite, "3x6x6", weights=weights)
    cost, a, b = problem.arrays
    T = suite.common.finite(prepared(suite.competing["emd"].SOLVERS[name], problem)())
    optimum = suite.reference.transport_optimum("3x6x6", weights)
    tolerance = 1e-6 if name == "opencv" else 1e-12
    np.testing.assert_allclose(suite.common.rounded_value(cost, T, a, b), optimum, rtol=tolerance)


@pytest.mark.parametrize("name", ["emd", "pot_torch"])
def test_the_gradients_of_exact_solvers_are_plans(suite, name):
    problem = instance(suite, "3x6x5")
    G = suite.common.finite(suite.competing["emd"].GRADIENTS[name].prepared(problem)())
    assert suite.common.marginal_error(G, *problem.arrays[1:]) < 1e-12
    np.testing.assert_allclose(
        (problem.arrays[0] * G).sum((1, 2)), suite.reference.transport_optimum("3x6x5", "random")
    )


@pytest.mark.parametrize("name", ["conditional_transport", "conditional_transport_loss", "torch"])
def test_conditional_transports_agree(suite, name):
    family, problem = suite.competing["conditional_transport"], instance(suite, "3x6x5")
    losses = suite.common.finite(family.SOLVERS[name].prepared(problem, temperature=0.1)())
    np.testing.assert_allclose(losses, suite.reference.conditional_transport("3x6x5", 0.1), rtol=1e-12)
    G = suite.common.finite(family.GRADIENTS[name].prepared(problem, temperature=0.1)())
    np.testing.assert_allclose(G, suite.reference.conditional_transport_gradient("3x6x5", 0.1), atol=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["gromov_wasserstein", "gromov_wasserstein_entropic", "pot", "pot_entropic", "pot_batch", "ott"]
)
def test_gromov_wassersteins_return_couplings(suite, name):
    Dx, Dy, planted = suite.common.gromov_wasserstein_instance("2x6x6")
    contender = suite.competing["gromov_wasserstein"].SOLVERS[name]
    answer = suite.common.finite(prepared(contender, suite.contenders.Instance((Dx, Dy)))())
    T = suite.reference.couplings(answer)
    uniform = np.full((2, 6), 1 / 6)
    assert suite.common.marginal_error(T, uniform, uniform) < 2e-3
    assert 0 <= suite.reference.gromov_wasserstein_gap("2x6x6", answer) < 0.3
    assert suite.reference.gromov_wasserstein_gap("2x6x6", planted) == 0
    assert suite.reference.gromov_wasserstein_gap("2x6x6", np.full((2, 6, 6), 1 / 36)) == pytest.approx(1)


@pytest.mark.parametrize(
    "name", ["local_search", "faq", "mpopt", "two_opt", "branch_and_bound", "scipy_faq", "scipy_2opt"]
)
def test_quadratic_assignments_come_to_the_optimum_of_small_problems(suite, name):
    size = "2x6x6"
    problem = suite.contenders.Instance(suite.common.quadratic_assignment_instance(size))
    answer = suite.common.finite(suite.competing["quadratic_assignment"].SOLVERS[name].prepared(problem)())
    assert suite.reference.quadratic_assignment_gap(size, answer) < 1e-9
    A, B = map(torch.from_numpy, problem.arrays)
    optimum = make_solver("brute_force").solve(QuadraticAssignmentProblem(A, B)).value.numpy()
    np.testing.assert_allclose(suite.reference.quadratic_assignment_best(size), optimum)
    worst = suite.reference.quadratic_assignment_gap(size, np.tile(np.arange(6), (2, 1)))
    assert worst > 0


@pytest.mark.parametrize("name", ["hahn_grant", "hahn_grant_published", "scipy_level_one"])
def test_bounds_of_quadratic_assignments_are_below(suite, name):
    problem = suite.contenders.Instance(suite.common.quadratic_assignment_instance("2x6x6"))
    bounds = suite.common.finite(suite.competing["quadratic_assignment"].BOUNDS[name].prepared(problem)())
    assert (bounds <= suite.reference.quadratic_assignment_best("2x6x6") + 1e-9).all()


def test_a_target_never_reached_is_no_time(suite, monkeypatch):
    family = suite.competing["quadratic_assignment"]
    instance = suite.contenders.Instance(suite.common.quadratic_assignment_instance("1x6x6"))
    solution, best = family.anytime("local_search", instance)(), suite.reference.quadratic_assignment_best("1x6x6")
    assert 0 <= family.seconds_to(solution, best) <= solution.prepare_time + solution.solve_time
    monkeypatch.setattr(suite.common, "PROFILE", "regular")
    kind = suite.quadratic_assignment.QuadraticAssignmentTimeToTarget()
    for name in kind.params[0]:
        kind.setup(name, "1x6x6")
        assert 1e-9 <= kind.track_seconds_to_target(name, "1x6x6") < math.inf  # a loaded machine overruns its limit
    with pytest.raises(RuntimeError, match="in its time"):
        family.seconds_to(solution, best - 10)


def test_the_energy_of_a_matching_is_the_objective_of_the_problem(suite):
    Dx, Dy, p = suite.common.gromov_wasserstein_instance("2x6x6")
    problem = QuadraticAssignmentProblem.from_gromov_wasserstein(Dx, Dy)
    energy = suite.reference.gromov_wasserstein(Dx, Dy, suite.reference.couplings(p))
    np.testing.assert_allclose(energy, problem.objective(torch.from_numpy(p)) / 36, rtol=1e-9)


def test_what_a_contender_cannot_do_is_said(suite):
    family = suite.competing["sinkhorn"].SOLVERS
    for name, size, device, words in (
        ("pot_stabilized", "1x4x4", "cuda", "runs on cpu only"),
        ("pot_log", "2x4x4", "cpu", "one problem"),
        ("ott_scaling", "1x1001x1", "cpu", "n = 4000"),
    ):
        problem = suite.contenders.Instance(suite.common.transport_instance(size), "float64", device)
        with pytest.raises(NotImplementedError, match=words):
            family[name].prepared(problem, reg=0.1, iterations=2)


def test_a_peer_that_is_absent_is_no_defect_and_one_that_is_broken_is(suite, tmp_path, monkeypatch):
    (tmp_path / "broken_peer.py").write_text("import not_to_be_found\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NotImplementedError, match="no_such_peer is not installed"):
        suite.common.peer("no_such_peer.solvers")
    with pytest.raises(ModuleNotFoundError, match="not_to_be_found"):
        suite.common.peer("broken_peer")
