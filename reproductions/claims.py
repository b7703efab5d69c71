"""Claims: every published number as data, with its paper version, table, protocol, source and tolerance."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Claim(_Strict):
    """One published number. ``interval`` is the published half-width; None where none was printed."""

    paper: str
    version: str
    table: str
    row: str
    column: str
    metric: str
    unit: str
    direction: Literal["higher", "lower"]
    value: float
    interval: float | None
    data: str
    protocol: str
    source: str
    tolerance: float
    tolerance_reason: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.table, self.row, self.column


class _Cell(_Strict):
    row: str
    column: str
    value: float
    interval: float | None = None
    version: str | None = None
    source: str | None = None
    tolerance: float | None = None


class _Table(_Strict):
    """One published table: what its numbers share, and its cells.

    A cell may name another version, source or tolerance (where a figure is harder to read).
    """

    id: str
    title: str
    version: str
    metric: str
    unit: str
    direction: Literal["higher", "lower"]
    data: str
    protocol: str
    source: str
    tolerance: float
    tolerance_reason: str
    cells: list[_Cell]


class Paper(_Strict):
    """A paper and everything it claims that is reproduced or could be.

    Attributes:
        needs: what its own data sets take, besides an embedded run.
        options: of ``matchmark reproduce``, with which they run.
        not_run: rows that no command here runs: reason → names.
        titles: of tables that the paper has not: name → title.
    """

    name: str
    title: str
    authors: str
    link: str
    needs: str
    options: str = "--data DIR"
    not_run: dict[str, list[str]] = {}
    titles: dict[str, str] = {}
    table: list[_Table]

    @property
    def claims(self) -> tuple[Claim, ...]:
        shared = ("metric", "unit", "direction", "data", "protocol", "tolerance_reason")
        return tuple(
            Claim(
                paper=self.name,
                table=t.id,
                row=c.row,
                column=c.column,
                value=c.value,
                interval=c.interval,
                version=c.version or t.version,
                source=c.source or t.source,
                tolerance=t.tolerance if c.tolerance is None else c.tolerance,
                **{name: getattr(t, name) for name in shared},
            )
            for t in self.table
            for c in t.cells
        )

    def why_not_run(self, claim: Claim) -> str:
        """Why no number of ours stands beside this one."""
        needed = f"needs {self.needs}: matchmark reproduce {self.name} {self.options}"
        return next((reason for reason, rows in self.not_run.items() if claim.row in rows), needed)

    def title_of(self, table: str) -> str:
        """What stands above that table, measured or published."""
        published = {t.id: t.title for t in self.table}
        return self.titles.get(table) or published.get(table) or table.replace("_", " ").capitalize()

    def claim(self, table: str, row: str, column: str) -> Claim:
        """The claim of that cell; KeyError when the paper makes none."""
        return {c.key: c for c in self.claims}[table, row, column]


@cache
def load_paper(name: str) -> Paper:
    """The claims of ``reproductions/<name>/claims.toml``.

    Raises:
        ValueError: the file breaks the schema, two claims share a cell, or a row that is not run has no claim.
    """
    path = Path(__file__).parent / name / "claims.toml"
    try:
        paper = Paper.model_validate(tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ValueError(f"{path.name} of {name} is not valid: {error}") from error
    keys = [c.key for c in paper.claims]
    if twice := {k for k in keys if keys.count(k) > 1}:
        raise ValueError(f"{path.name} of {name} claims these cells twice: {sorted(twice)}")
    if unknown := {row for rows in paper.not_run.values() for row in rows} - {c.row for c in paper.claims}:
        raise ValueError(
            f"{path.name} of {name} says of rows it does not claim that they are not run: {sorted(unknown)}"
        )
    return paper
