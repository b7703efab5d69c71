"""The benchmarks: what there is of them, one small run of each, and the checks that none may pass without."""

import ctypes
import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import ot
import pytest

from solvers import TransportProblem, make_solver
from solvers.registry import solver_names, unavailable

pytest.importorskip("asv")

ROOT = Path(__file__).resolve().parents[1]
# The benchmarks by file: a small size of each, and what it may report of it.
BATCH, ONE, LABELS = "4x9x9", "1x6x6", "2x9x6"
LIMITS = {
    "assignment.Assignment": (BATCH, 1e-9),
    "sinkhorn.SinkhornIterations": (BATCH, 1e-3),
    "sinkhorn.SinkhornConvergence": (BATCH, 1.5e-6),
    "sinkhorn.SinkhornGradient": (BATCH, 1e-3),
    "sinkhorn.SinkhornDustbin": (BATCH, 1e-5),
    "emd.EMD": (BATCH, 1e-9),
    "emd.EMDGradient": (BATCH, 1e-9),
    "conditional_transport.ConditionalTransport": (BATCH, 1e-5),
    "conditional_transport.ConditionalTransportGradient": (BATCH, 1e-5),
    "relaxed_transport.UnbalancedTransport": (BATCH, 1e-4),
    "relaxed_transport.PartialTransport": (BATCH, 1e-9),
    "relaxed_transport.PartialTransportEntropic": (BATCH, 2e-6),
    "relaxed_transport.PointClouds": ("1x9x9", 1e-4),
    "gromov_wasserstein.GromovWasserstein": (BATCH, 0.3),  # a local optimum
    "quadratic_assignment.QuadraticAssignment": (ONE, 0.15),  # a local optimum
    "quadratic_assignment.QuadraticAssignmentBound": (ONE, 0.5),  # of a relaxation
    "quadratic_assignment.QuadraticAssignmentProof": (ONE, 1e-9),
    "graph_matching.GraphMatching": ("6x8", 1e-9),
    "papers.DeepEMDEpisode": ("2x3x4x16", 1e-5),
    "papers.ScotPair": ("12x14x512", 0.2),
    "papers.PatchCTBatch": (LABELS, 1e-5),
    "papers.RamBatch": (LABELS, 1e-4),
    "papers.BlindMatch": ("7", 1e-9),
}
# What needs another setting: a profile, files, a device, a process of its own.
ALONE = {
    "quadratic_assignment.QuadraticAssignmentTimeToTarget",
    "qaplib_instances.Qaplib",
    "qaplib_instances.QaplibBound",
    "memory.PeakMemory",
    "memory.PeakMemoryOfTheGpu",
    "imports.ImportTime",
}
LARGE = """
import json, sys
sys.modules |= dict.fromkeys(["asv", "cv2", "geomloss", "jax", "lap", "ott", "pylibmgm"])  # None: not to be imported
import benchmarks, numba, torch
from asv_runner.discovery import disc_benchmarks
params = {benchmark.name: benchmark._params for benchmark in disc_benchmarks("benchmarks")}
print(json.dumps({"params": params, "threads": [torch.get_num_threads(), numba.get_num_threads()]}))
"""


def benchmark(suite, name):
    module, _, kind = name.partition(".")
    return getattr(getattr(suite, module), kind)


# -------------------------------------------------------------------------------------------------- what there is


def test_every_benchmark_is_known_here_and_found_where_it_is_written(suite):
    """One that is imported into another file would be measured twice."""
    found = {one.name.rpartition(".")[0] for one in suite.found}
    assert found == {*LIMITS, *ALONE}
    for name in found:
        assert benchmark(suite, name).__module__ == f"benchmarks.{name.partition('.')[0]}"


def test_every_solver_has_a_benchmark_in_the_fast_profile(suite):
    kinds = [benchmark(suite, name) for name in (*LIMITS, *ALONE)]
    measured = {solver for kind in kinds if kind.param_names[0] == "solver" for solver in kind.params[0]}
    assert set(solver_names()) <= measured


