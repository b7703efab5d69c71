"""Kills a sweep at random moments with SIGKILL, starts it again each time, and compares what it wrote in the end.

``python tests/kill_a_sweep.py FOLDER --kills 200 --jobs 2``. The program is imported once, every run is a fork of it.
With several jobs, the rows are measured in threads of the fork; ``--processes`` takes joblib's own processes instead,
which import the program each time. Several sweeps are made where one does not last for all kills.

It prints what it found as JSON; the exit code is 1 where anything differs from an undisturbed run or is lost.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import sys
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import joblib
import pandas as pd

import reproductions
from reproductions import experiment, report
from reproductions.claims import Paper
from reproductions.experiment import Options, reproduce
from reproductions.sealing import is_sealed, unsealed
from reproductions.temporaries import PATTERN

PAPER = '''
"""Three tables of eight rows each, made from tensors that are cached, and a picture."""
import time
import torch
from reproductions.experiment import Row

def rows(options):
    return [
        Row(table, f"row {k}", "column", "few_shot_accuracy", "none", {"k": k}, "embedded", table, "0" * 64)
        for table in ("first", "second", "third")
        for k in range(8)
    ]

def prepare(options, advance):
    options.cache.tensors("numbers", "1" * 64, lambda: {"x": torch.arange(8.0)})

def measure(row, options, advance):
    with open(options.results / "measured.log", "a") as file:
        file.write(f"{row.table} {row.row}\\n")
    time.sleep(0.005)
    x = options.cache.tensors("numbers", "1" * 64, lambda: {"x": torch.arange(8.0)})["x"]
    return [x[row.settings["k"]].item() * 10 + j for j in range(4)]

def pictures(options):
    return {"picture": b"pixels"}
'''
CLAIMS = """
name = "fake"
title = "A paper of numbers"
authors = "N. N."
link = "https://example.org"
needs = "numbers nobody has"
options = "--data DIR"
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
cells = [{ row = "r", column = "c", value = 12.5, interval = 0.5 }]
"""
ROWS = 24
OF_A_RUN = ["seconds", "run"]
"""Columns that differ from run to run."""


def install(folder: Path) -> None:
    """Make the paper one of this process and of those it starts."""
    package = folder / "reproductions" / "fake"
    package.mkdir(parents=True)
    (package / "experiment.py").write_text(PAPER)
    (package / "__init__.py").touch()
    (folder / "sitecustomize.py").write_text(
        f"import reproductions\nreproductions.__path__.append({str(package.parent)!r})\n"
        'reproductions.PAPERS = ("fake",)\n'
    )
    paths = [str(folder), str(Path(reproductions.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    reproductions.__path__.append(str(package.parent))
    experiment.PAPERS = ("fake",)
    published = Paper.model_validate(tomllib.loads(CLAIMS))
    experiment.load_paper = lambda name: published
    report.figure = lambda title, table: title.encode() * 100_000  # drawing takes longer than all the rest together
    experiment.load_experiment("fake")


@contextmanager
def running(options: Options, processes: bool) -> Iterator[int]:
    """A fork that makes the sweep, in a process group of its own; it is killed with all of them when that ends."""
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            with nullcontext() if processes else joblib.parallel_config("threading"):
                reproduce("fake", options)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(child, signal.SIGKILL)


def finished(child: int, seconds: float) -> bool:
    """Whether the run ends by itself within this time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                raise SystemExit(f"the run ended with status {status}")
            return True
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def sweep(options: Options, kills: int, scale: float, processes: bool, chance: random.Random) -> tuple[int, int]:
    """Run until it is finished, killed at random moments at most so often: how often, and in how many writes."""
    torn = 0
    for killed in range(kills):
        with running(options, processes) as child:
            if finished(child, scale * chance.random() ** 2):  # more of the early moments, else it never ends
                return killed, torn
        torn += bool(temporaries(options.results))
    with running(options, processes) as child:
        assert finished(child, 600)
    return kills, torn


def temporaries(results: Path) -> list[Path]:
    """The files that killed runs had not finished writing."""
    return [path for path in results.rglob("*") if PATTERN.fullmatch(path.name)]


def written(results: Path) -> dict[str, bytes]:
    """What the tables' folder holds, without what differs from run to run."""
    found = {path.name: path.read_bytes() for path in sorted((results / "fake").iterdir())}
    for name in found:
        if name.endswith(".csv"):
            table = pd.read_csv(results / "fake" / name, dtype=str, keep_default_na=False)
            found[name] = table.drop(columns=OF_A_RUN).to_csv(index=False).encode()
    return found


def faults(results: Path, reference: dict[str, bytes], kills: int, jobs: int) -> list[str]:
    """What is wrong with the results of a finished sweep."""
    now = written(results)
    wrong = [
        f"{name} differs" for name in sorted(now.keys() | reference.keys()) if now.get(name) != reference.get(name)
    ]
    records = {path.stem: json.loads(path.read_bytes()) for path in (results / "runs").iterdir()}
    for table in ("first", "second", "third"):
        for _, row in pd.read_csv(results / "fake" / f"{table}.csv").iterrows():
            known = [r for r in records[row["run"]]["rows"] if (r["table"], r["row"]) == (table, row["row"])]
            if [r["estimate"]["mean"] for r in known] != [row["measured"]]:
                wrong.append(f"{table}, {row['row']}: its run record does not have it")
    entries = list((results / "cache" / "rows").iterdir())
    if len(entries) != ROWS or any(unsealed(json.loads(path.read_bytes())) is None for path in entries):
        wrong.append(f"{len(entries)} cached rows, or one is not whole")
    if not all(is_sealed(path.read_bytes()) for path in (results / "cache").rglob("*.safetensors")):
        wrong.append("cached tensors are not whole")
    wrong += [f"{path} is left" for path in temporaries(results)]
    measured = Counter((results / "measured.log").read_text().splitlines())
    most = ROWS + kills if jobs == 1 else ROWS * (1 + kills)  # with several jobs, finished rows wait to be written
    if len(measured) != ROWS or sum(measured.values()) > most:
        wrong.append(f"{sum(measured.values())} rows were measured for {ROWS}, with {kills} kills and {jobs} jobs")
    return wrong


def main() -> int:
    """Kill, compare and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="an empty one")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    began, chance = time.monotonic(), random.Random(chosen.seed)
    install(chosen.folder)
    scale, undisturbed = math.inf, Options(chosen.folder / "undisturbed", jobs=chosen.jobs)
    for _ in range(2):
        shutil.rmtree(undisturbed.results, ignore_errors=True)
        start = time.monotonic()
        sweep(undisturbed, 0, 0.0, chosen.processes, chance)
        scale = min(scale, time.monotonic() - start)
    reference = written(undisturbed.results)
    assert len(reference) == 12, sorted(reference)  # csv, md and png of three tables; those of the claims; the picture
    kills, sweeps, torn, wrong = 0, 0, 0, list[str]()
    while kills < chosen.kills:
        options = Options(chosen.folder / f"sweep-{sweeps}", jobs=chosen.jobs)
        now, inside = sweep(options, chosen.kills - kills, scale, chosen.processes, chance)
        kills, torn, sweeps = kills + now, torn + inside, sweeps + 1
        wrong += [f"{options.results.name}: {fault}" for fault in faults(options.results, reference, now, chosen.jobs)]
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"kills": kills, "in_writes": torn, "sweeps": sweeps, "wrong": wrong, "seconds": seconds}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
