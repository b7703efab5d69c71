"""The papers' numbers as the page wants them: tables of rows by columns, and where each number comes from."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from reproductions import PAPERS
from reproductions.claims import Paper, load_paper
from reproductions.metrics import METRICS
from reproductions.report import is_single, measured_text, published_text

VERDICTS = ("agrees", "differs", "inconclusive", "not comparable", "not run")
SHOWN = ("commit", "dirty", "started", "device", "seed", "threads", "hardware", "versions")


@dataclass
class Strings:
    """Texts that many numbers share, each kept once."""

    texts: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)

    def place(self, text: object) -> int:
        """Where the text stands, "" for what is missing."""
        known = "" if text is None or (isinstance(text, float) and pd.isna(text)) else str(text)
        if known not in self.places:
            self.places[known] = len(self.texts)
            self.texts.append(known)
        return self.places[known]


def paper_of(name: str) -> Paper | None:
    """The claims of a paper of this project; None of a folder with tables of something else."""
    return load_paper(name) if name in PAPERS else None


def as_tables(name: str, tables: dict[str, pd.DataFrame], strings: Strings) -> list[dict[str, Any]]:
    """The tables of one paper, those with measured numbers first.

    A table has ``columns`` and ``rows``; a row has its label, tier and data, and a cell or null for every column. A
    cell is a list: measured (text, number), published (text), verdict, reason, metric, solver, settings, interval,
    samples, seconds, run, claim; texts are places in ``strings``.
    """
    paper = paper_of(name)
    sources = {c.key: _claim(c) for c in paper.claims} if paper else {}
    found = []
    for table, frame in tables.items():
        columns = list(dict.fromkeys(frame["column"]))
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        for record in frame.to_dict("records"):
            key = tuple(str(record[k]) for k in ("row", "tier", "data"))
            row = rows.setdefault(key, dict(zip(("row", "tier", "data"), map(strings.place, key), strict=True)))
            cells = row.setdefault("cells", [None] * len(columns))
            claim = sources.get((table, str(record["row"]), str(record["column"])), "")
            cells[columns.index(record["column"])] = _cell(record, claim, strings)
        measured = int(frame["measured"].notna().sum())
        known = [METRICS[m].phrase for m in dict.fromkeys(frame["metric"]) if m in METRICS]
        found.append(
            {
                "name": table,
                "title": paper.title_of(table) if paper else table,
                "what": ", ".join(known),
                "data": list(dict.fromkeys(frame["data"].astype(str))),
                "tiers": list(dict.fromkeys(frame["tier"].astype(str))),
                "columns": columns,
                "rows": list(rows.values()),
                "measured": measured,
                "numbers": len(frame),
            }
        )
    return sorted(found, key=lambda t: t["measured"] == 0)


def _cell(row: Any, claim: str, strings: Strings) -> list[Any]:
    known = row["metric"] in METRICS  # a table may be of a later version, or of somebody else's
    measured = measured_text(row) if known else _plain(row["measured"])
    published = published_text(row) if known else _plain(row["published"])
    interval = "" if pd.isna(row["ci_low"]) or is_single(row) else f"{row['ci_low']:g} … {row['ci_high']:g}"
    metric = METRICS[row["metric"]].phrase if known else row["metric"]
    texts = (row["verdict"], row["reason"], metric, row["solver"], row["settings"], interval)
    return [
        measured,
        float(row["measured"]) if math.isfinite(row["measured"]) else None,
        published,
        *map(strings.place, texts),
        None if pd.isna(row["n"]) else int(row["n"]),
        float(row["seconds"]) if math.isfinite(row["seconds"]) else None,
        strings.place(row["run"]),
        strings.place(claim),
    ]


def _plain(x: float) -> str:
    return "–" if pd.isna(x) else f"{x:g}"


def _claim(claim: Any) -> str:
    """Where a published number comes from, and what counts as agreement."""
    return (
        f"{claim.version}; {claim.data}: {claim.protocol}. Source: {claim.source}. "
        f"Tolerance {claim.tolerance:g}: {claim.tolerance_reason}."
    )


def run_records(results: Path, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """What is known of the runs that numbers come from: commit, machine, versions, seeds, data; by their names."""
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(wanted):
        path = results / "runs" / f"{name}.json"
        try:
            record = json.loads(path.read_text())
            data = {str(k): str(v)[:16] for k, v in record["data"].items()}
            found[name] = {key: _said(record[key]) for key in SHOWN if key in record} | {"data": data}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # not kept, or damaged: the page says that it is not there
    return found


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_said(v)}" for k, v in value.items() if v not in (None, [], ""))
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def counted(papers: dict[str, list[dict[str, Any]]], strings: Strings) -> list[dict[str, Any]]:
    """How many numbers of each paper have which verdict, and which tiers they are of."""
    found = []
    for name, tables in papers.items():
        verdicts = [strings.texts[c[3]] for t in tables for r in t["rows"] for c in r["cells"] if c is not None]
        paper = paper_of(name)
        found.append(
            {
                "name": name,
                "title": paper.title if paper else name,
                "counts": [verdicts.count(v) for v in VERDICTS],
                "numbers": len(verdicts),
                "tiers": ", ".join(dict.fromkeys(x for t in tables for x in t["tiers"] if t["measured"])),
            }
        )
    return found
