"""The report page without a browser: what is in it, what is left out, and that nothing in a file becomes markup."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from report_tables import HARM, harmful, large, number, small, written

from reproductions import PAPERS
from reproductions.claims import load_paper
from reproductions.report import COLUMNS
from reproductions.report_page import write_report
from reproductions.report_page.page import page

ROOT = Path(__file__).parent.parent
RUN = "20260101T000000-abcdef01"


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_numbers_stand_beside_what_was_published(tmp_path):
    path = write_report(small(tmp_path))
    assert path == tmp_path / "report" / "index.html"
    text = path.read_text()
    tables = data_of(text)["papers"]["deepemd"]
    assert [t["name"] for t in tables] == ["few_shot_digits", "waiting"], "measured tables first"
    rows, strings = tables[0]["rows"], data_of(text)["strings"]
    assert tables[0]["columns"] == ["1-shot", "5-shot"]
    assert [strings[r["row"]] for r in rows] == ["EMD", "pooled", "Ω ↔ ω"]
    assert rows[0]["cells"][1][:3] == ["71.00 ± 1.00", 71.0, "–"]
    assert rows[2]["cells"][0][2] == "60.00 ± 0.50"
    assert rows[2]["cells"][1] is None
    assert "1 tables of published numbers that were not run" in text


def test_it_needs_no_other_file(tmp_path):
    tags = Tags(page(small(tmp_path))).found
    for tag, attributes in tags:
        for name in ("src", "href"):
            address = attributes.get(name) or ""
            outside = address.startswith(("data:", "#")) or (tag == "a" and address.startswith("http"))
            assert not address or outside, (tag, address)
    images = [a for tag, a in tags if tag == "img"]
    assert len(images) == 2
    assert all(a["alt"] and a["width"] == "1400" for a in images)


def test_no_text_of_a_file_becomes_markup(tmp_path):
    results = harmful(tmp_path)
    text = page(results)
    assert HARM not in text
    assert [tag for tag, _ in Tags(text).found].count("script") == 2, "the data and the page's own"
    assert not [a for tag, a in Tags(text).found if "onerror" in a]
    cell = data_of(text)["papers"]["deepemd"][0]["rows"][0]["cells"][0]
    assert data_of(text)["strings"][cell[4]] == HARM, "the text itself is kept"


def test_the_record_of_a_run_is_shown_where_it_is(tmp_path):
    results = small(tmp_path)
    assert data_of(page(results))["runs"] == {}
    (results / "runs").mkdir()
    path = results / "runs" / f"{RUN}.json"
    path.write_text(
        json.dumps(
            {
                "commit": "c0ffee",
                "dirty": False,
                "hardware": {"cpu": "x", "gpus": []},
                "data": {"digits": "0123456789abcdef0"},
            }
        )
    )
    (known,) = data_of(page(results))["runs"].values()
    assert known == {"commit": "c0ffee", "dirty": "no", "hardware": "cpu x", "data": {"digits": "0123456789abcdef"}}
    for damaged in ("{", "[]", '{"data": 1}'):
        path.write_text(damaged)
        assert data_of(page(results))["runs"] == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none(tmp_path, value):
    written(tmp_path, [number("t", "r", "c", measured=value, ci_low=value, ci_high=value)])
    (row,) = data_of(page(tmp_path))["papers"]["deepemd"][0]["rows"]
    assert row["cells"][0][1] is None


def test_tables_of_another_project_and_metrics_of_another_version(tmp_path):
    written(tmp_path, [number("t", "r", "c", metric="beauty", published=3.25)], "somebody")
    (table,) = data_of(page(tmp_path))["papers"]["somebody"]
    assert table["rows"][0]["cells"][0][:3] == ["50", 50.0, "3.25"]


def test_nothing_measured_yet(tmp_path):
    assert "No tables yet" in page(tmp_path)
    assert data_of(page(tmp_path))["papers"] == {}


def test_many_numbers_make_no_giant(tmp_path):
    text = page(large(tmp_path))
    assert len(text) < 3e6
    assert sum(len(r["cells"]) for r in data_of(text)["papers"]["deepemd"][0]["rows"]) == 10_000


def test_solvers_and_certificates_of_this_project(tmp_path):
    """From the committed results: every list has its rows, and every certificate's bound is at most its value."""
    shutil.copytree(
        ROOT / "results", tmp_path / "results", ignore=shutil.ignore_patterns("cache", "runs", "report", "*.png")
    )
    lists = data_of(page(tmp_path / "results"))["lists"]
    assert {"sinkhorn", "emd", "quadratic_assignment", "asv", "certificates"} <= set(lists)
    assert all(found["rows"] and len(found["columns"]) == len(found["rows"][0]) for found in lists.values())
    assert len(lists["certificates"]["rows"]) > 100
    for problem, _, value, bound, *_ in lists["certificates"]["rows"]:
        if isinstance(value, list):
            assert bound[1] <= value[1] + 2e-6 * max(1, abs(value[1])), problem


def test_lists_that_are_not_there_or_damaged(tmp_path):
    results = small(tmp_path)
    (results / "benchmarks").mkdir()
    (results / "benchmarks" / "emd.csv").write_text("a,b\n1,2\n")
    (results / "asv" / "m").mkdir(parents=True)
    (results / "asv" / "m" / "x.json").write_text("{")
    (results / "asv" / "benchmarks.json").write_text("{}")
    (results / "deepemd" / "few_shot_digits.png").write_bytes(b"no picture")
    text = page(results)
    assert data_of(text)["lists"] == {}
    assert 'id="solvers"' not in text


def test_all_columns_are_known():
    assert set(pd.DataFrame([number("t", "r", "c")]).columns) == set(COLUMNS)


@pytest.mark.parametrize("name", PAPERS)
def test_every_committed_table_has_a_title_of_its_own(name):
    paper, tables = load_paper(name), sorted((ROOT / "results" / name).glob("*.csv"))
    known = paper.titles.keys() | {t.id for t in paper.table}
    assert tables
    assert {t.stem for t in tables} <= known
    titles = [paper.title_of(t.stem) for t in tables]
    assert len(set(titles)) == len(titles)
    for table, title in zip(tables, titles, strict=True):
        assert table.with_suffix(".md").read_text().startswith(f"# {title}\n"), table
