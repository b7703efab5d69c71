"""The gate on results of asv: planted in the committed one, which is read by asv itself."""

from __future__ import annotations

import json
import math
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import refused, write

import reproductions
from reproductions.gate import asv_results
from reproductions.gate.check import Part, check
from reproductions.gate.findings import Finding, counts

asv = pytest.importorskip("asv", reason="asv is an extra: pip install 'matchmark[bench]'")
RESULTS = Path(reproductions.__file__).parents[1] / "results" / "asv"
TIME, MEMORY, GAP = "transport.Sinkhorn.time_solve", "transport.SinkhornMemory.peakmem_solve", "emd.EMD.track_gap"
Result = dict[str, Any]


@cache
def committed_text() -> str:
    """The committed result that is newest."""
    paths = [p for p in RESULTS.glob("*/*.json") if p.name != "machine.json"]
    assert paths
    return max(paths, key=lambda p: asv_results._started(p.name, p.read_bytes())).read_text()


@pytest.fixture
def small() -> Result:
    """A result of four benchmarks with two numbers each, the second one skipped in one of them."""
    columns = ["result", "params", "version", "started_at", "duration", "stats_ci_99_a", "stats_ci_99_b", "stats_q_25",
               "stats_q_75", "stats_number", "stats_repeat", "samples", "profile"]  # fmt: skip
    names, times = [["'a'", "'b'"]], [0.01 + 1e-5 * k for k in range(10)]
    statistics = [[0.01] * 2, [0.0101] * 2, [0.01] * 2, [0.0101] * 2, [1] * 2, [10] * 2]
    return {
        "commit_hash": "0123456789abcdef0123456789abcdef01234567",
        "env_name": "linked-py3.11",
        "date": 1,
        "params": {"machine": "m", "cpu": "c", "num_cpu": "2", "arch": "x", "os": "L", "ram": "1", "python": "3.11"},
        "python": "3.11",
        "requirements": {},
        "env_vars": {},
        "result_columns": columns,
        "results": {
            TIME: [[0.01005, 0.01005], names, "1", 5, 1.0, *statistics, [times, times]],
            MEMORY: [[8e8, 7e8], names, "1", 6, 1.0],
            GAP: [[1e-9, 0.05], names, "1", 7, 1.0],
            "emd.EMD.track_marginal_error": [[2e-6, math.nan], names, "1", 7, 1.0],
        },
        "durations": {},
        "version": 2,
    }


def found(now: Result, reference: Result) -> list[Finding]:
    loaded = [asv_results.load("result.json", json.dumps(result).encode()) for result in (now, reference)]
    return asv_results.compared(*loaded)


def failed(now: Result, reference: Result) -> list[str]:
    return [f.kind for f in found(now, reference) if not f.passed]


def with_value(result: Result, name: str, value: float | None, index: int = 0) -> Result:
    changed = deepcopy(result)
    changed["results"][name][0][index] = value
    return changed


def slower(result: Result, factor: float) -> Result:
    """Every sample of the time, and its statistics, so many times as long."""
    changed = deepcopy(result)
    row = changed["results"][TIME]
    row[0] = [factor * x for x in row[0]]
    row[5:9] = [[factor * x for x in column] for column in row[5:9]]
    row[11] = [[factor * x for x in samples] for samples in row[11]]
    return changed


def test_the_committed_result_is_read_and_holds_against_itself():
    result = json.loads(committed_text())
    same = found(result, result)
    assert counts(same)["unchanged"] > 20
    assert all(f.passed for f in same)
    times = [name for name in result["results"] if ".time_" in name]
    assert times
    for name in times:
        changed = deepcopy(result)
        columns = changed["result_columns"]
        row = dict(zip(columns, changed["results"][name], strict=False))
        for column in ("result", "stats_ci_99_a", "stats_ci_99_b", "stats_q_25", "stats_q_75"):
            row[column] = [x and 4 * x for x in row[column]]
        row["samples"] = [x and [4 * y for y in x] for x in row["samples"]]
        changed["results"][name] = [row[c] for c in columns if c in row]
        counted = sum(isinstance(x, float) and math.isfinite(x) for x in row["result"])
        assert failed(changed, result) == ["worse"] * counted > []


