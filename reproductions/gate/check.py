"""All that the gate compares: the papers' tables, the study's, and the newest asv result."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TypeVar

from reproductions import UserError
from reproductions.gate import asv_results, consistency, study, tables
from reproductions.gate.files import Files, on_disk, reference
from reproductions.gate.findings import Finding, failure
from reproductions.gate.reading import Table, Unreadable, group


class Part(StrEnum):
    """A part of the results, and the option's value for it."""

    TABLES = "tables"
    STUDY = "study"
    ASV = "asv"


T = TypeVar("T")
STUDY = "benchmarks/"


def check(
    results: Path,
    against: str,
    parts: Collection[Part] = tuple(Part),
    asv: str | None = None,
    factor: float = asv_results.TIME,
) -> list[Finding]:
    """What became of every number of the reference, and what is wrong in the files on disk.

    Args:
        results: the folder of results.
        against: a folder of results, or a git revision of this one.
        parts: of the results, which are compared.
        asv: a file with a result of asv, or a commit that one was measured of, instead of the newest.
        factor: how many times slower a benchmark may be.

    Raises:
        UserError: there is no such folder, revision or asv result, the reference is damaged, or asv is not installed.
    """
    if not factor >= 1:
        raise UserError(f"a factor of times is a number from 1 on, not {factor:g}")
    now, then = on_disk(results), reference(results, against)
    found: list[Finding] = []
    try:
        if Part.TABLES in parts:
            found += _papers(now, then)
        if Part.STUDY in parts:
            found += _study(now, then)
        if Part.ASV in parts:
            found += _asv(now, then, asv, factor)
    except _Reference as error:
        raise UserError(f"the reference, {against}, cannot be used: {error}") from None
    return found


class _Reference(UserError):
    """What is wrong with the reference."""


def _papers(now: Files, then: Files) -> list[Finding]:
    read = tables.paper_table
    mine, theirs = (
        {p: c for p, c in files.items() if p.endswith(".csv") and not p.startswith(STUDY)} for files in (now, then)
    )
    readable, found = _read(mine, theirs, read, tables.compared)
    for paper in sorted({path.split("/")[0] for path in readable}):
        found += consistency.inconsistent([t for path, t in readable.items() if path.startswith(f"{paper}/")])
    return found


def _study(now: Files, then: Files) -> list[Finding]:
    mine, theirs = ({p: c for p, c in files.items() if p.startswith(STUDY)} for files in (now, then))
    readable, found = _read(mine, theirs, study.study_table, study.compared)
    return found + [f for table in readable.values() for f in study.inconsistent(table)]


def _read(
    mine: Files,
    theirs: Files,
    read: Callable[[str, bytes], Table],
    compare: Callable[[Table, Table], list[Finding]],
) -> tuple[dict[str, Table], list[Finding]]:
    """The tables on disk that can be read, and what became of those of the reference."""
    readable: dict[str, Table] = {}
    found: list[Finding] = []
    for path, content in mine.items():
        try:
            readable[path] = read(path, content)
        except Unreadable as error:
            found.append(failure(group(path), "the file", "unreadable", str(error)))
    for path, content in theirs.items():
        before = _referred(partial(read, path, content))
        if path in readable:
            found += compare(readable[path], before)
        elif path not in mine:
            found.append(failure(group(path), "the table", "missing", f"vanished, with {len(before.rows)} rows"))
    for path in set(readable) - set(theirs):
        found += compare(readable[path], Table(path, {}))
    return readable, found


def _asv(now: Files, then: Files, asv: str | None, factor: float) -> list[Finding]:
    try:
        path, content = _result(now, asv)
    except Unreadable as error:
        return [failure("asv", "the result", "unreadable", str(error))]
    machine = None if path is None else asv_results.machine_of(path)
    before = _referred(partial(asv_results.newest, then, machine=machine))
    if before is None:
        return [] if path is None else [Finding("asv", path, "new", True, "the reference has no result of asv")]
    if path is None:
        return [failure("asv", before, "missing", "there is no result of asv any more")]
    if content == then[before]:
        return [Finding("asv", path, "not compared", True, "the newest result of asv is the reference itself")]
    then_loaded = _referred(partial(asv_results.load, before, then[before]))
    try:
        loaded = asv_results.load(path, content)
    except Unreadable as error:
        return [failure("asv", path, "unreadable", str(error))]
    return asv_results.compared(loaded, then_loaded, factor)


def _result(now: Files, asv: str | None) -> tuple[str | None, bytes]:
    """The result of asv that is looked at: its path and content.

    Raises:
        UserError: the one that was asked for is not there.
        Unreadable: one of those on disk is damaged.
    """
    if asv is not None and Path(asv).is_file():
        return Path(asv).resolve().as_posix(), Path(asv).read_bytes()
    if asv is not None and not re.fullmatch("[0-9a-f]{4,40}", asv):
        raise UserError(f"--asv takes a file with a result of asv, or the hash of a commit, and {asv} is neither")
    path = asv_results.newest(now, asv)
    if path is None and asv is not None:
        raise UserError(f"there is no result of asv for the commit {asv}: asv run measures it")
    return path, b"" if path is None else now[path]


def _referred(read: Callable[[], T]) -> T:
    try:
        return read()
    except Unreadable as error:
        raise _Reference(str(error)) from None
