"""The gate on the committed tables, with one regression planted at a time; and on files that are none."""

from __future__ import annotations

import csv
import io
import math
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from conftest import refused, write

import reproductions
from reproductions import PAPERS
from reproductions.gate import consistency, study, tables
from reproductions.gate.check import Part, check
from reproductions.gate.files import committed, on_disk
from reproductions.gate.findings import counts, grouped, record
from reproductions.gate.reading import Table, Unreadable, number
from reproductions.metrics import METRICS
from reproductions.report import COLUMNS

RESULTS = Path(reproductions.__file__).parents[1] / "results"


@cache
def committed_tables() -> dict[str, Table]:
    """The papers' tables of this checkout that have a measured row."""
    files = {path: content for path, content in on_disk(RESULTS).items() if path.split("/")[0] in PAPERS}
    read = {path: tables.paper_table(path, content) for path, content in files.items()}
    return {p: t for p, t in read.items() if any(row["measured"] for row in t.rows.values())}


@cache
def study_tables() -> dict[str, Table]:
    return {p: study.study_table(p, c) for p, c in on_disk(RESULTS).items() if p.startswith("benchmarks/")}


def planted(of: Table, key: tuple[str, ...], **cells: object) -> Table:
    return replace(of, rows=of.rows | {key: of.rows[key] | {k: str(v) for k, v in cells.items()}})


def moved(table: Table, key: tuple[str, ...], by: float) -> Table:
    """A row whose number moved, its interval with it."""
    columns = ("measured", "ci_low", "ci_high")
    return planted(table, key, **{c: (number(table.rows[key][c]) or 0.0) + by for c in columns})


def failures(now: Table, reference: Table) -> list[str]:
    return [f.kind for f in [*tables.compared(now, reference), *consistency.inconsistent([now])] if not f.passed]


def measured_rows(*metrics: str) -> list[tuple[Table, tuple[str, ...]]]:
    """Tables of one committed row each, with its key; of a metric that has none, rows of PCK are made some."""
    committed_rows = [
        (t.path, key, row) for t in committed_tables().values() for key, row in t.rows.items() if row["measured"]
    ]
    found = [x for x in committed_rows if x[2]["metric"] in metrics]
    found = found or [(p, k, r | {"metric": metrics[0]}) for p, k, r in committed_rows if r["metric"] == "pck"]
    return [(Table(path, {key: row}), key) for path, key, row in found]


NAMES = sorted(METRICS)
ACCURACIES = [m for m in NAMES if METRICS[m].direction == "higher" and METRICS[m].unit in ("percent", "points")]


def test_what_is_committed_holds():
    found = check(RESULTS, str(RESULTS))
    assert [f for f in found if not f.passed] == []
    assert counts(found)["unchanged"] > 3000


@pytest.mark.parametrize("metric", ACCURACIES)
def test_three_points_less_are_caught_in_every_row(metric):
    for table, key in measured_rows(metric):
        assert "worse" in failures(moved(table, key, -3.0), table), key


@pytest.mark.parametrize("metric", ACCURACIES)
def test_three_points_more_pass(metric):
    for table, key in measured_rows(metric):
        if (number(table.rows[key]["measured"]) or 0.0) <= 97:
            found = tables.compared(better := moved(table, key, 3.0), table)
            assert failures(better, table) == []
            assert counts(found)["better"] == 1


def test_a_gap_that_grows_by_two_points_is_caught_in_every_row():
    for table, key in measured_rows("optimality_gap"):
        assert failures(moved(table, key, 2.0), table) == ["worse"]
        assert failures(moved(table, key, 0.5), table) == []


@pytest.mark.parametrize("metric", [m for m in NAMES if not math.isinf(METRICS[m].gate_tolerance)])
def test_no_metric_gets_worse_by_more_than_its_tolerance(metric):
    sign = -1 if METRICS[metric].direction == "higher" else 1
    for table, key in measured_rows(metric):
        slack = tables.tolerance(table.rows[key])
        assert slack <= 2.5
        assert "worse" in failures(moved(table, key, sign * (slack + 0.01)), table), key
        assert "worse" not in failures(moved(table, key, sign * 0.9 * slack), table), key


def test_times_are_not_gated_but_must_be_there():
    for table, key in measured_rows("solve_time", "episode_time"):
        assert failures(moved(table, key, 1e6), table) == []
        assert "missing" in failures(planted(table, key, measured=""), table)


@pytest.mark.parametrize("metric", NAMES)
def test_a_number_that_is_gone_or_none_is_caught(metric):
    for table, key in measured_rows(metric):
        without = replace(table, rows={k: row for k, row in table.rows.items() if k != key})
        assert failures(without, table) == ["missing"]
        assert "missing" in failures(planted(table, key, measured="nan"), table)
        assert "missing" in failures(planted(table, key, measured="", verdict="not run", reason="a limit"), table)
        assert "not finite" in failures(planted(table, key, measured="inf"), table)
        assert "inconsistent" in failures(planted(table, key, measured="nan"), Table(table.path, {})), "also a new one"


