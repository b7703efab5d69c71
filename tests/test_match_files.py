"""Two files of embeddings, matched by the command: what it writes, what it proves, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest
from test_cli import run  # noqa: F401

from reproductions import cli, match_files
from reproductions.blind_match.method import Distortion, standardised
from reproductions.match_files import FileMatch, match_embeddings, read_embeddings
from solvers import Progress, make_solver
from solvers.brute_force import BruteForce

N = 7
RNG = np.random.default_rng(3)
A = RNG.normal(size=(N, 5))
ORDER = RNG.permutation(N)
PARTNERS = np.argsort(ORDER)
SPUN = (A @ np.linalg.qr(RNG.normal(size=(5, 5)))[0])[ORDER]
OTHER = RNG.normal(size=(N, 9))


@pytest.fixture
def files(tmp_path):
    """a.npy, its rotated and shuffled copy b.npy, other.npz, the truth and names."""
    np.save(tmp_path / "a.npy", A.astype(np.float32))
    np.save(tmp_path / "b.npy", SPUN)
    np.savez(tmp_path / "other.npz", OTHER)
    np.save(tmp_path / "truth.npy", PARTNERS)
    (tmp_path / "names.txt").write_text("".join(f"n{i}\n" for i in range(N)))
    return tmp_path


def test_a_rotated_and_shuffled_copy_is_found_with_a_proof(run, files):  # noqa: F811
    code, out, err = run("match", "a.npy", "b.npy", "--truth", "truth.npy", "--names-b", "names.txt")
    assert (code, err) == (0, "")
    exact = binomtest(N, N).proportion_ci(0.95, "exact")
    for words in ("GW, 7 members", "OPTIMAL", f"100.0 % (95 %: {100 * exact.low:.1f} … 100.0)", "a.match.png"):
        assert words in out
    pairs = pd.read_csv(files / "a.match.csv")
    assert pairs["index"].tolist() == list(range(N))
    assert pairs["partner"].tolist() == PARTNERS.tolist() == pairs["truth"].tolist()
    assert pairs["name_b"].tolist() == [f"n{j}" for j in PARTNERS]
    assert pairs["name_a"].isna().all()
    assert pairs["correct"].all()
    proof = json.loads((files / "a.match.json").read_text())
    assert proof["proven_optimal"] is True
    assert proof["n"] == N
    assert proof["k"] is None
    assert proof["value"] == pytest.approx(0, abs=1e-5)  # a.npy is in float32
    assert proof["lower_bound"] <= proof["value"] + 1e-9
    assert proof["gap_over_n2"] == pytest.approx(0, abs=1e-9)
    assert proof["accuracy"]["low"] == pytest.approx(100 * exact.low)
    for side in ("a", "b"):
        assert proof[side]["sha256"] == hashlib.sha256((files / f"{side}.npy").read_bytes()).hexdigest()
    assert proof["settings"] == {"time_limit": 60.0, "seed": 0, "max_iterations": 100_000_000, "checkpoint": None}
    with Image.open(files / "a.match.png") as figure:
        assert figure.width > 2 * figure.height


@pytest.mark.parametrize("metric", ["gw", "cka", "knn", "inner_product"])
def test_the_values_are_those_of_the_metric(run, files, metric):  # noqa: F811
    options = ("--metric", metric, "--solver", "brute_force", "--output", "deep/er/x.y", "--time-limit", "inf")
    code, out, err = run("match", "a.npy", "other.npz", *options, *(("--k", 2) if metric == "knn" else ()))
    assert (code, err) == (0, "")
    assert "accuracy" not in out
    proof = json.loads((files / "deep/er/x.y.json").read_text())
    pairs = pd.read_csv(files / "deep/er/x.y.csv")
    assert "correct" not in pairs
    distortion = Distortion(metric, 2)
    V, L = (standardised(distortion.kernel(torch.from_numpy(x))) for x in (A.astype(np.float32), OTHER))
    p = torch.tensor(pairs["partner"].tolist())
    value = float(distortion.alignment(V, L[p][:, p]))
    assert proof["value"] == pytest.approx(value, abs=1e-9)
    assert proof["value_over_n2"] == pytest.approx(value / N**2, abs=1e-9)
    assert pairs["contribution"].sum() == pytest.approx(value, abs=1e-9)
    assert proof["k"] == (2 if metric == "knn" else None)
    assert proof["accuracy"] is None
    assert proof["settings"]["time_limit"] == "inf"
    for other in torch.stack([torch.randperm(N, generator=torch.Generator().manual_seed(s)) for s in range(50)]):
        assert float(distortion.alignment(V, L[other][:, other])) >= value - 1e-9


def test_partners_of_which_some_are_missed(files):
    """The share of true partners is counted member by member, and the contribution of a pair is its own."""
    sides = read_embeddings(files / "a.npy"), read_embeddings(files / "b.npy")
    truth = torch.from_numpy(PARTNERS.copy())
    truth[[0, 1]] = truth[[1, 0]]
    found = match_embeddings(*sides, Distortion("cka"), make_solver("brute_force"), truth)
    assert isinstance(found, FileMatch)
    assert found.accuracy is not None
    assert found.accuracy.mean == pytest.approx(100 * (N - 2) / N)
    V, M = found.V, found.aligned
    own = -(V[3] * M[3]).sum() / 2 - (V[:, 3] * M[:, 3]).sum() / 2
    assert float(found.contributions[3]) == pytest.approx(float(own))


def saved(path: Path, array: object) -> Path:
    np.save(path, np.asarray(array))
    return path


def changed(i: int, j: int | slice, value: float) -> np.ndarray:
    x = A.copy()
    x[i, j] = value
    return x


BAD = {
    "NaN": (changed(2, 1, np.nan), "holds 1 NaN or infinite numbers, the first at [2, 1]"),
    "infinite": (changed(4, 0, np.inf), "the first at [4, 0]"),
    "one dimension": (A[0], "has shape (5,): embeddings are (n, d)"),
    "three dimensions": (A[None], "has shape (1, 7, 5)"),
    "empty": (A[:0], "has shape (0, 5)"),
    "words": (np.full((N, 2), "a"), "embeddings are real numbers"),
    "complex": (A + 1j, "holds complex128"),
    "booleans": (A > 0, "holds bool"),
    "fewer": (A[:6], "each must have one partner"),
    "a zero row": (changed(3, slice(None), 0.0), "row 3 of bad.npy has length 0"),
    "a huge row": (A * 1e200, "has length"),
    "one row for all": (np.tile(A[0], (N, 1)), "all rows are the same to GW"),
    "one direction": (np.outer(np.arange(1, N + 1), A[0]), "all rows are the same to GW"),
    "equal distances": (np.linalg.qr(RNG.normal(size=(N, N)))[0], "off its diagonal are the same"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_embeddings_are_refused_in_one_sentence(run, files, what):  # noqa: F811
    array, words = BAD[what]
    saved(files / "bad.npy", array)
    before = sorted(files.iterdir())
    for order in (("a.npy", "bad.npy"), ("bad.npy", "a.npy")):
        code, out, err = run("match", *order)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith("matchmark: ")
        assert words in err
    assert sorted(files.iterdir()) == before


def test_bad_files_and_options_are_refused_in_one_sentence(run, files):  # noqa: F811
    np.savez(files / "two.npz", a=A, b=A)
    np.save(files / "object.npy", np.array([[{"pickled": 1}]], dtype=object), allow_pickle=True)
    (files / "text.npy").write_text("hello")
    (files / "half.npy").write_bytes((files / "b.npy").read_bytes()[:200])
    (files / "few.txt").write_text("one\n")
    saved(files / "twice.npy", [0, 0, 1, 2, 3, 4, 5])
    for n in (1, 2):
        saved(files / f"{n}.npy", A[:n])
    saved(files / "level.npy", changed(1, slice(None), 3.0))
    saved(files / "line.npy", A[:, :1])
    (files / "file").write_text("")
    cases = {
        ("a.npy", "missing.npy"): "missing.npy does not exist",
        (".", "b.npy"): "is a folder",
        ("a.npy", "two.npz"): "two.npz has 2 arrays",
        ("a.npy", "object.npy"): "object.npy cannot be read",
        ("a.npy", "text.npy"): "text.npy cannot be read",
        ("a.npy", "half.npy"): "half.npy cannot be read",
        ("1.npy", "1.npy"): "needs three or more",
        ("2.npy", "2.npy"): "needs three or more",
        ("a.npy", "level.npy", "--metric", "cka"): "cka divides a vector by its deviation",
        ("a.npy", "line.npy", "--metric", "cka"): "cka divides a vector by its deviation",
        ("a.npy", "b.npy", "--metric", "knn", "--k", "7"): "7 neighbours need more than 7 members",
        ("a.npy", "b.npy", "--metric", "knn", "--k", "0"): "k must be at least 1",
        ("a.npy", "b.npy", "--k", "3"): "the metric is gw",
        ("a.npy", "b.npy", "--metric", "rbf"): "gw, cka, knn, inner_product",
        ("a.npy", "b.npy", "--solver", "sinkhorn"): "sinkhorn solves a",
        ("a.npy", "b.npy", "--solver", "brutforce"): "did you mean 'brute_force'",
        ("a.npy", "b.npy", "--set", "nodes=1"): "no setting 'nodes'",
        ("a.npy", "b.npy", "--time-limit", "-1"): "time_limit",
        ("a.npy", "b.npy", "--names-a", "few.txt"): "few.txt has 1 names",
        ("a.npy", "b.npy", "--names-b", "no.txt"): "no.txt cannot be read",
        ("a.npy", "b.npy", "--truth", "twice.npy"): "that is not 0 … 6 in some order",
        ("a.npy", "b.npy", "--truth", "a.npy"): "that is not 0 … 6 in some order",
        ("a.npy", "b.npy", "--output", "."): "--output takes the beginning",
        ("two.npz", "b.npy"): "two.npz has 2 arrays",
        ("a.npy", "b.npy", "--output", "file/x"): "file",
    }
    before = sorted(files.iterdir())
    for arguments, words in cases.items():
        code, out, err = run("match", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), (arguments, err)
        assert words in err, (arguments, err)
    assert sorted(files.iterdir()) == before


def test_an_input_is_not_overwritten(run, files):  # noqa: F811
    names = files / "x.csv"
    names.write_text("".join(f"n{i}\n" for i in range(N)))
    code, _, err = run("match", "a.npy", "b.npy", "--names-a", "x.csv", "--output", "x")
    assert code == 2
    assert "x.csv would be overwritten" in err
    assert names.read_text().startswith("n0\n")


def test_a_solver_that_cannot_run_is_exit_code_1(run, files, monkeypatch):  # noqa: F811
    monkeypatch.setattr(
        BruteForce, "unavailable", classmethod(lambda cls, problem=None: problem and "it is out of order")
    )
    code, out, err = run("match", "a.npy", "b.npy", "--solver", "brute_force")
    assert (code, out) == (1, "")
    assert "the solver brute_force cannot run here: it is out of order" in err
    assert not list(files.glob("*.match.*"))


def test_ctrl_c_before_there_is_a_match_is_exit_code_130(run, files, monkeypatch):  # noqa: F811
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "match_embeddings", stopped)
    code, _, err = run("match", "a.npy", "b.npy")
    assert (code, err.count("\n")) == (130, 1)
    assert "nothing is written" in err


def test_an_unfinished_search_is_written_with_what_it_has(run, files, monkeypatch):  # noqa: F811
    """No node bounded: the bound is minus infinity, which JSON cannot write, and the curve has values alone."""
    solve = match_files.matched

    def unbounded(problem, found):
        return solve(problem, found_without_bound(found))

    def found_without_bound(found):
        object.__setattr__(found, "lower_bound", torch.tensor(-torch.inf))
        object.__setattr__(found, "history", (Progress(0.001, found.value, torch.tensor(-torch.inf)),))
        return found

    monkeypatch.setattr(match_files, "matched", unbounded)
    code, out, _ = run("match", "a.npy", "b.npy")
    assert code == 0
    assert "bound / n²" not in out
    proof = json.loads((files / "a.match.json").read_text())
    assert proof["lower_bound"] is proof["lower_bound_over_n2"] is proof["gap_over_n2"] is None
