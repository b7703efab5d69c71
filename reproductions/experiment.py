"""The pipeline's runner: rows are measured one at a time, kept as soon as they are, and never measured twice.

A paper's ``experiment.py`` says which rows there are and how one is measured; here they are run, in parallel where
asked, each result is stored under the hash of everything it depends on, and the tables are written again after every
row. Killing the process loses the rows in progress and nothing else: one, or in parallel those that a worker measures
one after the other because they come from the same outcome, and those that wait while another is being written.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock, Timeout

from reproductions import PAPERS, UserError
from reproductions.claims import Claim, Paper, load_paper
from reproductions.metrics import METRICS
from reproductions.opening import open_results
from reproductions.parallel import connected, in_parallel
from reproductions.provenance import RunRecord, library_versions
from reproductions.report import write_tables
from reproductions.schema import is_measured_row
from reproductions.statistics import Estimate, bootstrap_interval, mean_interval, student_interval, verdict
from reproductions.storage import Cache, content_hash, source_hash, write_atomically
from reproductions.tables import set_aside_if_broken

INTERVALS = {"normal": mean_interval, "bootstrap": bootstrap_interval, "student": student_interval}
Advance = Callable[[str, float], None]
"""Told what is being done and which fraction of it is finished."""
Measured = Sequence[float] | Estimate
"""Samples whose mean is the number, or the number with its interval where it is no mean (mAP, F1 of one test set)."""


class NotMeasured(Exception):
    """Raised by an experiment's ``measure``: it ran, and the row has no number; the message is the reason.

    The row stands in its table as not run, with that reason, and is kept like a measured one: it is not tried again.
    """


@dataclass(frozen=True)
class Row:
    """One number of a table: what it is and everything it depends on.

    Attributes:
        solver, settings: as recorded in the table; ``settings`` is all that ``measure`` needs to know.
        data: name of the data set; ``data_hash`` its content.
        claim: the published number that stands beside it, None where none was found.
        missing: why it cannot be measured here, "" where it can.
        differs: what is measured otherwise than published, where something is; then the two are not compared.
    """

    table: str
    row: str
    column: str
    metric: str
    solver: str
    settings: dict[str, Any]
    tier: str
    data: str
    data_hash: str
    claim: Claim | None = None
    missing: str = ""
    differs: str = ""

    @property
    def title(self) -> str:
        return f"{self.row}, {self.column}"

    @property
    def identity(self) -> dict[str, Any]:
        """What is measured, without what was published about it."""
        return {k: v for k, v in asdict(self).items() if k not in ("claim", "missing", "differs")}

    @property
    def group(self) -> str:
        """Shared by the rows that are numbers of one outcome: all is the same but where they stand and their metric."""
        return content_hash(self.solver, self.settings, self.tier, self.data, self.data_hash)


@dataclass(frozen=True)
class Options:
    """What the user chose: where results go, which device and seed, how many rows at once and where.

    Attributes:
        data: a folder of data sets in their official layouts, and of weights; without it, the embedded tier alone.
        train: whether networks that its data sets lack are trained first.
        full: whether rows are measured, too, whose published time limits and repetitions take hours.
        scheduler: address of a Dask cluster that measures the rows. This process alone writes tables and records, and
            the tables do not depend on whether the workers see ``results``; where they do, as on a common file system,
            they share its caches, else each makes its own. They need ``data`` at the same path, the same code and the
            same libraries.
    """

    results: Path
    data: Path | None = None
    device: str = "cpu"
    seed: int = 0
    jobs: int = 1
    train: bool = False
    full: bool = False
    scheduler: str | None = None

    @property
    def cache(self) -> Cache:
        return Cache(self.results / "cache")


class Experiment(Protocol):
    """What a paper's ``experiment.py`` offers."""

    def rows(self, options: Options) -> list[Row]:
        """The rows of the embedded tier, and of every data set that ``options.data`` holds."""

    def prepare(self, options: Options, advance: Advance) -> None:
        """What all rows share (trained weights, features): computed once, cached, resumable."""

    def measure(self, row: Row, options: Options, advance: Callable[[float], None]) -> Measured:
        """What the row's number is made of; ``advance`` is told the finished fraction.

        Raises:
            NotMeasured: the row has no number, and why.

        An experiment may also offer ``pictures(options)``, which are written beside the tables (name → PNG), and
        ``train(options, advance)``, which makes the networks that rows wait for.
        """


