"""The tables of the study, ``benchmarks/*.csv``: values, bounds, gaps, proofs and errors; times are not compared.

All numbers are relative and lower is better, but for bounds. A gap or an error may not grow by more than one percentage
point, and an error not to more than its double either, above the noise of its precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from reproductions.gate.findings import Finding, change, failure
from reproductions.gate.reading import Record, Table, Unreadable, number, records, table

QUADRATIC = ("instance", "solver")
QUADRATIC_NUMBERS = ("value", "bound", "best", "value_gap", "bound_gap", "seconds")
CASE = ("table", "what", "size", "dtype", "weights", "reg", "iterations", "tolerance", "temperature", "threads")
ERRORS = ("marginal_error", "value_error", "gradient_error")
TIMES = ("wall_median", "wall_min", "cpu_median", "cpu_min")
POINT = 0.01
NOISE = {"float32": 1e-5, "float64": 1e-9}
WRITTEN = 1e-6
"""The tables have ten digits or five, and the solvers' own tolerances are of this size."""
DONE = ("OPTIMAL", "CONVERGED", "TIME_LIMIT", "ITERATION_LIMIT", "ok")
"""The statuses of a row with numbers."""


def study_table(path: str, content: bytes) -> Table:
    """A table of the study.

    Raises:
        Unreadable: it is damaged, or has the columns of neither kind.
    """
    found = records(path, content)
    columns = set(found[0]) if found else set()
    quadratic, timed = (QUADRATIC, QUADRATIC_NUMBERS), ((*CASE, "solver"), (*ERRORS, *TIMES))
    for key, numbers in (quadratic, timed):
        if {*key, *numbers, "status", "reason"} <= columns:
            return table(path, found, key, numbers)
    raise Unreadable(f"{path} has not the columns of a table of the study: {', '.join(sorted(columns)) or 'none'}")


def error_slack(before: float, share: float = 1.0) -> float:
    """By how much an error may grow: a share of itself, and never more than a percentage point, or its hundredth."""
    return min(share * before, POINT * max(1.0, before))


def compared(now: Table, reference: Table) -> list[Finding]:
    """What became of every number of the reference that speaks of quality, and which rows are new."""
    found: list[Finding] = []
    for key, old in reference.rows.items():
        name, new = _title(key), now.rows.get(key)
        if new is None:
            found.append(failure(now.group, name, "missing", "the row vanished"))
        elif old["status"] in DONE and new["status"] not in DONE:
            why = f"was {old['status']}, is {new['status']}: {new['reason'] or 'no reason is given'}"
            found.append(failure(now.group, name, "missing", why))
        else:
            found += _numbers(now.group, name, old, new)
    new_rows = [(key, row) for key, row in now.rows.items() if key not in reference.rows]
    found += [
        Finding(now.group, _title(key), "new", True, f"not in the reference: {r['status']}") for key, r in new_rows
    ]
    return found


def _numbers(group: str, name: str, old: Record, new: Record) -> Iterator[Finding]:
    for column, allowed, higher in _gated(old):
        before = number(old[column])
        if before is not None and math.isfinite(before):
            yield change(group, f"{name}, {column}", before, number(new[column]), allowed(before), higher)
    if old.get("proven") == "True" != new.get("proven"):
        yield failure(group, f"{name}, proven", "worse", "is no longer proven optimal")


def _gated(row: Record) -> list[tuple[str, Callable[[float], float], bool]]:
    """The columns that are compared, by how much each may get worse, and whether higher is better."""
    if "instance" in row:
        size = max(1.0, abs(number(row["best"]) or 0.0))
        gaps = [(column, lambda x: POINT, False) for column in ("value_gap", "bound_gap")]
        return [("value", lambda x: POINT * size, False), ("bound", lambda x: POINT * size, True), *gaps]
    noise = NOISE[row["dtype"]]
    return [(column, lambda x: error_slack(x) + noise, False) for column in ERRORS]


def inconsistent(now: Table) -> list[Finding]:
    """What is wrong within a table, whatever the reference."""
    return [
        failure(now.group, _title(key), "inconsistent", sentence)
        for key, row in now.rows.items()
        for sentence in _wrong(row)
    ]


def _wrong(row: Record) -> Iterator[str]:
    columns = QUADRATIC_NUMBERS if "instance" in row else (*ERRORS, *TIMES)
    numbers = {c: x for c in columns if (x := number(row[c])) is not None}
    for column, x in numbers.items():
        if not math.isfinite(x):
            yield f"{column} is {row[column]}"
        elif column not in ("value", "bound", "best") and x < 0:
            yield f"{column} is negative: {x:g}"
    value, bound, best = (numbers.get(c, math.nan) for c in ("value", "bound", "best"))
    slack = WRITTEN * max(1.0, abs(value))
    if bound > value + slack:
        yield f"the bound {bound:g} is above the value {value:g}"
    if best > value + slack:
        yield f"the value {value:g} is below the best known, {best:g}"
    if row.get("proven") == "True" and not abs(value - bound) <= slack:
        yield f"is called proven with the value {value:g} and the bound {row['bound'] or '–'}"
    if row["status"] in DONE and not set(numbers) - {"seconds", "best"}:
        yield f"has the status {row['status']} and no number"


def _title(key: tuple[str, ...]) -> str:
    return ", ".join(filter(None, key))
