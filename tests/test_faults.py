"""Faults of disks, memory, clocks and processes, provoked one at a time: one sentence, and nothing finished is lost."""

from __future__ import annotations

import ast
import builtins
import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from conftest import picture, refused
from filelock import FileLock
from test_cli import run  # noqa: F401
from test_reproductions import fake  # noqa: F401

import reproductions
from reproductions import __main__ as entry
from reproductions import cli, experiment, faults, provenance, report
from reproductions.deepemd.engines import ENGINES
from reproductions.experiment import Options, load_experiment, reproduce
from reproductions.parallel import in_parallel
from reproductions.provenance import RunRecord
from reproductions.report import read_tables
from reproductions.storage import write_atomically
from reproductions.temporaries import SUFFIX, in_the_making, remove_leftovers
from solvers import gurobi

ROOT = Path(reproductions.__file__).parents[1]


@pytest.fixture
def paper(fake, monkeypatch, tmp_path):  # noqa: F811
    """The fake paper as the command sees it, with quick figures: its module, whose ``measure`` can be made to fail."""
    monkeypatch.setattr(cli, "PAPERS", ("fake",))
    monkeypatch.setattr(report, "figure", lambda name, table: b"pixels")
    return load_experiment("fake")


def at_row(monkeypatch, paper, number, happens):
    """Let something happen whenever the row is measured."""
    measure = paper.measure

    def measured(row, options, advance):
        if row.settings["k"] == number:
            happens()
        return measure(row, options, advance)

    monkeypatch.setattr(paper, "measure", measured)


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


def tables(results):
    return {path.name: path.read_bytes() for path in sorted((results / "fake").iterdir())}


def measured(results):
    return [int(line) for line in (results / "measured.log").read_text().split()]


def temporary_files(folder):
    return [path for path in folder.rglob("*") if path.name.endswith(SUFFIX)]


def in_one_sentence(code, err, *words):
    assert code == 2
    err = err.strip()  # a bar that is gone leaves an empty line
    assert err.startswith("matchmark: ")
    assert "\n" not in err, err
    assert all(word in err for word in words), err


# ---------------------------------------------------------------------------------------------------------------- disk


def on_a_full_device(monkeypatch):
    """Bytes go to a device that the kernel calls full."""
    make = tempfile.mkstemp

    def full(*arguments, **options):
        handle, name = make(*arguments, **options)
        os.close(handle)
        return os.open("/dev/full", os.O_WRONLY), name

    monkeypatch.setattr(tempfile, "mkstemp", full)


