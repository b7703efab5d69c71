"""Tables read strictly: a csv file is whole, or it is refused with one sentence that names it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from reproductions import UserError

Record = dict[str, str]


class Unreadable(UserError):
    """A file that is half-written, damaged or of another kind; the sentence says which and where."""


@dataclass(frozen=True)
class Table:
    """A csv file of the results folder: its path below it, and its rows by what tells them apart."""

    path: str
    rows: dict[tuple[str, ...], Record]

    @property
    def group(self) -> str:
        return group(self.path)


def group(path: str) -> str:
    """What the findings of a file are gathered under: ``deepemd / solvers`` for ``deepemd/solvers.csv``."""
    return " / ".join(path.removesuffix(".csv").split("/"))


def records(path: str, content: bytes) -> list[Record]:
    """The rows of a csv file with one header line: a text, perhaps empty, for every column.

    Raises:
        Unreadable: no header, a row with too few or too many fields, no line break at the end, not UTF-8.
    """
    try:
        text = content.decode()
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise Unreadable(f"{path} is damaged, {error}: {MEND}") from None
    if not lines:
        raise Unreadable(f"{path} is empty: {MEND}")
    header = lines[0]
    for k, line in enumerate(lines[1:], start=1):
        if len(line) != len(header):
            raise Unreadable(f"{path} is damaged, row {k} has {len(line)} fields for {len(header)} columns: {MEND}")
    if not text.endswith("\n"):
        raise Unreadable(f"{path} is half-written, its last line has no end: {MEND}")
    return [dict(zip(header, line, strict=True)) for line in lines[1:]]


MEND = "make it again, or restore it"


def table(path: str, found: Sequence[Record], key: Sequence[str], numbers: Sequence[str]) -> Table:
    """The rows by their key, with every number checked to be one (or empty).

    Raises:
        Unreadable: two rows have the same key, or what should be a number is none.
    """
    rows: dict[tuple[str, ...], Record] = {}
    for k, row in enumerate(found, start=1):
        name = tuple(row[column] for column in key)
        if name in rows:
            raise Unreadable(f"{path} is damaged, row {k} is there twice ({', '.join(filter(None, name))}): {MEND}")
        for column in numbers:
            try:
                number(row[column])
            except ValueError:
                raise Unreadable(f"{path} is damaged, {column} of row {k} is no number: {row[column]!r}") from None
        rows[name] = row
    return Table(path, rows)


def number(text: str) -> float | None:
    """The number that a cell holds, None where it is empty; it may be NaN or infinite."""
    return float(text) if text else None
