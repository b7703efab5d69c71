"""Rows on a Dask cluster: the table of one process, whatever becomes of a worker; one sentence where there is none."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from conftest import refused
from test_reproductions import CLAIMS, numbers

import reproductions
from reproductions import cli, experiment, parallel
from reproductions.claims import Paper
from reproductions.experiment import Options, Row, reproduce
from reproductions.parallel import in_parallel

ROOT = Path(reproductions.__file__).parents[1]
distributed = pytest.importorskip("distributed")

PAPER = '''
"""Four outcomes with two numbers each, which log the process that measures them."""
import os, time
from reproductions.experiment import NotMeasured, Row

def rows(options):
    return [
        Row(table, f"row {k}", table, "few_shot_accuracy", "none", {"k": k}, "embedded", "numbers", "0" * 64)
        for table in ("counts", "bounds")
        for k in range(4)
    ]

def prepare(options, advance):
    advance("nothing", 1.0)

def measure(row, options, advance):
    with open(options.results / "measured.log", "a") as file:
        file.write(f"{row.settings['k']} {row.table} {os.getpid()}\\n")
    if row.settings["k"] == 3 and (options.results / "slow").exists():
        (options.results / "slow").unlink()
        time.sleep(60)
    if row.settings["k"] == 2 and row.table == "bounds":
        raise NotMeasured("no bound was found")
    return [10.0 * row.settings["k"] + len(row.table) + j for j in range(4)]
'''


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """A paper that this process knows, and that each knows which it starts."""
    folder = tmp_path_factory.mktemp("package")
    package = folder / "reproductions" / "fake"
    package.mkdir(parents=True)
    (package / "experiment.py").write_text(PAPER)
    (package / "__init__.py").touch()
    (folder / "sitecustomize.py").write_text(
        f"import reproductions\nreproductions.__path__.append({str(package.parent)!r})\n"
        'reproductions.PAPERS = ("fake",)\n'
    )
    published = Paper.model_validate(tomllib.loads(CLAIMS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.setattr(reproductions, "__path__", [*reproductions.__path__, str(package.parent)])
        patch.setattr(experiment, "PAPERS", ("fake",))
        patch.setattr(experiment, "load_paper", lambda name: published)
        yield
    for name in [m for m in sys.modules if m.startswith("reproductions.fake")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def scheduler(paper):
    """The address of a cluster of two processes."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs="CRITICAL"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def alone(paper, tmp_path_factory):
    """The table of one process."""
    results = tmp_path_factory.mktemp("alone")
    assert reproduce("fake", Options(results)).measured == 8
    return numbers(results)


@pytest.mark.parametrize("way", ["processes", "cluster"])
def test_a_row_without_a_number_is_so_wherever_it_is_measured(way, request, alone, tmp_path):
    chosen = {"jobs": 2} if way == "processes" else {"scheduler": request.getfixturevalue("scheduler")}
    for measured in (8, 0):
        assert reproduce("fake", Options(tmp_path, **chosen)).measured == measured
        bounds = pd.read_csv(tmp_path / "fake" / "bounds.csv").set_index("row")
        assert bounds["measured"].isna().to_dict() == {f"row {k}": k == 2 for k in range(4)}
        assert bounds.loc["row 2", ["verdict", "reason"]].tolist() == ["not run", "no bound was found"]
        assert isinstance(bounds.loc["row 2", "run"], str)
    pd.testing.assert_frame_equal(numbers(tmp_path), alone)


def measurements(results: Path) -> pd.DataFrame:
    return pd.read_csv(results / "measured.log", sep=" ", names=["k", "table", "process"])


