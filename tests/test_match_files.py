"""``matchmark match``: what it finds, what it writes, and what it refuses."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from reproductions import UserError
from reproductions.cli import app
from solvers import InvalidProblem

RUNNER = CliRunner()


@pytest.fixture
def rotated(tmp_path):
    """a.npy and, rotated and in another order, b.npz: the partner of every row."""
    random = np.random.default_rng(0)
    a = random.normal(size=(8, 5))
    order = random.permutation(8)
    np.save(tmp_path / "a.npy", a)
    np.savez(tmp_path / "b.npz", vectors=(a @ np.linalg.qr(random.normal(size=(5, 5)))[0])[order])
    return np.argsort(order)


def run(tmp_path, *arguments):
    return RUNNER.invoke(app, ["match", str(tmp_path / "a.npy"), str(tmp_path / "b.npz"), *arguments])


@pytest.mark.parametrize("metric", ["gw", "inner_product", "cka"])
def test_a_planted_rotation_is_found_and_proven(metric, rotated, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"member {k}" for k in range(8)))
    np.save(tmp_path / "truth.npy", rotated)
    truth = ("--truth", str(tmp_path / "truth.npy"))
    done = run(tmp_path, "--metric", metric, "--time-limit", "10", "--names-a", str(names), *truth)
    assert done.exit_code == 0, done.output
    pairs = pd.read_csv(tmp_path / "a.match.csv")
    assert pairs["partner"].tolist() == rotated.tolist()
    assert pairs["name_a"].tolist() == [f"member {k}" for k in range(8)]
    told = json.loads((tmp_path / "a.match.json").read_text())
    assert told["n"] == 8
    assert told["proven_optimal"] is True
    assert told["lower_bound"] == pytest.approx(told["value"], abs=1e-6)
    assert (tmp_path / "a.match.png").read_bytes().startswith(b"\x89PNG")
    assert "100" in done.output


def test_the_certificate_of_a_heuristic_proves_nothing(rotated, tmp_path):
    done = run(tmp_path, "--solver", "faq", "--output", str(tmp_path / "by_faq"))
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "by_faq.json").read_text())
    assert told["proven_optimal"] is False
    assert told["lower_bound"] is None


@pytest.mark.parametrize(
    ("a", "words"),
    [
        (np.zeros(8), r"\(n, d\)"),
        (np.eye(7, 3) + 1, "7"),
        (np.full((8, 3), np.nan), "finite"),
        (np.ones((8, 3)), "nothing to match by"),
        (np.array([["x"] * 3] * 8), "numbers"),
    ],
    ids=["a vector", "another n", "NaN", "constant", "text"],
)
def test_what_cannot_be_matched_is_said_and_nothing_written(a, words, rotated, tmp_path):
    np.save(tmp_path / "a.npy", a)
    done = run(tmp_path)
    assert isinstance(done.exception, UserError | InvalidProblem), done.output
    assert re.search(words, str(done.exception)), done.exception
    assert not list(tmp_path.glob("*.match.*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--metric", "cosine"], "a distortion is one of"),
        (["--k", "3"], "--k counts"),
        (["--metric", "knn", "--k", "8"], "8 neighbours need more than 8"),
        (["--solver", "sinkhorn"], "sinkhorn"),
        (["--time-limit", "-1"], "time_limit"),
        (["--names-a", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_options_that_do_not_fit(arguments, words, rotated, tmp_path):
    done = run(tmp_path, *arguments)
    assert isinstance(done.exception, UserError), done.output
    assert words in str(done.exception)


def test_pickles_and_broken_files_are_refused(rotated, tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}] * 8, dtype=object), allow_pickle=True)
    assert isinstance(run(tmp_path).exception, UserError)
    (tmp_path / "a.npy").write_bytes(b"no array")
    assert isinstance(run(tmp_path).exception, UserError)
    (tmp_path / "a.npy").unlink()
    assert "a.npy" in str(run(tmp_path).exception)
