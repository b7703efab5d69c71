"""``matchmark check``: what the gate found, the worst first, on the screen and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from reproductions import UserError
from reproductions.console import RESULTS, ResultsOption, out
from reproductions.gate.asv_results import TIME
from reproductions.gate.check import Part, check
from reproductions.gate.findings import Finding, counts, grouped, record
from reproductions.storage import write_atomically


def check_(
    results: ResultsOption = RESULTS,
    against: Annotated[
        str, typer.Option("--against", help="Git revision or folder with the reference results.")
    ] = "HEAD",
    only: Annotated[
        list[Part] | None, typer.Option("--only", help="A part that is compared; can be repeated. Default: all.")
    ] = None,
    asv: Annotated[
        str | None, typer.Option("--asv", help="A result of asv: its file, or its commit. Default: the newest.")
    ] = None,
    factor: Annotated[float, typer.Option("--factor", help="How many times slower a benchmark may be.")] = TIME,
    every: Annotated[bool, typer.Option("--all", help="Print unchanged numbers, too.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write what was found to this file.")] = None,
) -> None:
    """Compare tables and benchmarks with the committed ones; exit 1 when one is worse, missing or not finite."""
    if json_file is not None and json_file.is_dir():
        raise UserError(f"--json names a file, and {json_file} is a folder")
    parts = tuple(only or Part)
    findings = check(results, against, parts, asv, factor)
    compared = sum(f.compared for f in findings)
    passed = compared > 0 and all(f.passed for f in findings)
    for group, members in grouped(findings).items():
        shown = [f for f in members if every or f.moved]
        if shown:
            out.print(group, style="bold", markup=False, soft_wrap=True)
        for finding in shown:
            out.print(f"  {_line(finding)}", soft_wrap=True, markup=False)
    number = counts(findings)
    if not compared:
        out.print(f"FAIL nothing was compared: {against} has no measured number of {', '.join(parts)} that is on disk")
    words = [f"{number[kind]} {kind}" for kind in ("failed", *KINDS) if kind in number]
    out.print(f"{'ok' if passed else 'FAIL'}: {', '.join(words)}", soft_wrap=True)
    if json_file is not None:
        content = {"schema": 1, "passed": passed, "against": against, "parts": parts, "compared": compared}
        content |= {"counts": number, "findings": record(findings)}
        write_atomically(json_file, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if not passed:
        raise typer.Exit(1)


KINDS = (
    "missing", "not finite", "unreadable", "inconsistent", "worse", "better", "new", "not compared", "unchanged",
)  # fmt: skip


def _line(finding: Finding) -> str:
    numbers = [f"{x:.6g}" for x in (finding.reference, finding.measured) if x is not None]
    shown = f" {' → '.join(numbers)}," if numbers else ""
    return f"{'ok  ' if finding.passed else 'FAIL'} {finding.name}:{shown} {finding.sentence}"