def test_a_cluster_makes_the_table_of_one_process(scheduler, alone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the workers' folder is another
    results = Path("results")
    results.mkdir()
    outcome = reproduce("fake", Options(results, scheduler=scheduler))
    assert (outcome.measured, outcome.reused) == (8, 0)
    pd.testing.assert_frame_equal(numbers(results), alone)
    log = measurements(results)
    assert len(log) == 8
    assert os.getpid() not in set(log["process"])
    assert (log.groupby("k")["process"].nunique() == 1).all(), "numbers of one outcome are measured in one process"
    assert reproduce("fake", Options(results)).reused == 8


def test_a_worker_killed_in_the_middle_loses_nothing(scheduler, alone, tmp_path):
    slow, finished = tmp_path / "slow", threading.Event()
    slow.touch()

    def kill() -> None:
        stored = tmp_path / "cache" / "rows"
        while (slow.exists() or len(list(stored.glob("*.json"))) < 6) and not finished.wait(0.02):
            pass
        log = measurements(tmp_path)
        process = int(log.loc[log["k"] == 3, "process"].iloc[0])
        if process != os.getpid():
            os.kill(process, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    start = time.monotonic()
    try:
        outcome = reproduce("fake", Options(tmp_path, scheduler=scheduler))
    finally:
        finished.set()
        killer.join()
    assert time.monotonic() - start < 50, "the row that slept was waited for"
    assert outcome.measured == 8
    pd.testing.assert_frame_equal(numbers(tmp_path), alone)
    log = measurements(tmp_path)
    again = log[(log["k"] == 3) & (log["table"] == "counts")]
    assert again["process"].nunique() == len(again) == 2
    assert len(log) == 9, "what the killed worker had finished is not measured again"


def test_what_a_task_raises_arrives(scheduler):
    with pytest.raises(ValueError, match=r"invalid literal .* 'one'"):
        list(in_parallel([partial(int, text) for text in ("0", "one", "2")], 1, scheduler))
    assert sorted(in_parallel([partial(int, text) for text in "3142"], 1, scheduler)) == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_task_that_ends_its_workers_is_given_up(scheduler):
    def allow(failures, dask_scheduler):
        before, dask_scheduler.allowed_failures = dask_scheduler.allowed_failures, failures
        return before

    with distributed.Client(scheduler, set_as_default=False) as client:
        before = client.run_on_scheduler(partial(allow, 1))
        refused(lambda: list(in_parallel([partial(os._exit, 3)], 1, scheduler)), "2 workers in a row", "logs")
        client.run_on_scheduler(partial(allow, before))


def test_workers_with_other_code_are_refused(scheduler, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "source_hash", lambda: "of a later version")
    refused(lambda: reproduce("fake", Options(tmp_path, scheduler=scheduler)), "other code or libraries")
    assert not (tmp_path / "cache" / "rows").exists()


def test_workers_with_several_threads_are_refused(scheduler, paper, tmp_path, monkeypatch):
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0", silence_logs="CRITICAL"
    ) as cluster:
        address = cluster.scheduler_address
        refused(
            lambda: reproduce("fake", Options(tmp_path / "results", scheduler=address)), "2 threads", "--nthreads 1"
        )
        monkeypatch.setattr(distributed.Client, "nthreads", lambda client: {})  # as if the worker came later
        refused(lambda: list(in_parallel([partial(int, "0")], 1, address)), "2 threads")
    assert not (tmp_path / "results").exists()


def test_a_cluster_that_is_not_there_is_refused_before_any_work(paper, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "PATIENCE", 0.5)
    options = Options(tmp_path / "results", scheduler="tcp://127.0.0.1:9")
    for address in ("tcp://127.0.0.1:9", "nonsense", "smoke://hill:1"):
        refused(lambda address=address: reproduce("fake", replace(options, scheduler=address)), "no Dask", address)
    refused(lambda: reproduce("fake", replace(options, jobs=2)), "--jobs or --scheduler")
    monkeypatch.setitem(sys.modules, "distributed", None)
    refused(lambda: reproduce("fake", options), "pip install 'matchmark[cluster]'")
    assert not (tmp_path / "results").exists()


def test_the_command_passes_on_what_was_chosen(tmp_path, monkeypatch):
    chosen = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "reproduce", lambda paper, options, advance: chosen.append((paper, options)))
    monkeypatch.setattr(cli, "_print_outcome", lambda outcome, results: None)
    monkeypatch.setattr(sys, "argv", ["matchmark", "reproduce", "blind-match", "--scheduler", "tcp://a:1", "--full"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    assert chosen == [("blind_match", Options(Path("results"), full=True, scheduler="tcp://a:1"))]


def test_a_group_is_what_depends_on_the_same():
    row = Row("t", "r", "c", "few_shot_accuracy", "none", {"k": 1}, "embedded", "d", "h")
    assert row.group == replace(row, table="u", row="s", column="e", metric="pck", differs="a lot").group
    others = {"solver": "emd", "settings": {"k": 2}, "tier": "local", "data": "e", "data_hash": "i"}
    assert all(replace(row, **{name: value}).group != row.group for name, value in others.items())


def test_rows_and_options_pickle():
    for thing in (Row("t", "r", "c", "pck", "none", {"k": 1}, "embedded", "d", "h"), Options(Path("a"), scheduler="b")):
        assert pickle.loads(pickle.dumps(thing)) == thing