def test_a_bound_above_its_value_is_caught_in_every_row_also_across_tables():
    costs = [table for table, _ in measured_rows("matching_cost")]
    for table, key in measured_rows("matching_bound"):
        outcome = [table.rows[key][name] for name in consistency.OUTCOME]
        same = [c for c in costs for row in c.rows.values() if [row[n] for n in consistency.OUTCOME] == outcome]
        assert consistency.inconsistent([*same, table]) == []
        least = min(number(row["measured"]) or 0.0 for c in same for row in c.rows.values())
        bound = number(table.rows[key]["measured"]) or 0.0
        (found,) = consistency.inconsistent([*same, moved(table, key, least - bound + 1e-4)])
        assert "above the value" in found.sentence


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"measured": 101.0, "ci_low": 100.0, "ci_high": 102.0}, "outside 0 … 100"),
        ({"measured": -1.0, "ci_low": -2.0, "ci_high": 0.0}, "outside 0 … 100"),
        ({"ci_high": 1.0}, "its interval is"),
        ({"ci_low": ""}, "its interval is"),
        ({"measured": ""}, "nothing was measured"),
        ({"verdict": "not run"}, "a number was measured"),
        ({"n": 0}, "samples"),
        ({"table": "solvers"}, "a row of deepemd/solvers.csv"),
    ],
)
def test_what_cannot_be_is_caught_whatever_the_reference(cells, words):
    table = committed_tables()["deepemd/few_shot_digits.csv"]
    found = consistency.inconsistent([planted(table, next(iter(table.rows)), **cells)])
    assert len(found) == 1
    assert words in found[0].sentence


def test_one_problem_of_twenty_may_be_lost_and_no_more():
    table, key = next((t, k) for t, k in measured_rows("proven_optimal") if t.rows[k]["measured"] == "100.0")
    for n, lost, kinds in ((20, 5, []), (20, 10, ["worse"]), (20, 3, ["worse"]), (10, 10, ["worse"]), (50, 2, [])):
        reference = planted(table, key, n=n)
        now = planted(moved(reference, key, -lost), key, ci_high=100.0)
        assert failures(now, reference) == kinds, (n, lost)


def test_a_new_row_passes_and_is_named():
    table = committed_tables()["deepemd/few_shot_digits.csv"]
    key = next(iter(table.rows))
    without = replace(table, rows={k: row for k, row in table.rows.items() if k != key})
    (new,) = [f for f in tables.compared(table, without) if f.kind != "unchanged"]
    assert (new.kind, new.passed, new.reference) == ("new", True, None)
    assert new.name.startswith(f"{key[0]}, {key[1]}")


# -------------------------------------------------------------------------------------------------------------- study


def study_failures(now: Table, reference: Table) -> list[str]:
    return [f.kind for f in [*study.compared(now, reference), *study.inconsistent(now)] if not f.passed]


def study_cells(*columns: str) -> list[tuple[Table, tuple[str, ...], str, float]]:
    """A cell of every solver and column in every table of the study, and every cell of our own solvers."""
    chosen = {}
    for table in study_tables().values():
        for key, row in table.rows.items():
            for column in columns:
                x = number(row.get(column, ""))
                if x is not None:
                    case = key if row["library"] == "matchmark" else row["solver"]
                    chosen.setdefault((table.path, case, column), (Table(table.path, {key: row}), key, column, x))
    assert chosen
    return list(chosen.values())


@pytest.mark.parametrize("column", ["value_gap", "bound_gap", "marginal_error", "value_error", "gradient_error"])
def test_a_gap_or_error_of_the_study_that_grows_by_two_points_is_caught(column):
    for table, key, name, x in study_cells(column):
        assert "worse" in study_failures(planted(table, key, **{name: x + 0.02 * max(1.0, x)}), table), key
        assert study_failures(planted(table, key, **{name: 0.9 * x}), table) == []


def test_values_and_bounds_of_the_study_are_gated():
    for table, key, name, x in study_cells("value", "bound"):
        size = max(1.0, abs(number(table.rows[key]["best"]) or 0.0))
        worse = x - 0.02 * size if name == "bound" else x + 0.02 * size
        assert "worse" in study_failures(planted(table, key, **{name: worse}), table), key
        above = (number(table.rows[key]["value"]) or 0.0) + 0.01 * size
        assert "inconsistent" in study_failures(planted(table, key, bound=above), table), key
        for nothing, kind in (("", "missing"), ("nan", "missing"), ("inf", "not finite")):
            assert kind in study_failures(planted(table, key, **{name: nothing}), table), key


@pytest.mark.parametrize("path", sorted(study_tables()))
def test_rows_of_the_study_that_vanish_or_fail_are_caught_and_times_are_not_compared(path):
    table = study_tables()[path]
    key, row = next((k, r) for k, r in table.rows.items() if r["status"] in study.DONE)
    without = replace(table, rows={k: r for k, r in table.rows.items() if k != key})
    assert study_failures(without, table) == ["missing"]
    assert study_failures(table, without) == []
    assert "missing" in study_failures(planted(table, key, status="failed", reason="why"), table)
    time = "seconds" if "seconds" in row else "wall_median"
    assert study_failures(planted(table, key, **{time: 1e6}), table) == []
    assert study_failures(planted(table, key, **{time: -1.0}), table) == ["inconsistent"]
    if row.get("proven") == "True":
        assert study_failures(planted(table, key, proven="False"), table) == ["worse"]