@dataclass(frozen=True)
class Result:
    """A row as it stands in the table: measured, or not run and why."""

    paper: str
    row: Row
    estimate: Estimate | None
    verdict: str
    reason: str
    seconds: float | None = None
    run: str = ""

    def record(self) -> dict[str, Any]:
        """The columns of the table on disk, in order."""
        row, claim, estimate = self.row, self.row.claim, self.estimate
        metric = METRICS[row.metric]
        settings = ", ".join(f"{k}={v}" for k, v in row.settings.items())
        return {
            "paper": self.paper,
            "table": row.table,
            "row": row.row,
            "column": row.column,
            "metric": row.metric,
            "unit": metric.unit,
            "tier": row.tier,
            "data": row.data,
            "solver": row.solver,
            "settings": settings,
            "measured": estimate and round(estimate.mean, 6),
            "ci_low": estimate and round(estimate.low, 6),
            "ci_high": estimate and round(estimate.high, 6),
            "n": estimate and estimate.n,
            "published": claim and claim.value,
            "published_ci": claim and claim.interval,
            "tolerance": claim and claim.tolerance,
            "verdict": self.verdict,
            "reason": self.reason,
            "seconds": self.seconds and round(self.seconds, 1),
            "run": self.run,
        }


@dataclass
class Outcome:
    """What a run did: its results, how many of them it took from earlier runs, and what the user has to know."""

    paper: Paper
    results: list[Result] = field(default_factory=list)
    reused: int = 0
    measured: int = 0
    notes: list[str] = field(default_factory=list)


def load_experiment(paper: str) -> Experiment:
    """The experiment of a paper.

    Raises:
        UserError: no such paper.
    """
    if paper not in PAPERS:
        raise UserError(f"there is no paper {paper!r}; the papers are: {', '.join(PAPERS)}")
    return import_module(f"reproductions.{paper}.experiment")


def reproduce(paper: str, options: Options, advance: Advance = lambda what, fraction: None) -> Outcome:
    """Measure every row of a paper that is not yet known, and write its tables.

    Raises:
        UserError: another run holds the same results folder; it cannot be written, or is of a newer schema; the cluster
            cannot be used, or its workers have other code than this process; both ``jobs`` and ``scheduler`` are given.
    """
    experiment, published = load_experiment(paper), load_paper(paper)
    if options.scheduler is not None:
        if options.jobs != 1:
            raise UserError("--jobs is for this machine, on a cluster its workers count: give --jobs or --scheduler")
        connected(options.scheduler).close()  # refused before any work starts
    open_results(options.results)
    try:
        with FileLock(options.cache.folder / f"{paper}.lock", timeout=0):
            return _reproduce(paper, experiment, published, options, advance)
    except Timeout:
        raise UserError(
            f"another run is writing the results of {paper} in {options.results}; wait for it, or use --results"
        ) from None


def _reproduce(paper: str, experiment: Experiment, published: Paper, options: Options, advance: Advance) -> Outcome:
    if options.train and (train := getattr(experiment, "train", None)) is not None:
        train(options, advance)  # before the rows: they name the weights they are measured with
    rows = experiment.rows(options)
    keys = [_key(row, options) for row in rows]
    stored = [known if is_measured_row(known := options.cache.read_json("rows", key)) else None for key in keys]
    missing = [k for k, known in enumerate(stored) if known is None and not rows[k].missing]
    outcome = Outcome(published, reused=sum(known is not None for known in stored), measured=len(missing))

    not_run = _not_run(published, rows)
    for table in dict.fromkeys(row.table for row in [*rows, *(r.row for r in not_run)]):
        note = set_aside_if_broken(options.results / paper / f"{table}.csv")
        outcome.notes += [] if note is None else [note]

    def write(table: str | None = None) -> None:
        """One table as it stands, or all of them with their figures."""
        results = [_result(paper, r, x) for r, x in zip(rows, stored, strict=True) if table in (None, r.table)]
        results += [r for r in not_run if table in (None, r.row.table)]
        records, claims = [r.record() for r in results], [r.row.claim for r in results]
        write_tables(published, records, claims, options.results / paper, draw=table is None)
        outcome.results = results

    if missing:
        tiers = ", ".join(dict.fromkeys(rows[k].tier for k in missing))
        record = RunRecord(options.results / "runs", paper, tiers, options.device, options.seed)
        record.fields["data"] = {row.data: row.data_hash for row in rows}
        record.write()
        experiment.prepare(options, advance)
        for k, found, seconds in _measured(paper, experiment, {k: rows[k] for k in missing}, options, advance):
            stored[k] = known = {**_known(rows[k], found), "seconds": seconds, "run": record.id}
            samples = [] if isinstance(found, (Estimate, NotMeasured)) else list(found)
            record.fields["rows"].append({**rows[k].identity, "samples": samples, **known})
            record.write()  # first: a row that is kept names a record that has it
            options.cache.write_json("rows", keys[k], known)
            write(rows[k].table)
        record.finish()
    write()
    _draw(experiment, options, options.results / paper, content_hash(*keys), bool(missing))
    return outcome


