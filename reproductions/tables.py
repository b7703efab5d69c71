"""Tables on disk as text that is whole and of today's schema, or a sentence on why it is not."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from reproductions import PAPERS, UserError

COLUMNS = [
    "paper", "table", "row", "column", "metric", "unit", "tier", "data", "solver", "settings", "measured", "ci_low",
    "ci_high", "n", "published", "published_ci", "tolerance", "verdict", "reason", "seconds", "run",
]  # fmt: skip
NUMBERS = ("measured", "ci_low", "ci_high", "published", "published_ci", "tolerance", "seconds")
KEY = ("paper", "table", "row", "column", "measured")
"""The columns by which a table is known, of whatever schema."""
LATER = ("published_ci", "tolerance", "reason", "seconds", "run")
"""Columns that tables of the first schema may lack; there they are empty."""


class BrokenTable(UserError):
    """A table that is half-written or otherwise damaged."""


def table_text(content: bytes, name: str | Path) -> str:
    """The csv text of a table in today's columns; a table of an older schema gets those it lacks.

    Args:
        content: of the file.
        name: of the file, for the message.

    Raises:
        BrokenTable: no table, half a line, a number that is none.
        UserError: it is of a newer schema.
    """
    try:
        text = content.decode()
        rows = list(csv.reader(io.StringIO(text), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BrokenTable(f"{name} is damaged ({error})") from None
    header = rows[0] if rows else []
    if not set(KEY) <= set(header) or len(set(header)) < len(header):
        raise BrokenTable(f"{name} is damaged: it does not begin with the columns of a table")
    if unknown := [column for column in header if column not in COLUMNS]:
        raise UserError(
            f"{name} is of a newer schema, its column {unknown[0]!r} is not known: use the version that wrote it"
        )
    if missing := [column for column in COLUMNS if column not in (*header, *LATER)]:
        raise BrokenTable(f"{name} is damaged: it lacks the column {missing[0]!r}")
    if not text.endswith("\n"):
        raise BrokenTable(f"{name} is damaged: its last line is not whole")
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            raise BrokenTable(f"{name} is damaged: row {number} has {len(row)} cells, and the header {len(header)}")
        _check_numbers(dict(zip(header, row, strict=True)), f"{name} is damaged: row {number}")
    if header == COLUMNS:
        return text
    migrated = io.StringIO()
    writer = csv.DictWriter(migrated, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(dict(zip(header, row, strict=True)) for row in rows[1:])
    return migrated.getvalue()


def table_texts(results: Path) -> dict[Path, str]:
    """The text of every table below a folder of results; other csv files are not of papers and are left out.

    Raises:
        UserError: a table that is damaged, or of a newer schema.
    """
    found = {}
    for path in sorted(results.glob("*/*.csv")):
        content = path.read_bytes()
        if path.parent.name in PAPERS or content.startswith(b"paper,table,"):
            try:
                found[path] = table_text(content, path)
            except BrokenTable as error:
                raise BrokenTable(
                    f"{error}; matchmark reproduce {path.parent.name} makes it again and keeps this one beside it"
                ) from None
    return found


def set_aside_if_broken(path: Path) -> str | None:
    """Rename a damaged table to ``<name>.csv.damaged``, or the next such name that is free; say so.

    Raises:
        UserError: the table is of a newer schema.
    """
    try:
        table_text(path.read_bytes(), path)
    except FileNotFoundError:
        return None
    except BrokenTable as error:
        number, place = 1, path.with_name(f"{path.name}.damaged")
        while place.exists():
            number += 1
            place = path.with_name(f"{path.name}.damaged-{number}")
        path.rename(place)
        return f"{error}; it is kept as {place.name}, and the table is made again"
    return None


def _check_numbers(row: dict[str, str], beginning: str) -> None:
    for column in ("n", *NUMBERS):
        cell = row.get(column, "")
        try:
            if cell:
                int(cell) if column == "n" else float(cell)
        except ValueError:
            raise BrokenTable(f"{beginning} has {cell!r} as {column}, which is no number") from None
