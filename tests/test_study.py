"""The study of the benchmarks: one quick run of it, and what its tables are made of."""

import importlib
import json
import math
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import benchmark_modules

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["emd", "sinkhorn", "sinkhorn_accuracy"]


@pytest.fixture(scope="module")
def study():
    """The modules of the study."""
    names = ("cases", "measure", "tables", "figure", "__main__")
    found = benchmark_modules(*(f"study.{name}" for name in names))
    return dict(zip(names, found.values(), strict=True))


@pytest.fixture(scope="module")
def quick(study, tmp_path_factory):
    """The folder a quick study of some tables wrote to."""
    results = tmp_path_factory.mktemp("results")
    arguments = ["--quick", "--only", *QUICK, "--threads", "1", "--results", str(results)]
    assert study["__main__"].main(arguments) == 0
    return results


def read(quick, name):
    return pd.read_csv(quick / "cache" / "quick" / f"{name}.csv")


# ------------------------------------------------------------------------------------------------------- the quick run


@pytest.mark.parametrize("name", QUICK)
def test_a_table_has_a_row_of_every_contender_and_case(study, quick, name):
    cases, table = study["cases"], read(quick, name)
    assert list(table.columns) == study["tables"].COLUMNS
    wanted = [
        (case.what, case.size, solver)
        for case in cases.cases([name], quick=True)
        for solver in cases.TABLES[name].contenders[case.what]
    ]
    assert list(table[["what", "size", "solver"]].itertuples(index=False, name=None)) == wanted
    assert set(table["status"]) <= {"ok", "missed", "overflow", "not run"}
    ours = table[table["library"] == "matchmark"]
    assert set(ours["status"]) == {"ok"}
    assert (table["status"] == "ok").eq(table["reason"].isna()).all()
    assert (table["threads"] == 1).all()


@pytest.mark.parametrize("name", QUICK)
def test_times_and_errors_are_there_where_something_was_measured(quick, name):
    table = read(quick, name)
    timed = table[table["status"] == "ok"]
    assert (timed["repetitions"] == 2).all()
    assert (timed["wall_min"] > 0).all()
    assert (timed["wall_min"] <= timed["wall_median"]).all()
    assert (timed["cpu_min"] <= timed["cpu_median"]).all()
    assert timed["marginal_error"].between(0, 2).all()
    idle = table[table["status"].isin(("not run", "overflow"))]
    assert idle[["repetitions", "wall_median", "cpu_median", "ratio_to_fastest_peer"]].isna().all(axis=None)


@pytest.mark.parametrize("name", QUICK)
def test_ratios_are_computed_from_the_rows(study, quick, name):
    table = read(quick, name)
    for _, rows in table.groupby(study["tables"].CASE, dropna=False):
        peers = rows[(rows["library"] != "matchmark") & (rows["status"] == "ok")]
        for column, among in (
            ("ratio_to_fastest_peer", peers),
            ("ratio_to_fastest_log_peer", peers[peers["kind"] == "log"]),
        ):
            wanted = rows["wall_median"] / among["wall_median"].min()
            np.testing.assert_allclose(rows[column].astype(float), wanted.astype(float), rtol=1e-3)


def test_what_overflows_is_shown_as_that(quick):
    table = read(quick, "sinkhorn_accuracy")
    scaling = table[(table["solver"] == "torch_scaling") & (table["what"] == "plan")].set_index("reg")["status"]
    assert set(scaling[1e-4]) == {"overflow"}
    assert set(scaling[0.1]) == {"ok"}
    assert "torch_scaling: overflow" in (quick / "cache" / "quick" / "sinkhorn_accuracy.md").read_text()


def test_exact_solvers_have_no_value_error_and_sinkhorn_has_that_of_its_reg(quick):
    table = read(quick, "sinkhorn_accuracy")
    assert (table.loc[table["what"] == "exact", "value_error"] < 1e-12).all()
    few, many = (
        table[(table["solver"] == "sinkhorn") & (table["iterations"] == k) & (table["reg"] == 0.1)] for k in (5, 20)
    )
    assert many["marginal_error"].item() < few["marginal_error"].item()
    assert many["value_error"].item() > 1e-4