FULL = {
    "the write": on_a_full_device,
    "fsync": lambda patch: patch.setattr(os, "fsync", failing(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))),
    "a quota": lambda patch: patch.setattr(os, "fsync", failing(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is full")
@pytest.mark.parametrize("what", FULL)
def test_a_full_disk_is_one_sentence_and_leaves_the_tables_as_they_were(paper, run, tmp_path, monkeypatch, what):  # noqa: F811
    results = tmp_path / "results"
    assert run("reproduce")[0] == 0
    for path in (results / "cache" / "rows").iterdir():
        path.unlink()
    before = tables(results)
    with monkeypatch.context() as patch:
        at_row(patch, paper, 1, lambda: FULL[what](patch))
        code, _, err = run("reproduce")
    in_one_sentence(code, err, "the disk is full", str(Path("results")), "make room", "goes on from there")
    assert tables(results).keys() == before.keys()
    assert read_tables(results)["fake"]["counts"]["measured"].notna().all(), "what stood there before stands there"
    assert not temporary_files(results)
    assert reproduce("fake", Options(results)).measured == 2, "the first row had been finished"
    assert tables(results)["counts.md"] == before["counts.md"]


READ_ONLY = {
    errno.EROFS: "can only be read",
    errno.EACCES: "change its permissions",
    errno.ENOSPC: "the disk is full",
}


@pytest.mark.parametrize("number", READ_ONLY)
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(paper, run, tmp_path, monkeypatch, number):  # noqa: F811
    monkeypatch.setattr(tempfile, "mkstemp", failing(OSError(number, os.strerror(number))))
    monkeypatch.setattr(paper, "rows", failing(AssertionError("work has started")))
    code, _, err = run("reproduce", "--results", tmp_path / "there")
    in_one_sentence(code, err, str(tmp_path / "there"), READ_ONLY[number])
    code, _, err = run("data", "embed", "--data", tmp_path, "--dataset", "cifar10", "--vision", "MobileNetV2")
    in_one_sentence(code, err, READ_ONLY[number])


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_permissions_are_looked_at_before_any_work(paper, run, tmp_path):  # noqa: F811
    (tmp_path / "there").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    in_one_sentence(*run("reproduce", "--results", tmp_path / "there")[::2], "change its permissions")


def test_a_file_in_place_of_the_folder_is_refused(paper, run, tmp_path):  # noqa: F811
    (tmp_path / "there").write_text("notes")
    for place in (tmp_path / "there", tmp_path / "there" / "below"):
        code, _, err = run("reproduce", "--results", place)
        in_one_sentence(code, err, str(tmp_path / "there"), "a file where a folder is expected")
    assert (tmp_path / "there").read_text() == "notes"


def test_a_solution_that_cannot_be_written_is_not_computed(run, tmp_path, monkeypatch):  # noqa: F811
    np.savez(tmp_path / "problem.npz", cost=np.eye(3))
    monkeypatch.setattr(cli, "make_solver", failing(AssertionError("work has started")))
    in_one_sentence(*run("solve", "problem.npz", "--output", "problem.npz/a.npz")[::2], "problem.npz")


def test_a_folder_deleted_in_the_middle_is_made_again(paper, tmp_path, monkeypatch):
    reproduce("fake", Options(tmp_path / "undisturbed"))
    results = tmp_path / "results"
    at_row(monkeypatch, paper, 1, lambda: (shutil.rmtree(results), results.mkdir()))
    reproduce("fake", Options(results))
    assert tables(results)["counts.md"] == tables(tmp_path / "undisturbed")["counts.md"]
    assert reproduce("fake", Options(results)).measured == 1, "the row whose entry was deleted"


def test_names_of_files_need_not_be_text(paper, run, tmp_path):  # noqa: F811
    name = os.fsdecode(b"r\xe9sultats")
    code, out, err = run("reproduce", "--results", name)
    assert code == 0, err
    assert "r\\udce9sultats" in out
    (record,) = (tmp_path / name / "runs").iterdir()
    assert name in json.loads(record.read_bytes())["arguments"]
    code, _, err = run("solve", name)
    in_one_sentence(code, err, "r\\udce9sultats")
    write_atomically(tmp_path / "a.json", json.dumps({"file": name}, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text()) == {"file": name}


def test_what_is_being_written_is_not_taken_for_a_leftover(tmp_path):
    (tmp_path / "cache" / "data" / "unpacked").mkdir(parents=True)
    untouched = tmp_path / "cache" / "data" / "unpacked" / f".a.12345678{SUFFIX}"
    untouched.touch()
    file, folder = tmp_path / f".table.csv.abcdefgh{SUFFIX}", tmp_path / "cache" / "data" / f".b.abcdefgh{SUFFIX}"
    file.touch()
    (folder / "inside").mkdir(parents=True)
    with in_the_making(tmp_path / "x") as (_, first), in_the_making(tmp_path / "y", folder=True) as (_, second):
        assert sorted(remove_leftovers(tmp_path)) == sorted([file, folder])
        assert first.is_file()
        assert second.is_dir()
    assert temporary_files(tmp_path) == [untouched]


def test_a_killed_writer_s_file_is_removed_by_the_next_run(paper, tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom reproductions import temporaries\n"
        "with temporaries.in_the_making(Path(sys.argv[1])):\n    os.kill(os.getpid(), 9)\n"
    )
    (tmp_path / "fake").mkdir()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "fake" / "counts.csv")], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert len(temporary_files(tmp_path)) == 1
    reproduce("fake", Options(tmp_path))
    assert not temporary_files(tmp_path)


def test_a_file_in_the_making_that_was_taken_away_is_made_again(tmp_path, monkeypatch):
    make, made = tempfile.mkstemp, []

    def taken(*arguments, **options):
        handle, name = make(*arguments, **options)
        if not made:
            Path(name).unlink()
        made.append(name)
        return handle, name

    monkeypatch.setattr(tempfile, "mkstemp", taken)
    write_atomically(tmp_path / "file", "whole")
    assert len(made) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# -------------------------------------------------------------------------------------------------------------- memory

MEMORY = {
    "the GPU's": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.31 GiB\nGPU 0"), "--device cpu"),
    "a kernel's": (RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"), "--device cpu"),
    "Python's": (MemoryError(), "fewer --jobs"),
    "torch's": (
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
        "--jobs",
    ),
}


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("whose", MEMORY)
def test_too_little_memory_is_one_sentence_and_keeps_the_finished_rows(paper, run, tmp_path, monkeypatch, whose, jobs):  # noqa: F811
    error, advice = MEMORY[whose]
    with monkeypatch.context() as patch, joblib.parallel_config("threading"):
        at_row(patch, paper, 2, lambda: (time.sleep(0.2), failing(error)()))
        code, _, err = run("reproduce", "--jobs", jobs)
    in_one_sentence(code, err, "too little free memory", advice, "what is finished is kept")
    assert reproduce("fake", Options(tmp_path / "results")).measured == 1


def test_real_allocations_that_fail_are_known():
    for allocate in (partial(bytearray, 1 << 62), partial(torch.empty, 1 << 60, dtype=torch.uint8)):
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            allocate()
        assert "too little free memory" in str(faults.sentence(caught.value))


def test_an_error_of_the_program_keeps_its_traceback(paper, monkeypatch):
    assert faults.sentence(RuntimeError("shapes differ")) is None
    assert faults.sentence(ZeroDivisionError()) is None
    at_row(monkeypatch, paper, 0, failing(ZeroDivisionError("of the program")))
    monkeypatch.setattr(sys, "argv", ["matchmark", "reproduce", "fake"])
    with pytest.raises(ZeroDivisionError, match="of the program"):
        cli.main()


# ----------------------------------------------------------------------------------------------------------- processes


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_keeps_the_finished_rows(paper, run, tmp_path, monkeypatch, jobs):  # noqa: F811
    if jobs == 1:
        with monkeypatch.context() as patch:
            at_row(patch, paper, 1, failing(KeyboardInterrupt()))
            code, _, err = run("reproduce")
    else:
        whole = experiment.in_parallel

        def stopped(*arguments):
            yield next(whole(*arguments))
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, joblib.parallel_config("threading"):
            patch.setattr(experiment, "in_parallel", stopped)
            code, _, err = run("reproduce", "--jobs", 2)
    assert code == 130
    assert "\n" not in err.strip()
    assert "the same command goes on" in err
    assert reproduce("fake", Options(tmp_path / "results")).measured == 2


def test_ctrl_c_elsewhere_is_exit_code_130(run, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(cli, "write_report", failing(KeyboardInterrupt()))
    assert run("report")[0] == 130
    monkeypatch.setattr(cli, "app", failing(KeyboardInterrupt()))
    code, _, err = run()
    assert (code, err) == (130, "matchmark: stopped\n")
    monkeypatch.setattr(builtins, "__import__", failing(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as stopped:
        entry.main()
    monkeypatch.undo()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "matchmark: stopped\n"


def test_ctrl_c_in_a_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_atomically(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_worker_that_is_killed_is_one_sentence():
    tasks = [partial(int, "1"), partial(os.kill, 0, 0), partial(signal.raise_signal, signal.SIGKILL)]
    refused(lambda: list(in_parallel(tasks[::2], 2)), "ended from outside", "fewer --jobs")
    assert list(in_parallel([partial(int, "1")], 2)) == [1], "the next run has workers again"


def test_tasks_that_are_dropped_are_dropped_in_silence():
    with joblib.parallel_config("threading"):
        results = in_parallel([partial(time.sleep, 0.05)] * 8, 2)
        next(results)
        results.close()  # a warning would be an error here


def test_a_second_run_on_the_same_paper_is_refused_and_one_on_another_is_not(paper, run, tmp_path):  # noqa: F811
    cache = tmp_path / "results" / "cache"
    cache.mkdir(parents=True)
    with FileLock(cache / "other.lock"):
        assert run("reproduce")[0] == 0
    with FileLock(cache / "fake.lock"):
        in_one_sentence(*run("reproduce")[::2], "another run is writing the results of fake")


def test_the_lock_of_a_killed_run_does_not_block(paper, tmp_path):
    lock = tmp_path / "cache" / "fake.lock"
    lock.parent.mkdir()
    code = (
        "import sys, time\nfrom filelock import FileLock\n"
        "with FileLock(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        try:
            refused(lambda: reproduce("fake", Options(tmp_path)), "another run")
        finally:
            holder.kill()
    assert lock.exists()
    assert reproduce("fake", Options(tmp_path)).measured == 3


def test_a_run_killed_before_its_pictures_draws_them_later(paper, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(paper, "pictures", failing(KeyboardInterrupt()), raising=False)
    with pytest.raises(KeyboardInterrupt):
        reproduce("fake", Options(tmp_path))
    monkeypatch.setattr(paper, "pictures", lambda options: drawn.append(1) or {"picture": b"pixels"})
    for _ in range(2):
        assert reproduce("fake", Options(tmp_path)).measured == 0
        assert (tmp_path / "fake" / "picture.png").read_bytes() == b"pixels"
    assert len(drawn) == 1
    (tmp_path / "fake" / "picture.png").unlink()
    reproduce("fake", Options(tmp_path))
    assert (tmp_path / "fake" / "picture.png").exists()


def kill(folder, *options):
    script = Path(__file__).with_name("kill_a_sweep.py")
    command = [sys.executable, str(script), str(folder), *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_sweep_killed_at_random_moments_ends_as_an_undisturbed_one(tmp_path):
    assert kill(tmp_path, "--kills", 4)["kills"] == 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("options", [(200,), (200, "--jobs", 2), (20, "--jobs", 2, "--processes")])
def test_a_sweep_killed_hundreds_of_times_ends_as_an_undisturbed_one(tmp_path, options):
    assert kill(tmp_path, "--kills", *options)["kills"] == options[0]


# -------------------------------------------------------------------------------------------------------------- clocks


def test_runs_keep_their_order_though_the_clock_goes_backwards(tmp_path, monkeypatch):
    class Clock(datetime):
        moments = iter(datetime(2030, 1, 1, tzinfo=UTC) - timedelta(hours=hour) for hour in range(100))

        @classmethod
        def now(cls, zone=None):
            return next(cls.moments)

    monkeypatch.setattr(provenance, "datetime", Clock)
    monkeypatch.setattr(provenance, "environment", lambda device, seed: {})
    ids = []
    for _ in range(5):
        record = RunRecord(tmp_path, "fake", "embedded", "cpu", 0)
        record.write()
        record.finish()
        ids.append(record.id)
    assert ids == sorted(set(ids))
    assert [ids[0][:15], ids[-1][:15]] == ["20300101T000000", "20300101T000004"]
    for path in tmp_path.iterdir():
        fields = json.loads(path.read_bytes())
        assert 0 <= fields["seconds"] < 60
        assert fields["finished"] < fields["started"], "the clock's own words"


def test_runs_of_one_second_have_ids_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "environment", lambda device, seed: {})
    records = [RunRecord(tmp_path, "fake", "embedded", "cpu", 0) for _ in range(20)]
    assert len({record.id for record in records}) == 20


@pytest.mark.parametrize("folder", ["solvers", "reproductions", "benchmarks"])
def test_nothing_is_timed_by_a_clock_that_may_be_set(folder):
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        if "time" not in path.read_text():
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "time.time_ns"):
                found.add(f"{path}: {node.lineno}")
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                found |= {f"{path}: {name.name}" for name in node.names if name.name in ("time", "time_ns")}
    assert not found


# ------------------------------------------------------------------------------------------------------------- engines


def test_every_optional_engine_that_is_missing_is_one_sentence(paper, run, tmp_path, monkeypatch):  # noqa: F811
    np.savez(tmp_path / "problem.npz", A=np.eye(3), B=np.eye(3))
    (tmp_path / "data").mkdir()
    for name in ("gurobipy", "pylibmgm", "distributed", "sentence_transformers", "qpth", "cv2"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gurobi._missing.cache_clear()
    picture(tmp_path / "data" / "pets" / "cat" / "0.png")
    picture(tmp_path / "data" / "pets" / "dog" / "0.png")
    embed = ("data", "embed", "--data", "data", "--dataset", "pets", "--language", "all-mpnet-base-v2")
    cases = {
        ("solve", "problem.npz", "--solver", "gurobi"): "pip install gurobipy",
        ("solve", "problem.npz", "--solver", "pylibmgm"): "pip install 'matchmark[pylibmgm]'",
        ("reproduce", "--scheduler", "tcp://127.0.0.1:1"): "pip install 'matchmark[cluster]'",
        ("reproduce", "--device", "cuda"): "sees no CUDA device",
        embed: "pip install 'matchmark[text]'",
    }
    try:
        for arguments, words in cases.items():
            in_one_sentence(*run(*arguments)[::2], words)
        monkeypatch.setattr(cli, "PAPERS", ())
        code, out, err = run("list")
        assert code == 0, err
        assert "pip install gurobipy" in out
    finally:
        gurobi._missing.cache_clear()
    missing = {name: engine.missing for name, engine in ENGINES.items() if engine.missing}
    assert missing.keys() == {"EMD, OpenCV", "QP, qpth"}
    assert all("pip install" in reason for reason in missing.values())
