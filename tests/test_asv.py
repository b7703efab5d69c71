"""The frame around the benchmarks: asv's configuration, its environment plugin, its clock, its threads."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("asv")

ROOT = Path(__file__).resolve().parents[1]
CONFIG = json.loads((ROOT / "asv.conf.json").read_text())
THREADS = [name for name in CONFIG["matrix"]["env_nobuild"] if name.endswith("_NUM_THREADS")]


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


def test_the_threads_of_every_library_are_pinned_in_the_configuration_too(suite):
    assert {f"{name}_NUM_THREADS" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")} == set(THREADS)
    assert set(THREADS) <= set(sys.modules["benchmarks"].THREAD_VARIABLES)


def test_threads_are_pinned_unless_they_are_set():
    code = "import os, benchmarks; print(os.environ['OMP_NUM_THREADS'], os.environ['NUMBA_NUM_THREADS'])"
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")} | {"OMP_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert done.stdout.split() == [b"3", b"1"]


# ----------------------------------------------------------------------------------------------------------- clock


def test_the_clock_counts_sleep_and_work_and_not_what_other_processes_take(suite, monkeypatch):
    clock, queued = suite.timing.clock, [0]
    monkeypatch.setattr(suite.timing, "_schedule", lambda thread: 0)
    monkeypatch.setattr(suite.timing, "_queued", lambda file: queued[0])
    start = clock()
    time.sleep(0.02)
    assert 0.02 <= clock() - start < 5
    queued[0] = 100 * 10**9
    assert clock() - start < -90


def test_the_clock_looks_again_where_it_had_to_wait_while_it_looked(suite, monkeypatch):
    looks = iter([0, 10**9, 2 * 10**9, 2 * 10**9])
    monkeypatch.setattr(suite.timing, "_schedule", lambda thread: 0)
    monkeypatch.setattr(suite.timing, "_queued", lambda file: next(looks))
    assert suite.timing.clock() == pytest.approx(time.perf_counter() - 2, abs=1)
    assert next(looks, None) is None


def test_the_clock_is_that_of_the_wall_where_the_system_does_not_say(suite, monkeypatch):
    monkeypatch.setattr(suite.timing, "QUEUED", "/nowhere")
    suite.timing._schedule.cache_clear()
    before = time.perf_counter()
    assert before <= suite.timing.clock() <= time.perf_counter()
    suite.timing._schedule.cache_clear()


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
            "def track_threads():\n    import os\n"
            f"    return max(int(os.environ[name]) for name in {THREADS})\n\n\n"
            "def track_kernels():\n    import os, solvers\n"
            "    assert os.environ['ASV_COMMIT'] in os.environ['NUMBA_CACHE_DIR']\n"
            "    return os.path.getmtime(solvers.__file__)\n"
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
    asv("run", "ALL", "--quick", cwd=project, home=tmp_path, **dict.fromkeys(THREADS, "2"))
    stored = [json.loads(path.read_text()) for path in (project / "results" / "asv").glob("*/*linked-py*.json")]
    results = [{k: v[0] for k, v in one["results"].items()} for one in stored]
    assert sorted(r["answers.track_answer"] for r in results) == [[41], [42]]
    assert [r["answers.track_threads"] for r in results] == [[1], [1]]
    first, second = (r["answers.track_kernels"] for r in results)
    assert first != second, "Numba tells the files of two commits apart by their dates"
