"""The command ``python -m benchmarks.study``: measures, then writes the tables and figures."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import THREAD_VARIABLES
from benchmarks.study.cases import TABLES, Case, cases
from benchmarks.study.figure import figure
from benchmarks.study.tables import csv, frame, markdown
from reproductions.opening import open_results
from reproductions.provenance import environment
from reproductions.storage import Cache, content_hash, source_hash, write_atomically

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("lapx", "opencv-python-headless", "ott-jax", "jax", "jaxlib", "geomloss")

Row = dict[str, Any]


class StudyError(Exception):
    """What stops the study, in one sentence."""


@dataclass(frozen=True)
class Study:
    """What is asked for: which cases, on how many threads, where results go, and what has been measured before.

    Attributes:
        machine: commit, hardware, versions; written beside every table.
        fresh: measure again what is in the cache.
    """

    cases: list[Case]
    threads: list[int]
    tables: Path
    cache: Cache
    machine: dict[str, Any]
    fresh: bool

    def recall(self, case: Case, threads: int) -> list[Row] | None:
        """The rows of a case, where they were measured before."""
        return None if self.fresh else self.cache.read_json("benchmarks", self._key(case, threads))

    def keep(self, case: Case, threads: int, rows: list[Row]) -> None:
        """Remember the rows of a case."""
        self.cache.write_json("benchmarks", self._key(case, threads), rows)

    def _key(self, case: Case, threads: int) -> str:
        """Of everything the rows depend on."""
        return content_hash(case.key, threads, {k: self.machine[k] for k in ("sources", "versions", "hardware")})


def provenance() -> dict[str, Any]:
    """Commit, machine and versions, the peers' too."""
    found = environment("cpu", 0)
    for name in PEERS:
        try:
            found["versions"][name] = version(name)
        except PackageNotFoundError:
            found["versions"][name] = "not installed"
    files = sorted(p for folder in ("benchmarks", "solvers") for p in (ROOT / folder).rglob("*.py"))
    return found | {"sources": source_hash(tuple(files))}


def measure(study: Study, progress: Progress) -> list[Row]:
    """The rows of all cases, those measured before from the cache.

    Raises:
        StudyError: a process that measures came to an end.
    """
    task = progress.add_task("", total=len(study.cases) * len(study.threads))
    rows: list[Row] = []
    for threads in study.threads:
        known = [study.recall(case, threads) for case in study.cases]
        answers = _measured_by_a_process([c for c, k in zip(study.cases, known, strict=True) if k is None], threads)
        for case, recalled in zip(study.cases, known, strict=True):
            if recalled is None:
                progress.update(task, description=f"{case.label}, threads {threads}")
                recalled = next(answers)
                study.keep(case, threads, recalled)
            rows += recalled
            progress.advance(task)
    return rows


def _measured_by_a_process(wanted: Sequence[Case], threads: int) -> Iterator[list[Row]]:
    """The rows of each case, from one process that may use this many processors and threads."""
    if not wanted:
        return
    variables = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads)) | {"JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.study.measure"],
            cwd=ROOT, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            json.dump([case.key for case in wanted], process.stdin)
            process.stdin.close()
            for case in wanted:
                if not (line := process.stdout.readline()):
                    errors.seek(0)
                    last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
                    raise StudyError(f"the process measuring '{case.label}' ended with code {process.wait()}: {last}")
                yield json.loads(line)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def write(study: Study, rows: list[Row]) -> list[Path]:
    """The files of every table: ``.csv``, ``.md``, ``.png``, and the provenance in ``.json``."""
    hardware = study.machine["hardware"]
    words = f"{hardware['cpu']}, {hardware['cores']['logical']} processors, Python {platform.python_version()}"
    machine = study.machine | {"written": datetime.now(UTC).isoformat(timespec="seconds")}
    written: list[Path] = []
    for name, table in frame(rows).groupby("table", sort=False):
        files: dict[str, str | bytes] = {
            "csv": csv(table),
            "md": markdown(str(name), table, words),
            "json": json.dumps(machine, indent=1) + "\n",
        }
        if table["wall_median"].notna().any():
            files["png"] = figure(str(name), table)
        for suffix, content in files.items():
            written.append(study.tables / f"{name}.{suffix}")
            write_atomically(written[-1], content)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 for a study that failed, 2 for one that cannot begin, 130 when stopped."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=TABLES, default=list(TABLES), metavar="TABLE", help=" ".join(TABLES)
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N", help="default: 1 2")
    parser.add_argument(
        "--quick", action="store_true", help="tiny instances, tables in results/cache: does it all run?"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what is in the cache")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="default: the results of this checkout")
    chosen = parser.parse_args(arguments)
    processors = _processors()
    if not all(1 <= threads <= processors for threads in chosen.threads):
        parser.error(f"--threads must be from 1 to {processors}, the processors this process may use")
    threads = sorted(set(chosen.threads))
    open_results(chosen.results)
    study = Study(
        cases=cases(chosen.only, chosen.quick),
        threads=threads,
        tables=chosen.results / ("cache/quick" if chosen.quick else "benchmarks"),
        cache=Cache(chosen.results / "cache"),
        machine=provenance() | {"threads": threads, "arguments": sys.argv[1:] if arguments is None else [*arguments]},
        fresh=chosen.fresh,
    )
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            rows = measure(study, progress)
    except KeyboardInterrupt:
        console.print("Stopped; the same command goes on from here.")
        return 130
    except StudyError as error:
        console.print(f"{error}", markup=False)
        return 1
    for path in write(study, rows):
        print(path)
    return 0


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
