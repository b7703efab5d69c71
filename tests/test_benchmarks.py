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
import pytest

from solvers import TransportProblem, make_solver
from solvers.registry import solver_names

pytest.importorskip("asv")

ROOT = Path(__file__).resolve().parents[1]
CONFIG = json.loads((ROOT / "asv.conf.json").read_text())
# What each benchmark may report on its smallest instance. OpenCV computes in float32.
LIMITS = {"Sinkhorn": 1e-5, "EMD": 1e-9, "Assignment": 1e-9, ("EMD", "opencv"): 1e-4}
CASES = [
    *(("transport", "Sinkhorn", solver) for solver in ("sinkhorn", "pot_log", "pot_scaling")),
    *(("transport", "EMD", solver) for solver in ("emd", "pot", "opencv")),
    *(("assignment", "Assignment", solver) for solver in ("jonker_volgenant", "scipy", "lapjv", "lapx")),
]


@pytest.fixture(scope="module")
def suite():
    """The modules of the suite, imported without leaving its thread pinning to the other tests."""
    environment, path = dict(os.environ), list(sys.path)
    os.environ.pop("MATCHMARK_BENCH", None)
    sys.path.insert(0, str(ROOT))
    try:
        modules = {
            name: importlib.import_module(f"benchmarks.{name}") for name in ("common", "transport", "assignment")
        }
        discovery = importlib.import_module("asv_runner.discovery")
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
    assert found == {"transport.Sinkhorn", "transport.SinkhornMemory", "transport.EMD", "assignment.Assignment"}
    for name in found:
        module, _, family = name.partition(".")
        solvers = getattr(getattr(suite, module), family).params[0]
        assert [s for s in solvers if s in solver_names()] == solvers[:1]
        assert len(solvers) >= 2
    assert {(m, f) for m, f, _ in CASES} | {("transport", "SinkhornMemory")} == {tuple(n.split(".")) for n in found}
    for module, family, solver in CASES:
        assert solver in [*getattr(getattr(suite, module), family).params[0], "opencv"]  # of a larger profile


@pytest.mark.parametrize(("module", "family", "solver"), CASES)
def test_every_solver_solves_the_smallest_instance(suite, module, family, solver):
    """The way asv does it: setup, the timed call, the tracked value."""
    pytest.importorskip({"opencv": "cv2", "lapx": "lap", "lapjv": "lapjv"}.get(solver, "solvers"))
    benchmark = getattr(getattr(suite, module), family)()
    case = (solver, *(values[0] for values in benchmark.params[1:]))
    benchmark.setup(*case)
    benchmark.time_solve(*case)
    (track,) = (getattr(benchmark, name) for name in dir(benchmark) if name.startswith("track_"))
    value = track(*case)
    assert math.isfinite(value)
    assert 1e-9 <= value <= LIMITS.get((family, solver), LIMITS[family])


def test_a_device_that_is_absent_is_skipped_before_anything_heavy(suite, monkeypatch):
    def no_driver(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    with pytest.raises(NotImplementedError, match="CUDA"):
        suite.transport.Sinkhorn().setup("sinkhorn", "2x3x3", "float32", "cuda")


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


def test_a_wrong_matching_is_seen(suite):
    cost = suite.common.assignment_instance("2x4x4")
    with pytest.raises(ValueError, match="permutation"):
        suite.assignment._value(cost, [[0, 0, 1, 2], [0, 1, 2, 3]])


def test_the_grid_of_a_profile_includes_the_smaller_ones(suite, monkeypatch):
    assert suite.common.grid(["a"], ["b"], ["c"]) == ["a"]
    monkeypatch.setattr(suite.common, "PROFILE", "regular")
    assert suite.common.grid(["a"], ["b"], ["c"]) == ["a", "b"]