def test_every_committed_error_that_grows_is_caught():
    result = json.loads(committed_text())
    tracked = [name for name in result["results"] if ".track_" in name]
    assert tracked
    for name in tracked:
        for k, x in enumerate(result["results"][name][0]):
            if x is not None and math.isfinite(x) and k < 3:
                assert failed(with_value(result, name, x + 0.02 * max(1, x), k), result) == ["worse"]
                assert failed(with_value(result, name, math.nan, k), result) == ["missing"]
                assert failed(with_value(result, name, None, k), result) == ["missing"]


@pytest.mark.parametrize(
    ("name", "value", "kinds"),
    [
        (GAP, 0.0, []),
        (GAP, 1.9e-9, []),
        (GAP, 3e-9, ["worse"]),
        (GAP, math.inf, ["not finite"]),
        (GAP, math.nan, ["missing"]),
        (GAP, None, ["missing"]),
        ("emd.EMD.track_marginal_error", 3.9e-6, []),
        ("emd.EMD.track_marginal_error", 4.1e-6, ["worse"]),
        (MEMORY, 8.7e8, []),
        (MEMORY, 9.0e8, ["worse"]),
        (MEMORY, 1e8, []),
        (TIME, None, ["missing"]),
        (TIME, math.nan, ["missing"]),
        (TIME, math.inf, ["not finite"]),
    ],
)
def test_a_planted_number_is_judged_by_its_kind(small, name, value, kinds):
    assert failed(with_value(small, name, value), small) == kinds


def test_the_second_of_two_numbers_is_compared_too(small):
    assert failed(with_value(small, GAP, 0.0502, 1), small) == []
    assert failed(with_value(small, GAP, 0.0512, 1), small) == ["worse"]


def test_what_is_skipped_in_both_is_not_counted_and_what_fails_is(small):
    name = "emd.EMD.track_marginal_error"
    assert counts(found(small, small)) == {"unchanged": 7, "failed": 0}
    assert failed(with_value(small, name, None, 1), small) == ["missing"]
    (new,) = [f for f in found(with_value(small, name, 1e-6, 1), small) if f.kind != "unchanged"]
    assert (new.kind, new.passed) == ("new", True)
    assert failed(small, with_value(small, name, None)) == [], "it failed once, and does no more"


def test_times_are_judged_by_their_samples(small):
    assert failed(slower(small, 1.6), small) == ["worse", "worse"]
    assert failed(slower(small, 1.4), small) == []
    assert failed(slower(small, 0.3), small) == []
    assert counts(found(slower(small, 0.3), small))["better"] == 2
    once = with_value(small, TIME, 0.02)
    assert failed(once, small) == [], "a median alone, against samples that did not move, is noise"
    for result in (once, small):
        result["results"][TIME] = result["results"][TIME][:5]
    assert failed(once, small) == ["worse"], "without samples the factor alone decides"


@pytest.mark.parametrize("where", ["cpu", "machine", "num_cpu"])
def test_times_of_another_machine_are_not_compared_and_this_is_said(small, where):
    other = slower(small, 10.0)
    other["params"][where] = "another"
    (said,) = [f for f in found(other, small) if f.kind == "not compared"]
    assert said.passed
    assert said.sentence.startswith(f"2 times are not compared: {where} another is not")
    assert failed(other, small) == []
    assert failed(with_value(other, GAP, 0.1), small) == ["worse"]
    assert failed(with_value(other, TIME, None), small) == ["missing"]


def test_a_benchmark_that_vanished_or_is_new_or_another(small):
    without = deepcopy(small)
    del without["results"][GAP]
    assert failed(without, small) == ["missing", "missing"]
    assert failed(small, without) == []
    assert counts(found(small, without))["new"] == 2
    changed = with_value(small, GAP, 0.9)
    changed["results"][GAP][2] = "2"
    assert failed(changed, small) == [], "another version is another benchmark"
    fewer = deepcopy(small)
    fewer["results"][GAP][:2] = [[1e-9], [["'a'"]]]
    assert failed(fewer, small) == ["missing"]
    nothing = deepcopy(small)
    nothing["results"][GAP][0] = None
    assert failed(nothing, small) == ["missing", "missing"], "asv keeps no list where all parameters failed"


