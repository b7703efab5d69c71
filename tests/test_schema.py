"""Results of older schemas are read and brought up to date, of newer ones refused; damaged ones never trusted."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import refused
from test_cli import run  # noqa: F401
from test_faults import in_one_sentence, paper, tables  # noqa: F401
from test_reproductions import fake  # noqa: F401

from reproductions.experiment import Options, reproduce
from reproductions.opening import open_results
from reproductions.report import COLUMNS, read_tables
from reproductions.schema import SCHEMA
from reproductions.storage import Cache
from reproductions.tables import table_text

KEY = "0" * 64


@pytest.fixture
def results(paper, tmp_path):  # noqa: F811
    """The fake paper's results, of today's schema."""
    reproduce("fake", Options(tmp_path / "results"))
    return tmp_path / "results"


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def as_of_schema_1(results, without):
    """Rewrite results as the first schema had them: no numbers, no seals, tables without some columns."""
    for path in (results / "cache" / "rows").iterdir():
        path.write_text(json.dumps(json.loads(path.read_bytes())["value"]))
    for path in (results / "fake").glob("*.csv"):
        pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns=without).to_csv(path, index=False)
    for path in results.rglob("schema.json"):
        path.unlink()


@pytest.mark.parametrize("without", [[], ["tolerance"], ["published_ci", "tolerance", "reason", "seconds", "run"]])
def test_results_of_the_first_schema_are_brought_up_to_date(results, without):
    before = tables(results)
    as_of_schema_1(results, without)
    table = read_tables(results)["fake"]["counts"]
    assert list(table.columns) == COLUMNS
    assert table[without].isna().all().all()
    old = everything(results)
    open_results(results)
    assert json.loads((results / "schema.json").read_text()) == {"schema": SCHEMA}
    assert (results / "fake" / "counts.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    assert (everything(results) == old) is False
    outcome = reproduce("fake", Options(results))
    assert (outcome.measured, outcome.reused, outcome.notes) == (0, 3, [])
    assert tables(results) == before


def test_a_table_of_the_first_schema_keeps_what_only_it_knows(results):
    """A number that this run cannot measure comes from the table alone."""
    path = results / "fake" / "published.csv"
    table = pd.read_csv(path).astype({"measured": float, "n": "Int64", "verdict": object})
    table.loc[0, ["measured", "ci_low", "ci_high", "n", "verdict"]] = [12.0, 11.0, 13.0, 7, "agrees"]
    table.to_csv(path, index=False)
    as_of_schema_1(results, ["tolerance"])
    for _ in range(2):
        reproduce("fake", Options(results))
        now = read_tables(results)["fake"]["published"].set_index("row")
        assert now.loc["r", ["measured", "n", "verdict"]].tolist() == [12.0, 7, "agrees"]


def test_what_cannot_be_read_of_the_first_schema_is_measured_again(results):
    as_of_schema_1(results, [])
    first, second, _ = sorted((results / "cache" / "rows").iterdir())
    first.write_text("{}")
    second.write_text('{"estimate": {"mean"')
    assert reproduce("fake", Options(results)).measured == 2


def test_tensors_of_the_first_schema_are_sealed_and_files_of_weights_left_alone(tmp_path):
    cache, x = Cache(tmp_path / "cache"), torch.arange(5.0)
    path = cache.path("kind", KEY, ".safetensors")
    path.parent.mkdir(parents=True)
    weights, broken = path.with_name("weights.safetensors"), path.with_name("broken.safetensors")
    safetensors.torch.save_file({"x": x}, path)
    safetensors.torch.save_file({"x": x}, weights, {"frozen": "hash"})
    broken.write_bytes(path.read_bytes()[:-1])
    kept, unpacked = weights.read_bytes(), tmp_path / "cache" / "data" / "set" / "a.json"
    unpacked.parent.mkdir(parents=True)
    unpacked.write_text("not ours")
    open_results(tmp_path)
    assert torch.equal(cache.tensors("kind", KEY, lambda: pytest.fail("it was there"))["x"], x)
    assert weights.read_bytes() == kept
    assert not broken.exists()
    assert unpacked.read_text() == "not ours"
    before = everything(tmp_path)
    open_results(tmp_path)
    assert everything(tmp_path) == before


NEWER = "schema 3, and this version knows 2"


@pytest.mark.parametrize("place", ["schema.json", "cache/schema.json"])
@pytest.mark.parametrize(("content", "words"), [('{"schema": 3}', NEWER), ("[]", "damaged"), ("", "damaged")])
def test_results_of_a_newer_schema_are_refused_and_not_touched(results, run, place, content, words):  # noqa: F811
    (results / place).write_text(content)
    before = everything(results)
    in_one_sentence(*run("reproduce")[::2], words)
    assert everything(results) == before


def test_a_table_with_a_column_of_the_future_is_refused_and_not_touched(results, run):  # noqa: F811
    path = results / "fake" / "counts.csv"
    pd.read_csv(path).assign(carbon=1.0).to_csv(path, index=False)
    before = everything(results)
    for command in (("reproduce",), ("report",), ("check", "--against", str(results))):
        in_one_sentence(*run(*command)[::2], "newer schema", "'carbon'", "counts.csv")
    assert everything(results) == before


# ------------------------------------------------------------------------------------------------------ damaged tables


def cut(text):
    return text[: len(text) // 2]


DAMAGE = {
    "half": (cut, "damaged"),
    "no end of the line": (lambda text: text[:-1], "last line is not whole"),
    "nothing": (lambda text: "", "does not begin with the columns"),
    "other text": (lambda text: "broken", "does not begin with the columns"),
    "a cell too few": (lambda text: text.replace(",11.5,", ",", 1), "row 2 has 20 cells, and the header 21"),
    "a word for a number": (lambda text: text.replace(",11.5,", ",eleven,", 1), "'eleven' as measured"),
    "a column too few": (lambda text: text.replace("metric,", "", 1), "lacks the column 'metric'"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_table_is_set_aside_with_a_sentence_and_made_again(results, run, what):  # noqa: F811
    damage, words = DAMAGE[what]
    path, before = results / "fake" / "counts.csv", tables(results)
    path.write_text(damage(path.read_text()))
    bad = path.read_bytes()
    for number in ("", "-2"):
        path.write_bytes(bad)
        outcome = reproduce("fake", Options(results))
        (note,) = outcome.notes
        assert words in note
        assert f"kept as counts.csv.damaged{number}" in note
        assert path.with_name(f"counts.csv.damaged{number}").read_bytes() == bad
        assert path.read_bytes() == before["counts.csv"]


def test_the_command_says_what_was_damaged(results, run):  # noqa: F811
    path = results / "fake" / "counts.csv"
    path.write_text(cut(path.read_text()))
    in_one_sentence(*run("report")[::2], "counts.csv is damaged", "matchmark reproduce fake")
    in_one_sentence(*run("check", "--against", str(results))[::2], "cannot be used", "counts.csv is damaged")
    code, _, err = run("reproduce")
    assert code == 0
    assert "counts.csv.damaged" in err


def test_bytes_that_are_no_text_are_no_table():
    refused(lambda: table_text(b"paper,\xff", "t.csv"), "t.csv is damaged")
    refused(lambda: table_text(b'paper,"', "t.csv"), "t.csv is damaged")


# ------------------------------------------------------------------------------------------------------- damaged cache

ROW = {"estimate": {"mean": 1.0, "low": 0.0, "high": 2.0, "n": 4}, "seconds": 1.0, "run": "r"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"[" * 100_000,
        b"\xff\xfe",
        json.dumps(ROW).encode(),  # nobody vouches for it
        json.dumps({"schema": SCHEMA, "sha256": "0" * 64, "value": ROW}).encode(),
        json.dumps({"schema": SCHEMA, "value": ROW}).encode(),
    ],
)
def test_a_cached_row_that_is_not_as_it_was_written_is_measured_again(results, content):
    entry = min((results / "cache" / "rows").iterdir())
    entry.write_bytes(content)
    assert reproduce("fake", Options(results)).measured == 1


def test_a_cached_row_that_was_edited_or_is_of_another_kind_is_measured_again(results):
    entry = min((results / "cache" / "rows").iterdir())
    edited = json.loads(entry.read_bytes())
    edited["value"]["estimate"]["mean"] += 1
    entry.write_text(json.dumps(edited))
    assert reproduce("fake", Options(results)).measured == 1
    cache = Options(results).cache
    words = ROW | {"estimate": ROW["estimate"] | {"mean": "1"}}
    for value in ({}, [], ROW | {"estimate": {}}, words, ROW | {"run": 1}):
        cache.write_json("rows", entry.stem, value)
        assert cache.read_json("rows", entry.stem) == value
        assert reproduce("fake", Options(results)).measured == 1


def test_what_the_cache_holds_comes_back(tmp_path):
    cache = Cache(tmp_path)
    for value in ([1, 2.5, None], {"a": {"b": [True, "é"]}}, "text", {2: "numbers become names", 10: 0.1}):
        cache.write_json("kind", KEY, value)
        assert cache.read_json("kind", KEY) == json.loads(json.dumps(value))
    with pytest.raises(ValueError, match="not JSON compliant"):
        cache.write_json("kind", KEY, [float("nan")])
    tensors = {"a": torch.randn(3, 5).bfloat16(), "b": torch.arange(7), "": torch.tensor(True)}
    for _ in range(2):
        found = cache.tensors("kind", KEY, lambda: tensors)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], x) for name, x in tensors.items())


def damaged(content):
    half, flipped = content[: len(content) // 2], bytearray(content)
    flipped[-1] ^= 1
    yield from (b"", half, content[:-1], bytes(flipped), b"\xff" * 64, safetensors.torch.save({"x": torch.zeros(5)}))
    yield safetensors.torch.save({})
    yield (2).to_bytes(8, "little") + b"[]"


def test_cached_tensors_that_are_not_as_they_were_written_are_made_again(tmp_path):
    cache, x = Cache(tmp_path), torch.arange(5.0)
    cache.tensors("kind", KEY, lambda: {"x": x})
    path = cache.path("kind", KEY, ".safetensors")
    whole = path.read_bytes()
    for content in damaged(whole):
        path.write_bytes(content)
        assert torch.equal(cache.tensors("kind", KEY, lambda: {"x": x})["x"], x)
        assert path.read_bytes() == whole
    shutil.rmtree(tmp_path)
    assert torch.equal(cache.tensors("kind", KEY, lambda: {"x": x})["x"], x)