# -------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def results(tmp_path):
    """A folder with one table of a paper and one of the study, and its copy."""
    for folder in ("now", "then"):
        for path in ("deepemd/few_shot_digits.csv", "benchmarks/gromov_wasserstein.csv"):
            write(tmp_path / folder / path, (RESULTS / path).read_text(encoding="utf-8"))
    return tmp_path


def damaged(text: str) -> dict[str, tuple[str, str]]:
    lines = text.splitlines(keepends=True)
    rows = list(csv.reader(io.StringIO(text)))
    return {
        "cut in a field": (text[: text.rindex(",embedded,")], "last line is not whole"),
        "cut in a quotation": (text[: text.rindex('"')], "unexpected end of data"),
        "cut before the last line break": (text[:-1], "last line is not whole"),
        "empty": ("", "does not begin with the columns"),
        "a row twice": (text + lines[-1], "is there twice"),
        "a word for a number": (text.replace(rows[1][10], "about", 1), "'about' as measured"),
        "an open quotation": (text + '"', "is damaged"),
        "not a table": ("\x00\x01", "does not begin with the columns"),
        "another metric": (text.replace("few_shot_accuracy", "luck"), "metrics that are not known: luck"),
    }


@pytest.mark.parametrize("how", damaged((RESULTS / "deepemd" / "few_shot_digits.csv").read_text()))
def test_a_damaged_table_is_a_failure_that_names_the_file(results, how):
    path = results / "now" / "deepemd" / "few_shot_digits.csv"
    text, words = damaged(path.read_text(encoding="utf-8"))[how]
    path.write_text(text, encoding="utf-8")
    if how == "not a table":
        path.write_bytes(b"one\n\x00\n")
    (wrong,) = [f for f in check(results / "now", str(results / "then")) if not f.passed]
    assert (wrong.kind, wrong.group) == ("unreadable", "deepemd / few_shot_digits")
    assert "deepemd/few_shot_digits.csv" in wrong.sentence
    assert words in wrong.sentence
    assert "\n" not in wrong.sentence
    refused(lambda: check(results / "then", str(results / "now")), "the reference", "cannot be used", words)


def test_bytes_that_are_no_text_are_damage():
    with pytest.raises(Unreadable, match=r"a/b\.csv is damaged"):
        tables.paper_table("a/b.csv", b"\xff\xfe\n")
    with pytest.raises(Unreadable, match="the columns of a table of the study"):
        study.study_table("benchmarks/b.csv", b"a,b\n1,2\n")


def test_a_table_that_vanished_is_a_failure_and_a_new_one_is_not(results):
    (results / "now" / "benchmarks" / "gromov_wasserstein.csv").unlink()
    (wrong,) = [f for f in check(results / "now", str(results / "then")) if not f.passed]
    assert (wrong.group, wrong.sentence) == ("benchmarks / gromov_wasserstein", "vanished, with 18 rows")
    found = check(results / "then", str(results / "now"))
    assert all(f.passed for f in found)
    assert counts(found)["new"] == 18
    assert not [f for f in check(results / "now", str(results / "then"), [Part.TABLES]) if not f.passed]


def test_the_reference_is_a_folder_or_a_commit(results, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=results, check=True, capture_output=True)

    write(results / "now" / "asv" / "machine" / "a b.json", "{}")
    write(results / "now" / "cache" / "quick.csv", "not compared")
    write(results / "now" / "deepemd" / "notes.md", "not compared")
    git("init", "-q")
    git("add", "now")
    git("commit", "-q", "-m", "tables")
    assert committed(results / "now", "HEAD") == on_disk(results / "now")
    assert set(on_disk(results / "now")) == {
        "asv/machine/a b.json",
        "benchmarks/gromov_wasserstein.csv",
        "deepemd/few_shot_digits.csv",
    }
    assert committed(results / "then", "HEAD") == {}, "nothing is committed of it"
    for revision in ("nowhere", "--all", "HEAD:now"):
        refused(lambda revision=revision: committed(results / "now", revision), "cannot read the reference", revision)
    monkeypatch.setenv("PATH", "")
    refused(lambda: committed(results / "now", "HEAD"), "git, which is not installed")


def test_the_worst_comes_first():
    table = committed_tables()["deepemd/few_shot_digits.csv"]
    first, second, third = list(table.rows)[:3]
    now = moved(moved(table, first, -0.4), second, -3.0)
    now = replace(now, rows={k: row for k, row in now.rows.items() if k != third})
    (members,) = grouped(tables.compared(now, table)).values()
    assert [f.kind for f in members[:4]] == ["missing", "worse", "worse", "unchanged"]
    assert [f.passed for f in members[:4]] == [False, False, True, True]
    assert record(members)[0]["severity"] is None, "JSON has no infinity"
    assert set(table.rows[first]) == set(COLUMNS)
