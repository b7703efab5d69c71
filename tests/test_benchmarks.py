"""The asv suite: its configuration, its environment plugin, and one small run of every benchmark."""

import ctypes
import importlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import ot
import pytest
import torch

from solvers import QuadraticAssignmentProblem, TransportProblem, make_solver
from solvers.registry import solver_names

pytest.importorskip("asv")

ROOT = Path(__file__).resolve().parents[1]
CONFIG = json.loads((ROOT / "asv.conf.json").read_text())
# The benchmarks by file, and what each may report on a small instance.
SMALL = "4x9x9"
LIMITS = {
    "assignment.Assignment": 1e-9,
    "sinkhorn.SinkhornIterations": 1e-3,
    "sinkhorn.SinkhornConvergence": 1.5e-6,
    "sinkhorn.SinkhornGradient": 1e-3,
    "emd.EMD": 1e-9,
    "emd.EMDGradient": 1e-9,
    "conditional_transport.ConditionalTransport": 1e-5,
    "conditional_transport.ConditionalTransportGradient": 1e-5,
    "gromov_wasserstein.GromovWasserstein": 0.3,  # a local optimum
    "quadratic_assignment.QuadraticAssignment": 0.05,  # a local optimum
    "quadratic_assignment.QuadraticAssignmentBound": 0.5,  # of a relaxation
}
ALONE = ("sinkhorn.SinkhornMemory", "quadratic_assignment.QuadraticAssignmentTimeToTarget")  # without tracked errors
FAMILIES = ("sinkhorn", "emd", "conditional_transport", "gromov_wasserstein", "quadratic_assignment")


@pytest.fixture(scope="module")
def suite():
    """The modules of the suite, imported without leaving its thread pinning to the other tests."""
    environment, path = dict(os.environ), list(sys.path)
    os.environ.pop("MATCHMARK_BENCH", None)
    sys.path.insert(0, str(ROOT))
    try:
        discovery = importlib.import_module("asv_runner.discovery")
        names = ("common", "reference", "contenders", "study", *{name.partition(".")[0] for name in LIMITS})
        modules = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
        modules |= {"competing": {name: importlib.import_module(f"benchmarks.contenders.{name}") for name in FAMILIES}}
        modules["found"] = list(discovery.disc_benchmarks(str(ROOT / "benchmarks")))
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path
    assert Path(modules["common"].__file__).is_relative_to(ROOT)
    return SimpleNamespace(**modules)


def asv(*arguments, cwd, home, **environment):
    """asv in a process of its own, with a home folder of its own and no package index."""
    kept = {k: v for k, v in os.environ.items() if k not in ("MATCHMARK_BENCH", "PYTHONPATH")}
    environment = {**kept, "HOME": str(home), "USERPROFILE": str(home), "PIP_NO_INDEX": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-m", "asv", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --------------------------------------------------------------------------------------------------- configuration


def test_every_key_of_the_configuration_is_known():
    """asv accepts a misspelt key in silence."""
    from asv.config import Config

    assert set(CONFIG) <= set(vars(Config())) | {"version", "build_cache_size"}
    assert set(CONFIG["matrix"]) <= {"req", "env", "env_nobuild"}


def test_every_threshold_is_of_some_benchmark_and_every_benchmark_has_one(suite):
    """asv matches from the start of the whole name, ``file.Class.method``."""
    names = [benchmark.name for benchmark in suite.found]
    for pattern in CONFIG["regressions_thresholds"]:
        assert any(re.match(pattern, name) for name in names), pattern
    for name in names:
        assert sum(bool(re.match(pattern, name)) for pattern in CONFIG["regressions_thresholds"]) == 1, name


def test_check_passes(tmp_path):
    assert "No problems found" in asv("check", "-E", "existing", cwd=ROOT, home=tmp_path)


def test_threads_are_pinned_unless_they_are_set():
    code = "import os, benchmarks; print(os.environ['OMP_NUM_THREADS'], os.environ['NUMBA_NUM_THREADS'])"
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")} | {"OMP_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert done.stdout.split() == [b"3", b"1"]


# --------------------------------------------------------------------------------------------- linked environment


def test_the_linked_environment_measures_the_code_of_each_commit(tmp_path):
    """On a throw-away project that uses our configuration and plugin as they are."""
    project = tmp_path / "project"
    for name, text in {
        "asv.conf.json": (ROOT / "asv.conf.json").read_text(),
        "benchmarks/__init__.py": "",
        "benchmarks/linked_env.py": (ROOT / "benchmarks" / "linked_env.py").read_text(),
        "benchmarks/answers.py": (
            "def track_answer():\n    import numpy, solvers\n    return solvers.ANSWER\n\n\n"
            "def track_threads():\n    import os\n    return int(os.environ['OMP_NUM_THREADS'])\n"
        ),
    }.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    (project / "solvers").mkdir()

    def git(*arguments):
        identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], cwd=project, check=True, capture_output=True)

    git("init", "--initial-branch=main")
    for answer in (41, 42):
        (project / "solvers" / "__init__.py").write_text(f"ANSWER = {answer}\n")
        git("add", "--all")
        git("commit", "--message", str(answer))
    (project / "solvers" / "__init__.py").write_text("ANSWER = 43  # in the working tree only\n")

    asv("machine", "--yes", cwd=project, home=tmp_path)
    asv("run", "ALL", "--quick", cwd=project, home=tmp_path, OMP_NUM_THREADS="2")
    stored = [json.loads(path.read_text()) for path in (project / "results" / "asv").glob("*/*linked-py*.json")]
    results = [{k: v[0] for k, v in one["results"].items()} for one in stored]
    assert sorted(r["answers.track_answer"] for r in results) == [[41], [42]]
    assert [r["answers.track_threads"] for r in results] == [[1], [1]]


