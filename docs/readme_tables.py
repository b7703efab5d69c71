"""The tables of README.md, made from the code: ``python -m docs.readme_tables`` writes them into their places.

A place is what lies between ``<!-- name -->`` and ``<!-- /name -->``. What a table says is said by the class
attributes of the solvers, by the claims and rows of the papers and by the catalogue of data sets; the few words that
none of them knows stand in ``readme_words.toml``.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from reproductions import PAPERS
from reproductions.claims import load_paper
from reproductions.datasets.catalogue import KNOWN
from reproductions.experiment import Options, load_experiment
from reproductions.storage import write_atomically
from solvers import (
    AssignmentProblem,
    GraphMatchingProblem,
    PartialTransportProblem,
    PointCloudTransportProblem,
    QuadraticAssignmentProblem,
    TransportProblem,
    UnbalancedTransportProblem,
)
from solvers.registry import BUILTIN, solver_class

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
WORDS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("readme_words.toml").read_text())
PROBLEMS = {
    TransportProblem: "transport",
    UnbalancedTransportProblem: "unbalanced transport",
    PartialTransportProblem: "partial transport",
    PointCloudTransportProblem: "transport between point clouds",
    AssignmentProblem: "linear assignment",
    QuadraticAssignmentProblem: "quadratic assignment",
    GraphMatchingProblem: "graph matching",
}


def solver_table() -> str:
    """What every built-in solver can do, from its class attributes."""
    rows = []
    for name, place in BUILTIN.items():
        cls = solver_class(name)
        size = f", n ≤ {cls.max_size}" if cls.max_size else ""
        solves = ", ".join(PROBLEMS[kind] for kind in cls.problem_types) + size
        file = f"{place.partition(':')[0].replace('.', '/')}.py"
        rows.append(
            (
                f"[`{name}`]({file})",
                _joined("; ", solves, WORDS["solvers"].get(name, "")),
                "yes" if cls.exact else "",
                "yes" if cls.gives_bound else "",
                _joined(": ", ", ".join(cls.differentiable), WORDS["gradients"].get(name, "")),
                ", ".join(cls.devices).upper(),
                WORDS["after"].get(name, cls.reference),
            )
        )
    return _table(("solver", "solves", "exact", "lower bound", "gradients", "devices", "after"), rows)


def paper_table() -> str:
    """What a row of each paper is, and on which data it is measured, from its claims and rows."""
    rows = []
    for name in PAPERS:
        paper, words, folder = load_paper(name), WORDS["papers"][name], f"reproductions/{name}"
        tables: dict[str, int] = {}
        for row in load_experiment(name).rows(Options(ROOT / "results")):
            if row.tier == "embedded":
                tables[row.table] = tables.get(row.table, 0) + 1
        links = ", ".join(f"[{table}](results/{name}/{table}.md) {count}" for table, count in tables.items())
        published = len({claim.table for claim in paper.claims})
        claims = f"[{len(paper.claims)} published numbers]({folder}/claims.toml) in {published} tables"
        rows.append(
            (
                f"[{words['short']}]({paper.link}) `{name}` ([protocol]({folder}/protocol.md))",
                words["row"],
                f"{words['embedded']}: {links}",
                _joined("; ", words["local"], f"{', '.join(words['data'])}, {words['paper']}", claims),
            )
        )
    return _table(("paper", "what a row is", "embedded tier (runs everywhere), numbers", "with `--data DIR`"), rows)


def data_table() -> str:
    """Where the data sets of the papers come from, and where they belong, from the catalogue."""
    rows = []
    for known in KNOWN:
        if known.tier == "embedded":
            continue
        title, site = known.title, WORDS["sites"].get(known.title)
        papers = [
            form.format(words["short"])
            for words in WORDS["papers"].values()
            for key, form in (("data", "{}"), ("stand_in", "({})"), ("unused", "{}, no rows yet"))
            if title in words.get(key, ())
        ]
        places = " or ".join(f"`{place}`" for place in known.places)
        rows.append(
            (
                f"[{title}]({site})" if site else title,
                ", ".join(papers) or "no rows yet",
                places,
                known.licence,
                known.source,
            )
        )
    return _table(("data set", "of", "in `DIR`", "licence", "after"), rows)


def written(text: str) -> str:
    """README's text with every table as the code has it now.

    Raises:
        ValueError: a place is missing.
    """
    for name, table in (("solvers", solver_table()), ("papers", paper_table()), ("data sets", data_table())):
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if len(place.findall(text)) != 1:
            raise ValueError(f"{README.name} must have one place <!-- {name} --> … <!-- /{name} -->")
        text = place.sub(lambda found, table=table: f"{found[1]}{table}{found[2]}", text)
    return text


def _joined(between: str, *parts: str) -> str:
    return between.join(part for part in parts if part)


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    write_atomically(README, written(README.read_text()))