# ---------------------------------------------------------------------------------------------------- through the gate


def folder(path: Path, **results: Result) -> Path:
    for name, result in results.items():
        write(path / "asv" / result["params"]["machine"] / f"{name}-linked-py3.11.json", json.dumps(result))
        write(path / "asv" / result["params"]["machine"] / "machine.json", "{}")
    path.mkdir(exist_ok=True)
    return path


def later(result: Result) -> Result:
    changed = deepcopy(result)
    for row in changed["results"].values():
        row[3] += 1000
    return changed


def test_the_newest_result_is_compared_or_the_one_named(small, tmp_path):
    worse = later(with_value(small, GAP, 0.5))
    then = folder(tmp_path / "then", a0000000=small)
    now = folder(tmp_path / "now", a0000000=small, b0000000=worse)

    def kinds(**chosen):
        return [f.kind for f in check(now, str(then), [Part.ASV], **chosen) if not f.passed or f.kind == "not compared"]

    assert kinds() == ["worse"]
    assert kinds(asv="a000") == ["not compared"]
    assert kinds(asv="b0000000123456789") == ["worse"]
    assert kinds(asv=str(now / "asv" / "m" / "b0000000-linked-py3.11.json")) == ["worse"]
    refused(lambda: kinds(asv="c0000000"), "no result of asv for the commit c0000000")
    refused(lambda: kinds(asv="nothing"), "--asv takes a file")
    refused(lambda: kinds(factor=math.nan), "factor", "nan")
    assert [f.passed for f in check(tmp_path / "then", str(tmp_path / "now"), [Part.ASV]) if f.kind == "worse"] == []


def test_the_reference_of_the_same_machine_is_preferred(small, tmp_path):
    other = later(small)
    other["params"]["machine"] = "z"
    then = folder(tmp_path / "then", a0000000=small, b0000000=other)
    now = folder(tmp_path / "now", c0000000=slower(later(later(small)), 2.0))
    assert [f.kind for f in check(now, str(then), [Part.ASV]) if not f.passed] == ["worse", "worse"]


def test_results_that_vanished_or_are_damaged(small, tmp_path):
    then, now = folder(tmp_path / "then", a0000000=small), folder(tmp_path / "now")
    (vanished,) = check(now, str(then), [Part.ASV])
    assert (vanished.kind, vanished.passed) == ("missing", False)
    (new,) = check(then, str(now), [Part.ASV])
    assert (new.kind, new.passed) == ("new", True)
    text = json.dumps(small)
    no_number = text.replace("800000000.0", '"x"')
    half, no_list = text[:-100], text.replace("[[800", "[7, [800", 1)
    for damage in (
        half,
        "{}",
        "[]",
        text.replace("result_columns", "columns"),
        no_list,
        no_number,
    ):
        write(now / "asv" / "m" / "b0000000-linked-py3.11.json", damage)
        (wrong,) = check(now, str(then), [Part.ASV])
        assert (wrong.kind, wrong.passed) == ("unreadable", False)
        assert "b0000000-linked-py3.11.json is no whole result of asv" in wrong.sentence
        refused(lambda: check(then, str(now), [Part.ASV]), "the reference", "cannot be used")


def test_without_asv_one_sentence_says_what_to_install(small, tmp_path, monkeypatch):
    then = folder(tmp_path / "then", a0000000=small)
    now = folder(tmp_path / "now", b0000000=later(small))
    monkeypatch.setitem(sys.modules, "asv.results", None)
    refused(lambda: check(now, str(then)), "pip install 'matchmark[bench]'")
    assert [f.kind for f in check(then, str(then))] == ["not compared"], "nothing is read where nothing is new"


def test_outside_a_checkout_one_sentence_says_so(small, tmp_path, monkeypatch):
    monkeypatch.setattr(asv_results, "CONFIGURATION", tmp_path / "asv.conf.json")
    refused(lambda: found(small, later(small)), "in a checkout of the project")
