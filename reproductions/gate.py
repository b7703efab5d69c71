"""The gate: the tables on disk against the committed ones, with a direction and a tolerance for each metric."""

from __future__ import annotations

import io
import math
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from reproductions import UserError
from reproductions.metrics import METRICS
from reproductions.report import COLUMNS, WORDS, read_tables

KEY = ["paper", "table", "row", "column", "tier", "data"]
Tables = dict[str, dict[str, pd.DataFrame]]


@dataclass(frozen=True)
class Finding:
    """One number of the reference and what became of it."""

    key: tuple[str, ...]
    reference: float
    measured: float | None
    passed: bool
    sentence: str


def compare(measured: Tables, reference: Tables) -> list[Finding]:
    """One finding for every measured number of the reference tables.

    A number fails when it is missing, not finite, or worse than the reference (in its metric's own direction) by more
    than the metric's tolerance. Better numbers pass.
    """
    now = dict(_numbers(measured))
    return [_finding(key, row, now.get(key)) for key, row in _numbers(reference) if pd.notna(row["measured"])]


def committed_tables(results: Path, revision: str) -> Tables:
    """The tables of the results folder as they stand in a git revision.

    Raises:
        UserError: not a git checkout, or no such revision.
    """

    def git(*arguments: str) -> str:
        where = results if results.is_dir() else results.parent
        done = subprocess.run(["git", "-C", str(where), *arguments], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"cannot read the reference tables of {revision}: {done.stderr.strip().splitlines()[-1]}")
        return done.stdout

    top = Path(git("rev-parse", "--show-toplevel").strip())
    inside = results.resolve().relative_to(top.resolve()).as_posix()
    found: Tables = {}
    for name in git("ls-tree", "-r", "--name-only", "--full-tree", revision, "--", f"{inside}/").splitlines():
        path = Path(name)
        if path.suffix != ".csv":
            continue
        table = pd.read_csv(io.StringIO(git("show", f"{revision}:{name}")), dtype=WORDS)
        if list(table.columns) == COLUMNS:
            found.setdefault(path.parent.name, {})[path.stem] = table
    return found


def reference_tables(results: Path, against: str) -> Tables:
    """The tables of a folder, or of a git revision of the results folder."""
    if Path(against).is_dir():
        return read_tables(Path(against))
    return committed_tables(results, against)


def _numbers(tables: Tables) -> Iterable[tuple[tuple[str, ...], pd.Series]]:
    for paper in tables.values():
        for table in paper.values():
            for _, row in table.iterrows():
                yield tuple(str(row[c]) for c in KEY), row


def _finding(key: tuple[str, ...], old: pd.Series, new: pd.Series | None) -> Finding:
    before = float(old["measured"])
    if new is None or pd.isna(new["measured"]):
        return Finding(key, before, None, False, "missing")
    after = float(new["measured"])
    if not math.isfinite(after):
        return Finding(key, before, after, False, "not finite")
    metric = METRICS[str(old["metric"])]
    worse = before - after if metric.direction == "higher" else after - before
    slack = metric.gate_tolerance
    if metric.interval == "student":  # trained again with other libraries, a few runs spread as widely as before
        slack = max(slack, (float(old["ci_high"]) - float(old["ci_low"])) / 2)
    passed = worse <= slack
    change = f"{abs(worse):.4g} {metric.unit}".rstrip()
    word = "unchanged" if worse == 0 else f"{'worse' if worse > 0 else 'better'} by {change}"
    return Finding(key, before, after, passed, f"{word} (tolerance {slack:.3g})")