def test_beside_a_table_stand_its_text_its_figure_and_where_it_was_measured(study, quick):
    for name in QUICK:
        folder = quick / "cache" / "quick"
        text = (folder / f"{name}.md").read_text()
        assert text.startswith(f"# {study['cases'].TABLES[name].title}\n")
        assert "**" in text
        assert "Left out" in text
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        machine = json.loads((folder / f"{name}.json").read_text())
        assert {"commit", "dirty", "hardware", "versions", "threads", "sources"} <= set(machine)
        assert {"POT", "ott-jax", "geomloss", "jax"} <= set(machine["versions"])
    assert not (quick / "benchmarks").exists()


def test_what_is_measured_is_not_measured_again(study, quick, monkeypatch):
    before = (quick / "cache" / "quick" / "emd.csv").read_text()

    def no_process(*arguments, **settings):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", no_process)
    arguments = ["--quick", "--only", "emd", "--threads", "1", "--results", str(quick)]
    monkeypatch.setattr(
        study["__main__"], "provenance", lambda: json.loads((quick / "cache/quick/emd.json").read_text())
    )
    assert study["__main__"].main(arguments) == 0
    assert (quick / "cache" / "quick" / "emd.csv").read_text() == before
    with pytest.raises(AssertionError, match="process"):
        study["__main__"].main([*arguments, "--fresh"])


# --------------------------------------------------------------------------------------------------- without a run


def row(solver, library, kind, wall, status="ok", **others):
    case = {"table": "sinkhorn", "what": "plan", "size": "1x2x2", "dtype": "float32", "threads": 1}
    what = {"solver": solver, "library": library, "kind": kind, "wall_median": wall, "status": status, "reason": ""}
    return case | what | others


def test_ratios_leave_out_ours_what_failed_and_other_cases(study):
    table = study["tables"].frame(
        [
            row("ours", "matchmark", "log", 1.0),
            row("scaling", "POT", "scaling", 2.0),
            row("log", "POT", "log", 4.0),
            row("missed", "POT", "log", 0.5, status="missed"),
            row("overflow", "POT", "log", None, status="overflow"),
            row("ours", "matchmark", "log", 3.0, threads=2),
        ]
    )
    assert table["ratio_to_fastest_peer"].tolist()[:4] == [0.5, 1.0, 2.0, 0.25]
    assert table["ratio_to_fastest_log_peer"].tolist()[:4] == [0.25, 0.5, 1.0, 0.125]
    assert table[["ratio_to_fastest_peer", "ratio_to_fastest_log_peer"]].iloc[4:].isna().all(axis=None)


def test_contenders_take_turns(study, monkeypatch):
    order = []
    monkeypatch.setattr(study["measure"], "PAUSE", 0)
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = study["measure"]._interleaved(calls, 3)
    assert "".join(order) == "abcbcacab"
    assert {name: (len(wall), len(cpu)) for name, (wall, cpu) in times.items()} == dict.fromkeys("abc", (3, 3))


def test_what_is_slow_is_run_less_often(study, monkeypatch):
    monkeypatch.setattr(study["measure"], "PATIENCE", 0.2)
    calls = {"fast": lambda: None, "slow": lambda: time.sleep(0.1)}
    times = study["measure"]._interleaved(calls, 9)
    assert {name: len(wall) for name, (wall, _) in times.items()} == {"fast": 9, "slow": 3}


