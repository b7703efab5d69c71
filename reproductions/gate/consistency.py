"""What holds in any table, whatever the reference says: no bound above its value, no number where none can be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from reproductions.gate.findings import Finding, failure
from reproductions.gate.reading import Record, Table, number
from reproductions.gate.tables import title
from reproductions.metrics import METRICS

WRITTEN = 2e-6
"""Two numbers of a table are each rounded to six digits behind the point."""
OUTCOME = ("row", "solver", "settings", "tier", "data")
"""What the numbers of one outcome have in common, also where its cost and its bound stand in two tables."""


def inconsistent(tables: Sequence[Table]) -> list[Finding]:
    """What is wrong within the tables of one paper."""
    found = [
        failure(table.group, title(row), "inconsistent", sentence, number(row["measured"]))
        for table in tables
        for row in table.rows.values()
        for sentence in _wrong(table, row)
    ]
    return found + list(_bounds_above_values(tables))


def _wrong(table: Table, row: Record) -> Iterator[str]:
    if table.path != f"{row['paper']}/{row['table']}.csv":
        yield f"a row of {row['paper']}/{row['table']}.csv"
    measured, low, high, n = (number(row[name]) for name in ("measured", "ci_low", "ci_high", "n"))
    if measured is None:
        if row["verdict"] != "not run":
            yield f"the verdict is {row['verdict']!r}, and nothing was measured"
        return
    if row["verdict"] == "not run":
        yield "the verdict is 'not run', and a number was measured"
    if not math.isfinite(measured):
        yield f"the measured number is {measured}"
        return
    least, most = METRICS[row["metric"]].limits
    if not least - WRITTEN <= measured <= most + WRITTEN:
        yield f"{row['metric']} of {measured:g} lies outside {least:g} … {most:g}"
    if low is None or high is None or not low <= high:
        yield f"its interval is {row['ci_low'] or '–'} … {row['ci_high'] or '–'}"
    if n is None or not n >= 1:
        yield f"measured on {row['n'] or 'no number of'} samples"


def _bounds_above_values(tables: Sequence[Table]) -> Iterator[Finding]:
    costs: dict[tuple[str, ...], float] = {}
    for _, row, cost in _of("matching_cost", tables):
        outcome = tuple(row[name] for name in OUTCOME)
        costs[outcome] = min(cost, costs.get(outcome, math.inf))
    for table, row, bound in _of("matching_bound", tables):
        cost = costs.get(tuple(row[name] for name in OUTCOME), math.inf)
        if bound > cost + WRITTEN:
            yield failure(table.group, title(row), "inconsistent", f"the bound {bound:g} is above the value {cost:g}")


def _of(metric: str, tables: Sequence[Table]) -> Iterable[tuple[Table, Record, float]]:
    for table in tables:
        for row in table.rows.values():
            value = number(row["measured"])
            if row["metric"] == metric and value is not None:
                yield table, row, value
