"""The study of quadratic assignments, and the reader of QAPLIB's files."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED, benchmark_modules

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def modules():
    """The study and the reader."""
    return list(benchmark_modules("quadratic_study", "qaplib").values())


@pytest.fixture(scope="module")
def quick(modules, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    arguments = ["--quick", "--time-limit", "0.2", "--results", str(results)]
    assert modules[0].main(arguments) == 0
    return results / "cache" / "quick", arguments


def test_every_contender_has_a_row_with_true_gaps(modules, quick):
    study, _ = modules
    table = pd.read_csv(quick[0] / "quadratic_assignment.csv")
    assert list(table.columns) == study.COLUMNS
    assert list(table["solver"]) == list(study.CONTENDERS)
    A, B = study.generated("planted", 8)
    best = min((A * B[np.ix_(p, p)]).sum() for p in itertools.permutations(range(8)))
    ran = table[table["status"] != "not run"]
    assert len(ran) >= 6
    assert ran["value"].min() == pytest.approx(best)
    np.testing.assert_allclose(ran["value_gap"], (ran["value"] - best) / abs(best), atol=1e-9)
    assert (ran["bound"].dropna() <= best + 1e-6).all()
    assert (ran.loc[ran["proven"], "bound"] >= best - 1e-6).all()
    assert ran.loc[ran["solver"] == "branch_and_bound", "proven"].all()
    assert (quick[0] / "quadratic_assignment.png").read_bytes().startswith(b"\x89PNG")
    text = (quick[0] / "quadratic_assignment.md").read_text()
    assert all(name in text for name in study.CONTENDERS)


def test_what_was_measured_is_not_measured_again(modules, quick, monkeypatch):
    study, _ = modules
    before = (quick[0] / "quadratic_assignment.md").read_bytes()
    monkeypatch.setattr(study, "measure", lambda *_: pytest.fail("measured again"))
    assert study.main(quick[1]) == 0
    assert (quick[0] / "quadratic_assignment.md").read_bytes() == before


def test_a_study_of_chosen_instances_solvers_and_threads(modules, tmp_path):
    arguments = ["--instances", "planted6", "unrelated7", "--solvers", "branch_and_bound", "--threads", "2"]
    assert modules[0].main([*arguments, "--time-limit", "20", "--name", "proofs", "--results", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "benchmarks" / "proofs.csv")
    assert list(table["instance"]) == ["planted6", "unrelated7"]
    assert table["proven"].all()
    assert (table["iterations"] >= 1).all()
    assert "20 s and 2 threads" in (tmp_path / "benchmarks" / "proofs.md").read_text()


def test_a_stopped_study_says_so(modules, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(modules[0], "measure", stop)
    assert modules[0].main(["--quick", "--results", str(tmp_path)]) == 130
    assert "goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--time-limit", "0"], "above 0"),
        (["--threads", "0"], "at least 1"),
        (["--instances", "nug12"], "--qaplib must name the folder"),
        (["--instances", "nug12", "--qaplib", "nowhere"], "there is no file"),
        (["--solvers", "guess"], "invalid choice"),
        (["--speed"], "unrecognized"),
    ],
)
def test_bad_options_are_refused(modules, capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        modules[0].main(["--quick", *arguments])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_instances_and_solutions_are_read(modules, tmp_path):
    _, qaplib = modules
    path = tmp_path / "a.dat"
    path.write_text("3\n\n0 1 2\n1 0 3\n2 3 0\n\n0 5 6\n5 0 7\n6 7 0\n")
    A, B = qaplib.read_dat(path)
    assert A.tolist() == [[0, 1, 2], [1, 0, 3], [2, 3, 0]]
    assert qaplib.best_known(path, A, B) is None
    (tmp_path / "a.sln").write_text("3 74\n3, 2 1\n")
    assert qaplib.read_sln(tmp_path / "a.sln")[1].tolist() == [2, 1, 0]
    assert qaplib.best_known(path, A, B) == 2 * (7 + 2 * 6 + 3 * 5)
    for text, words in (("3 1 2", "holds 3 numbers"), ("x", "other than numbers"), ("", "holds 0 numbers")):
        path.write_text(text)
        with pytest.raises(qaplib.QaplibError, match=words):
            qaplib.read_dat(path)
    (tmp_path / "a.sln").write_text("3 74\n3 2 2\n")
    with pytest.raises(qaplib.QaplibError, match="no solution"):
        qaplib.read_sln(tmp_path / "a.sln")


def test_the_librarys_own_files_have_their_known_values(modules):
    _, qaplib = modules
    folder = SHARED / "qaplib"
    if not folder.exists():
        pytest.skip("QAPLIB is not at hand")
    for name, value in (("nug12", 578), ("tai20a", 703482), ("kra30a", 88900), ("had20", 6922)):
        A, B = qaplib.read_dat(folder / f"{name}.dat")
        assert qaplib.best_known(folder / f"{name}.dat", A, B) == value