def test_what_goes_wrong_becomes_a_row(study, monkeypatch):
    contenders, cases = importlib.import_module("benchmarks.contenders"), study["cases"]

    def raising(error):
        def make(instance, **task):
            raise error

        return contenders.Contender(make, "POT", "log")

    def answering(answer):
        return contenders.Contender(lambda instance, **task: lambda: answer, "POT", "log")

    family = {
        "absent": raising(NotImplementedError("not installed")),
        "broken": raising(ValueError("one line\nand another")),
        "infinite": answering(np.full((1, 2, 2), np.inf)),
        "far": answering(np.zeros((1, 2, 2))),
        "good": answering(np.full((1, 2, 2), 0.25)),
    }
    table = cases.Table("T", "", {"plan": family}, cases.TABLES["sinkhorn"].judge)
    monkeypatch.setitem(cases.TABLES, "sinkhorn", table)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    case = cases.Case(
        "sinkhorn", "plan", "1x2x2", weights="uniform", task={"tolerance": 1e-6, "iterations": 7}, repetitions=1
    )
    rows = {r["solver"]: r for r in study["measure"].measured(case)}
    assert [r["status"] for r in rows.values()] == ["not run", "failed", "overflow", "missed", "ok"]
    assert rows["broken"]["reason"] == "ValueError: one line"
    assert rows["far"]["marginal_error"] == 2
    assert "wall_median" not in rows["infinite"]
    assert rows["good"]["wall_median"] > 0
    assert math.isfinite(rows["far"]["wall_median"])
    json.dumps(list(rows.values()), allow_nan=False)


def test_a_process_that_ends_is_told_in_one_sentence(study, tmp_path, monkeypatch, capsys):
    case = study["cases"].Case("sinkhorn", "nonsense", "1x2x2")
    monkeypatch.setattr(study["__main__"], "cases", lambda tables, quick: [case])
    assert study["__main__"].main(["--threads", "1", "--results", str(tmp_path)]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "the process measuring 'sinkhorn nonsense 1x2x2" in said
    assert "KeyError: 'nonsense'" in said
    assert not (tmp_path / "benchmarks").exists()


def test_a_study_that_is_stopped_says_how_to_go_on(study, tmp_path, monkeypatch, capsys):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(study["__main__"], "measure", stopped)
    assert study["__main__"].main(["--threads", "1", "--results", str(tmp_path)]) == 130
    assert "goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--threads", "0"], "must be from 1"), (["--only", "nonsense"], "invalid choice: 'nonsense'")],
)
def test_what_cannot_be_measured_is_refused(study, capsys, arguments, words):
    with pytest.raises(SystemExit, match="2"):
        study["__main__"].main(arguments)
    assert words in capsys.readouterr().err


def test_the_full_study_has_the_sizes_and_regs_it_is_for(study):
    found = study["cases"].cases(list(study["cases"].TABLES))
    assert {c.table for c in found} == set(study["cases"].TABLES)
    assert all(case.repetitions >= 9 for case in found if case.table != "sinkhorn_accuracy")
    speed = {(c.size, c.dtype, "tolerance" in c.task) for c in found if c.table == "sinkhorn"}
    sizes = ("256x49x49", "64x196x80", "375x25x25", "1x1000x1000")
    fixed = {(s, "float32", False) for s in (*sizes, "1x4000x4000")}
    assert speed == fixed | {(s, d, True) for s in sizes for d in ("float32", "float64")}
    assert {c.task["reg"] for c in found if c.table == "sinkhorn_accuracy" and c.task} == {1e-1, 5e-2, 1e-2, 1e-3, 1e-4}
    assert len({c.label for c in found}) == len(found)


@pytest.mark.slow
def test_the_whole_quick_study_runs(study, tmp_path):
    assert study["__main__"].main(["--quick", "--threads", "1", "--results", str(tmp_path)]) == 0
    tables = [pd.read_csv(path) for path in (tmp_path / "cache" / "quick").glob("*.csv")]
    assert len(tables) == len(study["cases"].TABLES)
    for table in tables:
        ours = table[table["library"] == "matchmark"]
        assert (ours["status"] == "ok").all(), ours[["solver", "reason"]]
