"""The pipeline: claims, statistics, resumption, tables."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

import reproductions
from reproductions import UserError, experiment, provenance
from reproductions.claims import Paper, load_paper
from reproductions.datasets import DATASETS, digits, load_digits
from reproductions.experiment import Options, load_experiment, reproduce
from reproductions.metrics import METRICS
from reproductions.report import COLUMNS, figure, read_tables
from reproductions.statistics import Estimate, clopper_pearson, mean_interval, verdict
from reproductions.storage import content_hash, write_atomically

ROOT = Path(reproductions.__file__).parents[1]

FAKE = '''
"""A paper of three rows that count how often they are measured."""
import os, sys, time
from pathlib import Path
from reproductions.experiment import Row

def rows(options):
    return [
        Row("counts", f"row {k}", "column", "few_shot_accuracy", "none", {"k": k}, "embedded", "numbers", "0" * 64)
        for k in range(3)
    ]

def prepare(options, advance):
    advance("nothing", 1.0)

def measure(row, options, advance):
    log = options.results / "measured.log"
    with open(log, "a") as file:
        file.write(f"{row.settings['k']}\\n")
    while row.settings["k"] == 1 and os.environ.get("HANG"):
        time.sleep(0.1)
    advance(1.0)
    return [10.0 * row.settings["k"] + j for j in range(4)]
'''
CLAIMS = """
name = "fake"
title = "A paper of numbers"
authors = "N. N."
link = "https://example.org"
needs = "numbers nobody has"
options = "--data DIR --train"
not_run = { "quoted for comparison" = ["s"] }
[[table]]
id = "published"
title = "numbers"
version = "v1"
metric = "few_shot_accuracy"
unit = "percent"
direction = "higher"
data = "other numbers"
protocol = "counting"
source = "nowhere"
tolerance = 1.0
tolerance_reason = "a guess"
cells = [{ row = "r", column = "c", value = 12.5, interval = 0.5 }, { row = "s", column = "c", value = 1 }]
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The fake paper as a sub-package of reproductions, importable here and in child processes."""
    package = tmp_path / "package" / "reproductions" / "fake"
    package.mkdir(parents=True)
    (package / "experiment.py").write_text(FAKE)
    (package / "__init__.py").touch()
    (package / "claims.toml").write_text(CLAIMS)
    monkeypatch.setattr(reproductions, "__path__", [*reproductions.__path__, str(package.parent)])
    monkeypatch.setattr(experiment, "PAPERS", ("fake",))
    paper = Paper.model_validate(__import__("tomllib").loads(CLAIMS))
    monkeypatch.setattr(experiment, "load_paper", lambda name: paper)
    yield package.parent
    for name in [m for m in sys.modules if m.startswith("reproductions.fake")]:
        del sys.modules[name]


CHILD = """
import sys, tomllib
from pathlib import Path
import reproductions
package, results, jobs = sys.argv[1:]
reproductions.__path__.append(package)
from reproductions import experiment
from reproductions.claims import Paper
experiment.PAPERS = ("fake",)
claims = tomllib.loads(Path(package, "fake", "claims.toml").read_text())
experiment.load_paper = lambda name: Paper.model_validate(claims)
print(experiment.reproduce("fake", experiment.Options(Path(results), jobs=int(jobs))).measured)
"""


def numbers(results: Path) -> pd.DataFrame:
    return pd.read_csv(results / "fake" / "counts.csv").drop(columns=["seconds", "run"])


def test_a_run_killed_in_a_row_resumes_without_repeating_finished_rows(fake, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    reproduce("fake", Options(undisturbed))
    command = [sys.executable, "-c", CHILD, str(fake), str(killed), "1"]
    child = subprocess.Popen(command, env={**os.environ, "HANG": "1"}, cwd=ROOT)
    log = killed / "measured.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text() == "0\n1\n"):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    half = pd.read_csv(killed / "fake" / "counts.csv")
    assert half["measured"].notna().tolist() == [True, False, False]
    assert half["verdict"].tolist() == ["not comparable", "not run", "not run"]
    outcome = reproduce("fake", Options(killed))
    assert (outcome.reused, outcome.measured) == (1, 2)
    assert log.read_text() == "0\n1\n1\n2\n"
    pd.testing.assert_frame_equal(numbers(killed), numbers(undisturbed))
    for name in ("counts.md", "published.md"):
        assert (killed / "fake" / name).read_bytes() == (undisturbed / "fake" / name).read_bytes()


def test_a_second_run_measures_nothing(fake, tmp_path):
    assert reproduce("fake", Options(tmp_path)).measured == 3
    before = {p: p.read_bytes() for p in (tmp_path / "fake").iterdir()}
    again = reproduce("fake", Options(tmp_path))
    assert (again.reused, again.measured) == (3, 0)
    assert {p: p.read_bytes() for p in (tmp_path / "fake").iterdir()} == before
    assert reproduce("fake", replace(Options(tmp_path), seed=1)).measured == 3, "another seed is another number"


def test_a_damaged_cache_entry_is_measured_again(fake, tmp_path):
    reproduce("fake", Options(tmp_path))
    entries = sorted((tmp_path / "cache" / "rows").iterdir())
    entries[0].write_text('{"estimate": {"mean"')
    assert reproduce("fake", Options(tmp_path)).measured == 1


def test_rows_in_parallel_are_the_rows_one_by_one(fake, tmp_path):
    reproduce("fake", Options(tmp_path / "one"))
    command = [sys.executable, "-c", CHILD, str(fake), str(tmp_path / "two"), "2"]
    path = os.pathsep.join([str(fake.parent), os.environ.get("PYTHONPATH", "")])
    sitecustomize = fake.parent / "sitecustomize.py"
    sitecustomize.write_text(
        textwrap.dedent(f"""
        import reproductions
        reproductions.__path__.append({str(fake)!r})
        reproductions.PAPERS = ("fake",)
        """)
    )
    child = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=child, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "3", done.stderr
    pd.testing.assert_frame_equal(numbers(tmp_path / "one"), numbers(tmp_path / "two"))


def test_networks_are_trained_before_the_rows_are_listed(fake, tmp_path):
    path = fake / "fake" / "experiment.py"
    path.write_text(
        path.read_text().replace("range(3)", "range(len(TRAINED))")
        + "\nTRAINED = []\n\ndef train(options, advance):\n    TRAINED.append(advance('training', 1.0))\n"
    )
    assert reproduce("fake", Options(tmp_path)).measured == 0
    assert reproduce("fake", Options(tmp_path, train=True)).measured == 1
    assert reproduce("fake", Options(tmp_path)).reused == 1


NO_NUMBER = """
def measure(row, options, advance, measured=measure):
    found = measured(row, options, advance)
    if row.settings["k"] == 1:
        raise NotMeasured("the solver gave no bound in its time")
    return found
