"""The command as a user meets it: one sentence and exit code 2 for what cannot be used, readable answers else."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import picture, write
from test_reproductions import fake  # noqa: F401

from reproductions import cli
from solvers.registry import solver_names

RNG = np.random.default_rng(0)
EYE = np.eye(3)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs the command in this process: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.out, "_width", 200)
    monkeypatch.setattr(cli.err, "_width", 200)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["matchmark", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return call


def saved(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)
    return path


def with_nan():
    C = EYE.copy()
    C[1, 2] = np.nan
    return C


BAD = {
    "NaN": ({"cost": with_nan()}, ["cost holds 1 NaN", "[1, 2]"]),
    "infinite": ({"cost": np.full((2, 2), np.inf)}, ["infinite"]),
    "weights that do not sum": ({"cost": EYE, "a": np.full(3, 0.5)}, ["do not sum to the same total", "Σa = 1.5"]),
    "negative weights": ({"cost": EYE, "a": [1.5, -0.5, 0.0]}, ["negative weight"]),
    "weights of wrong length": ({"cost": EYE, "b": [0.5, 0.5]}, ["b has shape (2,)", "(3,)"]),
    "three dimensions": ({"cost": np.ones((2, 3, 3))}, ["3 dimensions", "must have 2"]),
    "one dimension": ({"cost": np.ones(3)}, ["1 dimensions"]),
    "empty": ({"cost": np.ones((0, 3))}, ["no side may be empty"]),
    "words": ({"cost": np.array([["a"]])}, ["real numbers"]),
    "no arrays it knows": ({"matrix": EYE}, ["neither", "matrix"]),
    "an array too many": ({"cost": EYE, "c": EYE}, ["'c'", "cost, a, b"]),
    "half a quadratic problem": ({"A": EYE}, ["no array 'B'"]),
    "matrices that do not fit": ({"A": EYE, "B": np.eye(4)}, ["B has shape (4, 4)"]),
}


DD = "p 2 2 2 1\na 0 0 0 -1\na 1 1 1 -2\ne 0 1 -3\n"


def test_a_dd_file_is_solved(run, tmp_path):
    (tmp_path / "a.dd").write_text(DD)
    code, _, err = run("solve", "a.dd")
    assert code == 0, err
    with np.load(tmp_path / "a.solution.npz") as kept:
        assert kept["value"] == -6
        assert kept["permutation"].tolist() == [0, 1]
    for arguments, words in ((["b.dd"], "there is no file b.dd"), (["a.dd", "--problem", "transport"], "leave out")):
        code, _, err = run("solve", *arguments)
        assert code == 2
        assert words in err


@pytest.mark.parametrize("what", BAD)
def test_a_bad_problem_is_refused_in_one_sentence(run, tmp_path, what):
    arrays, words = BAD[what]
    code, out, err = run("solve", saved(tmp_path / "problem.npz", **arrays))
    assert code == 2
    assert out == ""
    assert err.startswith("matchmark: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert all(word in err for word in words), err
    assert list(tmp_path.iterdir()) == [tmp_path / "problem.npz"]


def test_a_bad_file_is_refused_in_one_sentence(run, tmp_path):
    text, array, evil = tmp_path / "text.npz", tmp_path / "array.npy", tmp_path / "evil.npz"
    text.write_text("hello")
    np.save(array, EYE)
    np.savez(evil, cost=np.array([[{"pickled": 1}]], dtype=object))
    half = saved(tmp_path / "half.npz", cost=EYE)
    half.write_bytes(half.read_bytes()[:150])
    pickled = tmp_path / "pickled.npz"
    pickled.write_bytes(pickle.dumps({"cost": EYE}))
    cases = {
        tmp_path / "missing.npz": "there is no file",
        tmp_path: "is not an .npz archive",
        text: "is not an .npz archive",
        array: "holds a single array",
        evil: "is not an .npz archive of numbers",
        half: "is not an .npz archive",
        pickled: "is not an .npz archive",
    }
    for path, words in cases.items():
        code, _, err = run("solve", path)
        assert (code, err.count("\n")) == (2, 1), (path, err)
        assert words in err


def test_bad_options_are_refused_in_one_sentence(run, tmp_path):
    file = saved(tmp_path / "problem.npz", cost=EYE)
    cases = {
        ("--solver", "sinkhron"): "did you mean 'sinkhorn'",
        ("--solver", "sinkhorn", "--set", "rge=1"): "did you mean 'reg'",
        ("--solver", "sinkhorn", "--set", "reg=-1"): "reg must be positive",
        ("--solver", "sinkhorn", "--set", "reg=word"): "reg",
        ("--solver", "sinkhorn", "--set", "reg"): "NAME=VALUE",
        ("--time-limit", "-1"): "time_limit",
        ("--problem", "matching"): "no problem type 'matching'",
        ("--problem", "quadratic_assignment"): "no array 'A'",
        ("--solver", "brute_force", "--problem", "transport"): "brute_force solves",
        ("--device", "gpu"): "no device 'gpu'",
        ("--device", "meta"): "not supported",
    }
    for options, words in cases.items():
        code, _, err = run("solve", file, *options)
        assert (code, err.count("\n")) == (2, 1), (options, err)
        assert words in err, err
    code, _, err = run("reproduce", "--results", file)
    assert (code, err.strip().count("\n")) == (2, 0)
    assert str(file) in err
    code, _, err = run("solve", file, "--output", file / "inside.npz")
    assert (code, err.count("\n")) == (2, 1)
    code, _, err = run("reproduce", "deepmed")
    assert code == 2
    assert "no paper 'deepmed'" in err


@pytest.mark.parametrize(
    ("arrays", "options", "solver"),
    [
        ({"cost": RNG.random((4, 6))}, (), "emd"),
        (
            {"cost": RNG.random((4, 4)), "a": [0.1, 0.2, 0.3, 0.4]},
            ("--solver", "sinkhorn", "--set", "reg=0.1"),
            "sinkhorn",
        ),
        ({"cost": RNG.random((4, 4))}, ("--solver", "jonker_volgenant"), "jonker_volgenant"),
        ({"cost": RNG.random((4, 4))}, ("--problem", "assignment", "--time-limit", "10"), "jonker_volgenant"),
        ({"A": RNG.random((4, 4)), "B": RNG.random((4, 4)), "constant": 2.0}, (), "branch_and_bound"),
    ],
)
def test_a_problem_in_a_file_is_solved_into_a_file(run, tmp_path, arrays, options, solver):
    code, out, err = run("solve", saved(tmp_path / "problem.npz", **arrays), *options)
    assert (code, err) == (0, "")
    for word in (solver, "status", "value", "lower bound", "time"):
        assert word in out
    with np.load(tmp_path / "problem.solution.npz", allow_pickle=False) as stored:
        assert str(stored["solver"]) == solver
        assert str(stored["status"]) in ("OPTIMAL", "CONVERGED")
        if "plan" in stored:
            assert (stored["plan"] * arrays["cost"]).sum() == pytest.approx(float(stored["value"]))
        else:
            assert sorted(stored["permutation"]) == list(range(4))


def test_list_names_every_solver_paper_and_data_set(run):
    code, out, _ = run("list")
    assert code == 0
    for word in (*solver_names(), "implicit, unrolled", "deepemd", "digits", "n ≤ 10"):
        assert word in out
    for word in ("miniImageNet", "SPair-71k", "Omniglot", "warped photographs"):
        assert word in out
    assert run("--help")[0] == 0


def test_data_says_what_a_folder_holds(run, tmp_path):
    for name in ("miniimagenet/images/a.jpg", "omniglot/images_background/Greek/character01/b.png"):
        picture(tmp_path / "data" / name)
    with zipfile.ZipFile(tmp_path / "data" / "pascal.zip", "w") as archive:
        for name in ("PF-PASCAL/JPEGImages/a.jpg", "PF-PASCAL/JPEGImages/b.jpg", "PF-PASCAL/list.csv"):
            archive.writestr(name, "")
    with tarfile.open(tmp_path / "data" / "SPair-71k.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("SPair-71k/a.jpg"))
    code, out, err = run("data", "--data", "data")
    assert code == 0, err
    wanted = {
        "miniImageNet": "miniimagenet, 1 images",
        "Omniglot": "images_background, 1 images",
        "PF-PASCAL": "pascal.zip, 2 images",
        "SPair-71k": "SPair-71k.tar.gz",
        "PF-WILLOW": "–",
    }
    for name, words in wanted.items():
        (line,) = [line for line in out.splitlines() if line.startswith(f"│ {name} ")]
        assert words in line
    assert run("data", "--data", "nowhere")[0] == 2


def test_reproduce_report_and_check(fake, run, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(cli, "PAPERS", ("fake",))
    code, out, err = run("reproduce")
    assert code == 0, err
    assert "3 rows measured, 0 reused" in out
    assert "2 published numbers are not run" in out
    code, out, _ = run("reproduce", "fake")
    assert "0 rows measured, 3 reused" in out
    assert run("report")[0] == 0
    code, out, _ = run("check", "--against", "results")
    assert code == 0
    assert out.strip() == "ok: 0 failed, 3 unchanged"
    code, out, _ = run("check", "--against", "results", "--all", "--json", "found.json")
    assert out.count("unchanged") == 4
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["passed"], found["compared"], len(found["findings"])) == (True, 3, 3)
    worse = tmp_path / "worse"
    (worse / "fake").mkdir(parents=True)
    text = (tmp_path / "results" / "fake" / "counts.csv").read_text()
    (worse / "fake" / "published.csv").write_bytes((tmp_path / "results" / "fake" / "published.csv").read_bytes())
    (worse / "fake" / "counts.csv").write_text(text.replace(",11.5,", ",10.5,"))
    code, out, _ = run("check", "--results", "worse", "--against", "results", "--json", "worse.json")
    assert code == 1
    assert out.splitlines() == [
        "fake / counts",
        "  FAIL row 1, column: 11.5 → 10.5, worse by 1 points (tolerance 0.5)",
        "FAIL: 1 failed, 1 worse, 2 unchanged",
    ]
    first, *_ = json.loads((tmp_path / "worse.json").read_text())["findings"]
    assert (first["group"], first["kind"], first["reference"], first["measured"]) == (
        "fake / counts",
        "worse",
        11.5,
        10.5,
    )
    (tmp_path / "empty").mkdir()
    code, out, _ = run("check", "--against", "empty")
    assert code == 1
    assert "FAIL nothing was compared" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "nowhere"], "cannot read the reference tables of nowhere"),
        (["--results", "nowhere"], "there is no folder of results at nowhere"),
        (["--against", "broken"], "the reference, broken, cannot be used: deepemd/cub.csv is damaged"),
        (["--against", "broken", "--only", "asv", "--asv", "nothing"], "nothing is neither"),
        (["--against", "broken", "--only", "asv", "--asv", "0123abcd"], "no result of asv for the commit 0123abcd"),
        (["--against", "broken", "--factor", "0.5"], "from 1 on, not 0.5"),
        (["--json", "results"], "results is a folder"),
    ],
)
def test_a_check_that_cannot_be_done_is_refused(run, tmp_path, arguments, words):
    (tmp_path / "results").mkdir()
    write(tmp_path / "broken" / "deepemd" / "cub.csv", "a,b\n1\n")
    code, out, err = run("check", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_training_without_data_is_refused(run):
    code, _, err = run("reproduce", "deepemd", "--train")
    assert code == 2
    assert "--train needs --data DIR with one of the folders miniimagenet, tiered_imagenet" in err


def test_ctrl_c_is_one_sentence_and_exit_code_130(run, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "reproduce", stopped)
    code, _, err = run("reproduce")
    assert code == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err


def test_the_installed_command_refuses_without_a_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "reproductions", "solve", str(tmp_path / "missing.npz")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("matchmark: there is no file")
    assert "Traceback" not in done.stderr
