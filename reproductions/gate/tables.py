"""The papers' tables against the reference: every measured number by its metric's direction and tolerance."""

from __future__ import annotations

import math

from reproductions.gate.findings import Finding, change, failure
from reproductions.gate.reading import Record, Table, Unreadable, number, records, table
from reproductions.metrics import METRICS
from reproductions.tables import NUMBERS, BrokenTable, table_text

KEY = ("row", "column", "tier", "data")
MOST = 2.5
"""The widest tolerance in points. Three points are an effect: however far the runs of a row spread, such a drop is
shown, and a new reference is committed where it is only that networks were trained again with other libraries."""
PROBLEMS = 20
"""From so many on, one problem more or less that is solved in its time is what a busy machine does."""


def paper_table(path: str, content: bytes) -> Table:
    """A table of a paper, of today's schema or an older one.

    Raises:
        Unreadable: it is damaged, or has a metric that is not known.
        UserError: it is of a newer schema.
    """
    try:
        found = records(path, table_text(content, path).encode())
    except BrokenTable as error:
        raise Unreadable(str(error)) from None
    read = table(path, found, KEY, (*NUMBERS, "n"))
    if unknown := {row["metric"] for row in found} - set(METRICS):
        raise Unreadable(f"{path} has metrics that are not known: {', '.join(sorted(unknown))}")
    return read


def compared(now: Table, reference: Table) -> list[Finding]:
    """What became of every measured number of the reference, and which numbers are new."""
    found = []
    for key, old in reference.rows.items():
        before = number(old["measured"])
        if before is None or not math.isfinite(before):
            continue
        new = now.rows.get(key)
        if new is None:
            found.append(failure(now.group, title(old), "missing", "the row vanished", before))
        elif number(new["measured"]) is None and new["reason"]:
            found.append(failure(now.group, title(old), "missing", f"{new['verdict']}: {new['reason']}", before))
        else:
            found.append(_changed(now.group, before, old, new))
    for key, new in now.rows.items():
        after, earlier = number(new["measured"]), reference.rows.get(key)
        if after is not None and (earlier is None or number(earlier["measured"]) is None):
            found.append(Finding(now.group, title(new), "new", True, "not in the reference", None, after))
    return found


def _changed(group: str, before: float, old: Record, new: Record) -> Finding:
    metric, after = METRICS[old["metric"]], number(new["measured"])
    if new["metric"] != old["metric"]:
        return failure(group, title(old), "inconsistent", f"was {old['metric']}, is {new['metric']}", before)
    slack = tolerance(old)
    n = number(old["n"]) or 0.0
    if metric.counted and after is not None and n >= PROBLEMS and math.isclose(before - after, 100 / n, abs_tol=1e-4):
        slack = max(slack, 100 / n)
    unit = "points" if metric.unit == "percent" else metric.unit  # of a difference
    return change(group, title(old), before, after, slack, metric.direction == "higher", unit)


def tolerance(row: Record) -> float:
    """How much worse the number of a row of the reference may get."""
    metric = METRICS[row["metric"]]
    low, high = number(row["ci_low"]), number(row["ci_high"])
    if metric.interval != "student" or low is None or high is None:
        return metric.gate_tolerance
    return max(metric.gate_tolerance, min((high - low) / 2, MOST))


def title(row: Record) -> str:
    """The row as findings name it."""
    data = "" if row["tier"] == "embedded" else f" ({row['data']})"
    return f"{row['row']}, {row['column']}{data}"
