"""The page ``results/report/index.html``, put together."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from reproductions.report import read_tables
from reproductions.report_page import figures
from reproductions.report_page.board import certificates, newest_of_asv, study
from reproductions.report_page.numbers import VERDICTS, Strings, as_tables, counted, paper_of, run_records
from reproductions.storage import write_atomically

HERE = Path(__file__).parent
MEANINGS = {
    "agrees": "within the tolerance of the published number, on the paper's own data and protocol",
    "differs": "further away than the tolerance, on the paper's own data and protocol",
    "inconclusive": "the interval is wider than the tolerance",
    "not comparable": "measured on other data than the paper's, as every embedded row is",
    "not run": "its data, networks or time were not given; the reason stands with the number",
}

SHORT = {"blind_match": "Blind match", "deepemd": "DeepEMD", "patchct": "PatchCT", "ram": "RAM", "scot": "SCOT"}
OPENED = ("sinkhorn_accuracy", "quadratic_assignment")
"""Lists whose figure says more than their rows."""


def write_report(results: Path) -> Path:
    """Write the page from the tables on disk; it needs no other file and no network, and is made whole or not at all.

    Raises:
        UserError: a table on disk is damaged.
    """
    path = results / "report" / "index.html"
    write_atomically(path, page(results))
    return path


def page(results: Path) -> str:
    """The page as text."""
    frames, strings = read_tables(results), Strings()
    papers = {name: as_tables(name, tables, strings) for name, tables in frames.items()}
    runs = {str(run) for tables in frames.values() for t in tables.values() for run in t["run"].dropna()}
    lists = [*study(results), newest_of_asv(results), certificates(results, frames)]
    listings = {found.name: found for found in lists if found is not None}
    data = {
        "papers": {name: [_drawn(t) for t in tables] for name, tables in papers.items()},
        "lists": {name: {"columns": x.columns, "rows": x.rows} for name, x in listings.items()},
        "runs": run_records(results, runs),
        "strings": strings.texts,
    }
    style, script = (HERE / "page.css").read_text(), (HERE / "page.js").read_text()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        papers=[_paper(results, name, tables) for name, tables in papers.items()],
        board=[x for name, x in listings.items() if name not in ("asv", "certificates")],
        asv=listings.get("asv"),
        asv_pages=(results.parent / ".asv" / "html" / "index.html").exists(),
        certificates=listings.get("certificates"),
        counts=counted(papers, strings),
        verdicts=MEANINGS,
        tiers=sorted({tier for tables in papers.values() for t in tables for tier in t["tiers"]}),
        numbers=sum(t["measured"] for tables in papers.values() for t in tables),
        data=Markup(_as_json(data)),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        order=VERDICTS,
        opened=OPENED,
        short=SHORT,
    )


def _paper(results: Path, name: str, tables: list[dict[str, Any]]) -> dict[str, Any]:
    """What the frame says of a paper; the numbers are drawn later."""
    paper, names = paper_of(name), {t["name"] for t in tables}
    shown = [dict(t, place=k, figure=figures.of_table(results, name, t["name"])) for k, t in enumerate(tables)]
    return {
        "name": name,
        "short": SHORT.get(name, name.replace("_", " ")),
        "paper": paper,
        "measured": [t for t in shown if t["measured"]],
        "waiting": [t for t in shown if not t["measured"]],
        "gallery": figures.gallery(results, name, names),
    }


def _drawn(table: dict[str, Any]) -> dict[str, Any]:
    return {key: table[key] for key in ("name", "title", "columns", "rows", "tiers", "data")}


def _as_json(data: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever its texts are."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return (
        text.replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    )