"""


def test_a_row_without_a_number_stands_as_not_run_and_is_not_tried_again(fake, tmp_path):
    reproduce("fake", Options(tmp_path))
    path = fake / "fake" / "experiment.py"
    path.write_text(path.read_text().replace("import Row", "import NotMeasured, Row") + NO_NUMBER)
    del sys.modules["reproductions.fake.experiment"]
    for entry in (tmp_path / "cache" / "rows").iterdir():
        entry.unlink()
    for measured, reused in ((3, 0), (0, 3)):
        outcome = reproduce("fake", Options(tmp_path))
        assert (outcome.measured, outcome.reused) == (measured, reused)
        table = numbers(tmp_path).set_index("row")
        assert table["measured"].isna().to_dict() == {"row 0": False, "row 1": True, "row 2": False}, (
            "what was measured earlier does not stand in for it"
        )
        assert table.loc["row 1", ["verdict", "reason"]].tolist() == [
            "not run",
            "the solver gave no bound in its time",
        ]
    assert (tmp_path / "measured.log").read_text() == "0\n1\n2\n" * 2
    (_, path) = sorted((tmp_path / "runs").iterdir(), key=lambda p: p.stat().st_mtime_ns)
    row = json.loads(path.read_text())["rows"][1]
    assert (row["row"], row["samples"], row["estimate"]) == ("row 1", [], None)
    assert row["reason"] == "the solver gave no bound in its time"


def test_two_runs_do_not_write_one_folder(fake, tmp_path):
    from filelock import FileLock

    (tmp_path / "cache").mkdir()
    with (
        FileLock(tmp_path / "cache" / "fake.lock"),
        pytest.raises(UserError, match="another run is writing the results of fake"),
    ):
        reproduce("fake", Options(tmp_path))


def test_the_run_record_says_what_a_number_depends_on(fake, tmp_path):
    reproduce("fake", Options(tmp_path))
    (path,) = (tmp_path / "runs").iterdir()
    record = json.loads(path.read_text())
    assert record["finished"] is not None
    assert set(record) >= {
        "commit",
        "dirty",
        "hardware",
        "versions",
        "threads",
        "tf32",
        "default_dtype",
        "seed",
        "data",
    }
    assert record["data"] == {"numbers": "0" * 64}
    assert len(record["rows"]) == 3
    assert record["rows"][0]["samples"] == [0.0, 1.0, 2.0, 3.0]
    assert set(numbers(tmp_path).columns) == set(COLUMNS) - {"seconds", "run"}
    assert pd.read_csv(tmp_path / "fake" / "counts.csv")["run"].unique().tolist() == [path.stem]
    assert provenance.library_versions()["torch"]


def test_the_tables_stand_as_designed(fake, tmp_path):
    reproduce("fake", Options(tmp_path))
    tables = read_tables(tmp_path)["fake"]
    assert list(tables) == ["counts", "published"]
    assert list(tables["counts"].columns) == COLUMNS
    assert (tables["published"]["verdict"] == "not run").all()
    why = "needs numbers nobody has: matchmark reproduce fake --data DIR --train"
    assert tables["published"].set_index("row")["reason"].to_dict() == {"r": why, "s": "quoted for comparison"}
    assert (tmp_path / "fake" / "counts.png").stat().st_size > 5000
    assert not (tmp_path / "fake" / "published.png").exists()
    text = (tmp_path / "fake" / "published.md").read_text()
    assert "12.50 ± 0.50" in text
    assert "nowhere" in text


def test_what_was_measured_on_data_of_the_user_stays(fake, tmp_path):
    """An embedded run neither drops it nor says "not run" in its place; a run with the data replaces it."""
    reproduce("fake", Options(tmp_path))
    path = tmp_path / "fake" / "published.csv"
    table = pd.read_csv(path).astype({"measured": float, "n": "Int64", "run": object, "verdict": object})
    table.loc[0, ["measured", "ci_low", "ci_high", "n", "verdict", "run"]] = [12.0, 11.0, 13.0, 7, "agrees", "then"]
    extra = table.iloc[[0]].assign(row="another backbone", published=None, published_ci=None, verdict="not comparable")
    pd.concat([table, extra]).to_csv(path, index=False)
    for _ in range(2):
        reproduce("fake", Options(tmp_path))
        now = pd.read_csv(path).set_index("row")
        assert now["verdict"].to_dict() == {"r": "agrees", "another backbone": "not comparable", "s": "not run"}
        assert now.loc["r", "measured"] == 12
        assert (path.with_suffix(".png")).exists()
        assert "12.00 ± 1.00" in path.with_suffix(".md").read_text()
        assert path.with_suffix(".md").read_text().count("nowhere") == 1
        assert numbers(tmp_path)["measured"].tolist() == [1.5, 11.5, 21.5]
    path.write_text("broken")
    reproduce("fake", Options(tmp_path))
    assert set(pd.read_csv(path)["verdict"]) == {"not run"}


def test_what_was_measured_with_software_that_is_not_here_stays(fake, tmp_path, monkeypatch):
    module = load_experiment("fake")
    rows = module.rows(Options(tmp_path))
    reproduce("fake", Options(tmp_path))
    lacking = [replace(r, missing="needs a solver: pip install it") if r.row == "row 1" else r for r in rows]
    monkeypatch.setattr(module, "rows", lambda options: lacking)
    for entry in (tmp_path / "cache" / "rows").iterdir():
        entry.unlink()
    reproduce("fake", Options(tmp_path))
    assert numbers(tmp_path).set_index("row").loc["row 1", "measured"] == pytest.approx(11.5)
    (tmp_path / "fake" / "counts.csv").unlink()
    reproduce("fake", Options(tmp_path))
    table = numbers(tmp_path).set_index("row")
    assert table.loc["row 1", "verdict"] == "not run"
    assert table.loc["row 1", "reason"] == "needs a solver: pip install it"
    assert table.loc["row 2", "measured"] == pytest.approx(21.5)


def test_a_table_of_many_columns_is_drawn_as_a_heat_map():
    wide = pd.DataFrame(
        [
            {"row": r, "column": f"PCK, class {c}", "metric": "pck", "measured": 10.0 * c + r, "data": "d", "tier": "t"}
            for r in range(2)
            for c in range(12)
        ]
    )
    image = Image.open(io.BytesIO(figure("wide", wide)))
    assert image.width < 2000


def test_names_that_look_like_numbers_stay_names(tmp_path):
    (tmp_path / "paper").mkdir()
    row = dict.fromkeys(COLUMNS, "") | {"paper": "paper", "table": "t", "row": "1.0", "column": "0.50", "measured": 2}
    pd.DataFrame([row]).to_csv(tmp_path / "paper" / "t.csv", index=False)
    table = read_tables(tmp_path)["paper"]["t"]
    assert table[["row", "column"]].to_numpy().tolist() == [["1.0", "0.50"]]


# ------------------------------------------------------------------------------------------------------------- claims


@pytest.mark.parametrize("name", reproductions.PAPERS)
def test_every_claim_names_its_version_protocol_source_and_a_known_metric(name):
    paper = load_paper(name)
    assert paper.claims
    for claim in paper.claims:
        metric = METRICS[claim.metric]
        assert (claim.unit, claim.direction) == (metric.unit, metric.direction)
        assert min(map(len, (claim.version, claim.protocol, claim.source, claim.tolerance_reason))) > 5
        assert math.isfinite(claim.value)
        assert claim.tolerance > 0
    rows = load_experiment(name).rows(Options(Path("unused")))
    assert all(row.metric in METRICS for row in rows)
    assert (ROOT / "reproductions" / name / "protocol.md").exists()


def test_claims_that_break_the_schema_are_refused(tmp_path, monkeypatch):
    import reproductions.claims as module

    monkeypatch.setattr(module, "__file__", str(tmp_path / "claims.py"))
    (tmp_path / "bad").mkdir()
    for text, words in (
        (CLAIMS.replace('version = "v1"\n', ""), "version"),
        (CLAIMS + '\n[[table]]\nid = "x"', "title"),
        (CLAIMS.replace('row = "s"', 'row = "r"'), "claims these cells twice"),
        (CLAIMS.replace('["s"]', '["t"]'), "does not claim that they are not run: .'t'"),
        ("not toml", "not valid"),
    ):
        (tmp_path / "bad" / "claims.toml").write_text(text)
        load_paper.cache_clear()
        with pytest.raises(ValueError, match=words):
            load_paper("bad")
    load_paper.cache_clear()


# --------------------------------------------------------------------------------------------------------- statistics


def test_verdicts():
    claim = load_paper("deepemd").claim("mini_imagenet", "DeepEMD (5x5)", "5-way 1-shot")
    near = Estimate(65.5, 65.2, 65.8, 5000)
    assert verdict(claim, near, "miniImageNet")[0] == "agrees"
    assert verdict(claim, Estimate(60.0, 59.7, 60.3, 5000), "miniImageNet")[0] == "differs"
    assert verdict(claim, near, "miniImageNet", differs="another encoder") == ("not comparable", "another encoder")
    assert verdict(claim, Estimate(65.5, 60.0, 71.0, 20), "miniImageNet")[0] == "inconclusive"
    assert verdict(claim, near, "digits") == (
        "not comparable",
        "measured on digits, published for miniImageNet (DeepEMD (5x5))",
    )
    assert verdict(None, near, "digits")[0] == "not comparable"
    assert verdict(claim, None, "digits", "why") == ("not run", "why")


def test_intervals():
    samples = np.random.default_rng(0).normal(70, 10, 600)
    interval = mean_interval(samples)
    assert interval.half_width == pytest.approx(1.96 * samples.std() / np.sqrt(600))
    assert interval.n == 600
    for bad in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite samples"):
            mean_interval(bad)


@pytest.mark.parametrize(("correct", "n"), [(0, 7), (7, 7), (1, 1), (3, 10), (617, 1000)])
def test_a_share_has_the_exact_binomial_interval(correct, n):
    found = clopper_pearson(correct, n)
    exact = stats.binomtest(correct, n).proportion_ci(0.95, "exact")
    assert (found.mean, found.n) == (pytest.approx(100 * correct / n), n)
    assert (found.low, found.high) == pytest.approx((100 * exact.low, 100 * exact.high), abs=1e-9)


def test_a_share_of_nothing_or_beyond_all_is_refused():
    for correct, n in ((0, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match=f"0 ≤ correct ≤ n and n ≥ 1, not {correct} of {n}"):
            clopper_pearson(correct, n)


# -------------------------------------------------------------------------------------------------------------- files


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(handle):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_hashes_depend_on_dtype_shape_order_and_content():
    x = np.arange(6.0)
    assert content_hash(x) == content_hash(x.copy())
    others = [x.astype(np.float32), x.reshape(2, 3), x[::-1], x + 1e-12]
    assert len({content_hash(o) for o in [x, *others]}) == 5
    assert content_hash("ab", "c") != content_hash("a", "bc")


def test_data_sets_are_checked_by_their_hash(monkeypatch):
    for name, load in DATASETS.items():
        d = load()
        assert d.name == name
        assert d.images.dtype == np.float32
        assert len(d.images) == len(d.labels)
        assert len(d.classes) == len(np.unique(d.labels))
        assert len(d.sha256) == 64
    images, labels = load_digits().split((7, 2))
    assert sorted(labels.unique().tolist()) == [0, 1]
    assert len(images) == (load_digits().labels == 7).sum() + (load_digits().labels == 2).sum()
    monkeypatch.setattr(digits, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="is expected"):
        load_digits()