def test_profiles_grow_and_nothing_optional_is_imported_by_being_found(suite):
    """Peers come in with the regular profile; the threads are pinned wherever the variables are not set."""
    kept = {k: v for k, v in os.environ.items() if k not in sys.modules["benchmarks"].THREAD_VARIABLES}
    path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    environment = kept | {"MATCHMARK_BENCH": "large", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", LARGE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["threads"] == [1, 1]
    large, grown = found["params"], 0
    assert set(large) == {one.name for one in suite.found}
    for one in suite.found:
        for fast, more in zip(one._params, large[one.name], strict=True):
            assert list(fast) == [value for value in more if value in fast]
            grown += len(more) > len(fast)
    assert grown > len(LIMITS)


def test_the_grid_of_a_profile_includes_the_smaller_ones(suite, monkeypatch):
    assert suite.common.grid(["a"], ["b"], ["c"]) == ["a"]
    monkeypatch.setattr(suite.common, "PROFILE", "regular")
    assert suite.common.grid(["a"], ["b"], ["c"]) == ["a", "b"]


# ------------------------------------------------------------------------------------------------------- small runs


@pytest.mark.filterwarnings("ignore")  # of peers
@pytest.mark.parametrize("name", LIMITS)
def test_every_solver_solves_a_small_instance(suite, name):
    """The way asv does it: setup, the timed calls, the tracked value; in the fast profile."""
    kind, (size, limit) = benchmark(suite, name), LIMITS[name]
    first = kind.params[0] if kind.param_names[0] == "solver" else kind.params[0][:1]
    for solver in first:
        names = zip(kind.param_names, ([solver], *kind.params[1:]), strict=True)
        case, one = [size if name == "size" else values[0] for name, values in names], kind()
        if solver in solver_names() and unavailable(solver):
            with pytest.raises(NotImplementedError):
                one.setup(*case)
            continue
        one.setup(*case)
        timed = [getattr(one, name) for name in dir(one) if name.startswith("time_")]
        assert timed
        for call in timed:
            call(*case)
        (track,) = (getattr(one, name) for name in dir(one) if name.startswith("track_"))
        value = track(*case)
        assert math.isfinite(value)
        assert 1e-9 <= value <= limit, solver


def test_what_the_layers_are_held_to_is_not_what_they_compute(suite, monkeypatch):
    """A layer whose answer is off by a thousandth is found out."""
    for name, answer in (("DeepEMDEpisode", "logits"), ("PatchCTBatch", "costs")):
        kind, (size, limit) = getattr(suite.papers, name), LIMITS[f"papers.{name}"]
        names = zip(kind.param_names, kind.params, strict=True)
        case, one = [size if name == "size" else values[0] for name, values in names], kind()
        one.setup(*case)
        right = getattr(one, answer)
        monkeypatch.setattr(one, answer, lambda right=right: right() * 1.001)
        assert one.track_value_error(*case) > limit


def test_peak_memory_is_what_the_solve_adds(suite):
    """The plain loop stores −C/ε and makes more matrices of its size, and no libraries are counted."""
    matrix = 4 * 1500**2
    (peak,) = suite.memory.in_a_process("torch_log", "cpu", "1x1500x1500")
    assert 2 * matrix <= peak <= 12 * matrix


def test_peak_memory_that_cannot_be_measured_is_no_number(suite, monkeypatch):
    monkeypatch.setattr(suite.memory, "CHILD", "raise MemoryError('no room')")
    with pytest.raises(RuntimeError, match=r"(?s)torch_log was not measured: .*no room"):
        suite.memory.in_a_process("torch_log", "cpu")


def test_an_instance_of_qaplib_is_skipped_without_its_folder_and_measured_with_it(suite, monkeypatch, tmp_path):
    kind = suite.qaplib_instances.Qaplib()
    monkeypatch.delenv("MATCHMARK_QAPLIB", raising=False)
    with pytest.raises(NotImplementedError, match="MATCHMARK_QAPLIB"):
        kind.setup("local_search", "nug12")
    (tmp_path / "nug12.dat").write_text("3\n0 1 2\n1 0 3\n2 3 0\n0 5 1\n5 0 2\n1 2 0\n")
    (tmp_path / "nug12.sln").write_text("3 24\n2 1 3\n")
    monkeypatch.setenv("MATCHMARK_QAPLIB", str(tmp_path))
    for one, solver in ((kind, "local_search"), (suite.qaplib_instances.QaplibBound(), "hahn_grant")):
        one.setup(solver, "nug12")
        one.time_solve(solver, "nug12")
        assert one.track_optimality_gap(solver, "nug12") == 1e-9
    suite.qaplib_instances.loaded.cache_clear()
    suite.qaplib_instances._warm.cache_clear()


def test_the_time_to_a_target_waits_for_the_regular_profile(suite):
    with pytest.raises(NotImplementedError, match="regular"):
        suite.quadratic_assignment.QuadraticAssignmentTimeToTarget().setup("local_search", "1x6x6")


def test_importing_is_timed_in_processor_seconds_of_its_own_process(suite):
    one = suite.imports.ImportTime()
    one.setup("json")
    start = one.timer()
    one.time_import("json")
    assert 0 < one.timer() - start < 5


def test_a_device_that_is_absent_is_skipped_before_anything_heavy(suite, monkeypatch):
    def no_driver(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    with pytest.raises(NotImplementedError, match="CUDA"):
        suite.sinkhorn.SinkhornIterations().setup("sinkhorn", "2x3x3", "float32", "cuda")


# ---------------------------------------------------------------------------------------------------------- checks


def test_what_a_commit_lacks_is_skipped_and_what_is_broken_is_not(suite, tmp_path, monkeypatch):
    """So that a benchmark which comes with its solver does not stop the comparison with the commit before."""
    (tmp_path / "broken_solver.py").write_text("import not_to_be_found\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert suite.common.of_commit("solvers", "solve", "Status")[0] is importlib.import_module("solvers").solve
    for asked in (("solvers.nothing", "X"), ("solvers", "Nothing")):
        with pytest.raises(NotImplementedError, match="this commit has"):
            suite.common.of_commit(*asked)
    with pytest.raises(ModuleNotFoundError, match="not_to_be_found"):
        suite.common.of_commit("broken_solver", "X")
    for name, settings in (("nothing", {}), ("emd", {"nothing": 1})):
        with pytest.raises(NotImplementedError, match="not in this commit"):
            suite.common.ours(name, **settings)


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