# ------------------------------------------------------------------------------------------------------ benchmarks


def test_every_benchmark_compares_a_solver_of_ours_with_peers(suite):
    found = {name.rsplit(".", 1)[0] for name in (benchmark.name for benchmark in suite.found)}
    assert found == {*LIMITS, *ALONE}
    for name in found - {"quadratic_assignment.QuadraticAssignmentTimeToTarget"}:  # no peer keeps a history
        solvers = benchmark(suite, name).params[0]
        ours = [s for s in solvers if s in solver_names()]
        assert ours[0] == solvers[0]
        assert set(solvers) - set(ours)


def test_contenders_say_which_are_ours(suite):
    for family in suite.competing.values():
        for name, contender in [*family.SOLVERS.items(), *getattr(family, "GRADIENTS", {}).items()]:
            of_a_solver = any(name == solver or name.startswith(f"{solver}_") for solver in solver_names())
            assert contender.is_ours == of_a_solver, name


@pytest.mark.parametrize("name", LIMITS)
def test_every_solver_solves_a_small_instance(suite, name):
    """The way asv does it: setup, the timed call, the tracked value; in the fast profile."""
    kind = benchmark(suite, name)
    for solver in kind.params[0]:
        pytest.importorskip({"lapx": "lap", "lapjv": "lapjv"}.get(solver, "solvers"))
        names = zip(kind.param_names[1:], kind.params[1:], strict=True)
        case, one = (solver, *(SMALL if name == "size" else values[0] for name, values in names)), kind()
        one.setup(*case)
        (timed,) = (getattr(one, name) for name in dir(one) if name.startswith("time_"))
        timed(*case)
        (track,) = (getattr(one, name) for name in dir(one) if name.startswith("track_"))
        value = track(*case)
        assert math.isfinite(value)
        assert 1e-9 <= value <= LIMITS[name], solver


def benchmark(suite, name):
    module, _, kind = name.partition(".")
    return getattr(getattr(suite, module), kind)


def test_a_device_that_is_absent_is_skipped_before_anything_heavy(suite, monkeypatch):
    def no_driver(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    with pytest.raises(NotImplementedError, match="CUDA"):
        suite.sinkhorn.SinkhornIterations().setup("sinkhorn", "2x3x3", "float32", "cuda")


# ------------------------------------------------------------------------------------------------------ contenders


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


def test_a_target_never_reached_is_no_time(suite):
    family = suite.competing["quadratic_assignment"]
    instance = suite.contenders.Instance(suite.common.quadratic_assignment_instance("1x6x6"))
    solution, best = family.anytime("local_search", instance)(), suite.reference.quadratic_assignment_best("1x6x6")
    assert 0 <= family.seconds_to(solution, best) <= family.SECONDS["local_search"]
    kind = suite.quadratic_assignment.QuadraticAssignmentTimeToTarget()
    for name in kind.params[0]:
        kind.setup(name, "1x6x6")
        assert 1e-9 <= kind.track_seconds_to_target(name, "1x6x6") <= family.SECONDS[name]
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


# ---------------------------------------------------------------------------------------------------------- checks


def test_a_solution_that_did_not_converge_fails(suite):
    problem = TransportProblem(*suite.common.transport_instance("2x8x8"))
    solution = make_solver("sinkhorn", reg=0.01, max_iterations=1).solve(problem)
    with pytest.raises(RuntimeError, match="ITERATION_LIMIT"):
        suite.common.solved(solution)


def test_what_asv_would_take_for_skipped_fails(suite):
    def unfinished():
        raise NotImplementedError("not for this device")

    with pytest.raises(RuntimeError, match="not for this device"):
        suite.common.warmed_up(unfinished)
    with pytest.raises(FloatingPointError):
        suite.common.warmed_up(lambda: np.array([np.nan]))
    for value in (math.nan, math.inf, -1.0):
        with pytest.raises(FloatingPointError):
            suite.common.tracked(value)


def test_tracked_values_are_rounded(suite):
    assert suite.common.tracked(0.0) == 1e-9
    assert suite.common.tracked(1.23456789e-5) == 1.23457e-5


def test_a_plan_is_rounded_to_a_feasible_one(suite):
    cost, a, b = suite.common.transport_instance("2x4x3")
    optimum = suite.reference.transport_optimum("2x4x3", "random")
    plan = np.stack([ot.emd(*arrays) for arrays in zip(a, b, cost, strict=True)])
    np.testing.assert_allclose(suite.common.rounded_value(cost, plan, a, b), optimum, rtol=1e-12)
    for wrong in (np.zeros_like(plan), 0.5 * plan, 3 * plan, plan + 0.01):
        value = suite.common.rounded_value(cost, wrong, a, b)
        assert (value >= optimum - 1e-12).all()
    product = (cost * a[:, :, None] * b[:, None, :]).sum((1, 2))
    np.testing.assert_allclose(suite.common.rounded_value(cost, np.zeros_like(plan), a, b), product)


def test_a_wrong_matching_is_seen(suite):
    cost = suite.common.assignment_instance("2x4x4")
    with pytest.raises(ValueError, match="permutation"):
        suite.assignment._value(cost, [[0, 0, 1, 2], [0, 1, 2, 3]])


def test_the_grid_of_a_profile_includes_the_smaller_ones(suite, monkeypatch):
    assert suite.common.grid(["a"], ["b"], ["c"]) == ["a"]
    monkeypatch.setattr(suite.common, "PROFILE", "regular")
    assert suite.common.grid(["a"], ["b"], ["c"]) == ["a", "b"]