def _draw(experiment: Experiment, options: Options, folder: Path, key: str, changed: bool) -> None:
    """The experiment's own pictures, where a row is new or a run was killed before it had drawn them all."""
    pictures = getattr(experiment, "pictures", None)
    drawn = options.cache.read_json("pictures", key)
    if pictures is None or (not changed and drawn is not None and all((folder / name).exists() for name in drawn)):
        return
    files = {f"{name}.png": content for name, content in pictures(options).items()}
    for name, content in files.items():
        write_atomically(folder / name, content)
    options.cache.write_json("pictures", key, list(files))


def _measured(
    paper: str, experiment: Experiment, rows: dict[int, Row], options: Options, advance: Advance
) -> Iterator[tuple[int, Measured | NotMeasured, float]]:
    """(number, what was measured, seconds) of each row as it gets done; with several jobs, in whatever order."""
    if options.jobs == 1 and options.scheduler is None:
        for done, (k, row) in enumerate(rows.items(), start=1):
            label = f"row {done} of {len(rows)}: {row.title}"
            start = time.perf_counter()
            found = _attempt(experiment, row, options, partial(advance, label))
            yield k, found, time.perf_counter() - start
        return
    where, threads = f"{options.jobs} at once", max(1, torch.get_num_threads() // options.jobs)
    if options.scheduler is not None:
        where = f"on the cluster at {options.scheduler}"
        data = options.data and options.data.resolve()
        options = replace(options, results=options.results.resolve(), data=data)  # a worker has its own working folder
    groups: dict[str, dict[int, Row]] = {}
    for k, row in rows.items():
        groups.setdefault(row.group, {})[k] = row
    tasks = [partial(_in_worker, paper, group, options, threads, _code()) for group in groups.values()]
    done = 0
    advance(f"0 of {len(rows)} rows, {where}", 0.0)
    for results in in_parallel(tasks, options.jobs, options.scheduler):
        for result in results:
            yield result
            done += 1
            advance(f"{done} of {len(rows)} rows, {where}", done / len(rows))


def _in_worker(
    paper: str, rows: dict[int, Row], options: Options, threads: int, code: str
) -> list[tuple[int, Measured | NotMeasured, float]]:
    """The rows of one group, one after the other, so that the later find what the first has cached."""
    if options.scheduler is None:
        torch.set_num_threads(threads)  # those of a Dask worker are its own affair
    elif code != _code():
        raise UserError(
            f"a Dask worker on {platform.node()} has other code or libraries than this run: make them equal"
        )
    experiment, results = load_experiment(paper), []
    for k, row in rows.items():
        start = time.perf_counter()
        found = _attempt(experiment, row, options, lambda fraction: None)
        results.append((k, found, time.perf_counter() - start))
    return results


def _attempt(
    experiment: Experiment, row: Row, options: Options, advance: Callable[[float], None]
) -> Measured | NotMeasured:
    try:
        return experiment.measure(row, options, advance)
    except NotMeasured as reason:
        return NotMeasured(str(reason))  # without its traceback, which would keep what it was measured from


def _code() -> str:
    """The hash of code and libraries: what others have measured must not be kept as measured with these."""
    return content_hash(source_hash(), library_versions())


def _known(row: Row, found: Measured | NotMeasured) -> dict[str, Any]:
    """What is kept of a row: its estimate, or None and the reason."""
    if isinstance(found, NotMeasured):
        return {"estimate": None, "reason": str(found)}
    return {"estimate": asdict(_estimate(row, found))}


def _estimate(row: Row, found: Measured) -> Estimate:
    return found if isinstance(found, Estimate) else INTERVALS[METRICS[row.metric].interval](found)


def _key(row: Row, options: Options) -> str:
    """The hash of everything the row's number depends on: itself, the code, the libraries, seed and device."""
    return content_hash(row.identity, source_hash(), library_versions(), options.seed, options.device)


def _result(paper: str, row: Row, stored: dict[str, Any] | None) -> Result:
    if stored is None:
        what, why = verdict(row.claim, None, row.data, row.missing or "still to be measured: run the command again")
        return Result(paper, row, None, what, why)
    estimate = stored["estimate"] and Estimate(**stored["estimate"])
    what, why = verdict(row.claim, estimate, row.data, stored.get("reason", ""), row.differs)
    return Result(paper, row, estimate, what, why, stored["seconds"], stored["run"])


def _not_run(published: Paper, rows: Sequence[Row]) -> list[Result]:
    """Every claim on the paper's own data that no row of this run measures there."""
    measured = {row.claim.key for row in rows if row.claim is not None and row.data == row.claim.data}
    return [
        Result(
            published.name,
            Row(c.table, c.row, c.column, c.metric, "", {}, "paper", c.data, "", c),
            None,
            *verdict(c, None, c.data, published.why_not_run(c)),
        )
        for c in published.claims
        if c.key not in measured
    ]
