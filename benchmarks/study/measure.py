"""How the study measures: the process of one thread count, which reads cases and writes their rows.

Started by the command as ``python -m benchmarks.study.measure``, with the cases as a JSON list on standard input; the
rows of each case go to standard output, one line of JSON a case. A row holds medians over repetitions; a run of every
contender comes before the next run of the first, so that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import warnings
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.contenders import Call, Contender
from benchmarks.study.cases import TABLES, Case, instance

PAUSE = 0.02  # seconds between two runs, in which the idle threads of the last one fall asleep
FEWEST, PATIENCE = 3, 4.0  # runs of a call that has taken so many seconds in all
SLACK = 1.5  # a tolerance is met within this factor: the rest is rounding, and the 2-norms some contenders stop on

Row = dict[str, Any]


def measured(case: Case) -> list[Row]:
    """The rows of a case, one a contender, those that were not timed with the reason in their place."""
    table = TABLES[case.table]
    rows, calls = [], {}
    for name, contender in table.contenders[case.what].items():
        row = _described(case, name, contender)
        try:
            calls[name] = _judged(case, contender, row)
        except NotImplementedError as error:
            row |= {"status": "not run", "reason": str(error)}
        except FloatingPointError:
            row |= {"status": "overflow", "reason": "the answer holds NaN or infinity"}
        except Exception as error:  # a peer may fail in any way, and the others are still to be measured
            row |= {"status": "failed", "reason": f"{type(error).__name__}: {error}".partition("\n")[0]}
        rows.append(row)
    times = _interleaved(calls, case.repetitions)
    for row in rows:
        row |= _statistics(*times[row["solver"]]) if row["solver"] in times else {}
    return rows


def _judged(case: Case, contender: Contender, row: Row) -> Call:
    """The call to be timed, after a run of it that compiles what is to be compiled and whose errors go to the row."""
    call = contender.prepared(instance(case), **case.task)
    errors = TABLES[case.table].judge(case, common.finite(call()))
    if not np.isfinite(list(errors.values())).all():
        raise FloatingPointError
    row |= {name: float(value) for name, value in errors.items()}
    tolerance = case.task.get("tolerance")
    if tolerance is not None and row["marginal_error"] > SLACK * tolerance:
        row |= {"status": "missed", "reason": f"the tolerance was not met in {case.task['iterations']:g} iterations"}
    else:
        row |= {"status": "ok", "reason": ""}
    return call


def _interleaved(calls: dict[str, Call], repetitions: int) -> dict[str, tuple[list[float], list[float]]]:
    """Wall and CPU seconds of every call; each round starts with another one. Slow calls sit out the last rounds."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in calls}
    names = list(calls)
    for k in range(repetitions):
        gc.collect()
        shift = k % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            if len(times[name][0]) >= FEWEST and sum(times[name][0]) > PATIENCE:
                continue
            time.sleep(PAUSE)
            gc.disable()
            wall, cpu = time.perf_counter(), time.process_time()
            answer = calls[name]()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            gc.enable()
            del answer  # it is freed outside the time
            times[name][0].append(wall)
            times[name][1].append(cpu)
    return times


def _described(case: Case, name: str, contender: Contender) -> Row:
    try:
        release = version(contender.library)
    except PackageNotFoundError:
        release = "not installed"
    task = {name: case.task.get(name) for name in ("reg", "iterations", "tolerance", "temperature")}
    return {
        "table": case.table,
        "what": case.what,
        "size": case.size,
        "dtype": case.dtype,
        "weights": case.weights,
        **task,
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "solver": name,
        "library": contender.library,
        "version": release,
        "kind": contender.kind,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _statistics(wall: list[float], cpu: list[float]) -> Row:
    quarter, median, three = np.percentile(wall, [25, 50, 75])
    return {
        "repetitions": len(wall),
        "wall_median": median,
        "wall_min": min(wall),
        "wall_iqr": three - quarter,
        "cpu_median": float(np.median(cpu)),
        "cpu_min": min(cpu),
    }


def _bind(threads: int) -> None:
    """Keep this process to as many processors as it may use threads: not every library can be told."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def main() -> None:
    """Read cases, write rows."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the rows
    _bind(int(os.environ["OMP_NUM_THREADS"]))
    warnings.simplefilter("ignore")  # peers warn of overflow and of limits; the errors of their answers say it
    for case in (Case(**fields) for fields in json.load(sys.stdin)):
        print(json.dumps(measured(case), allow_nan=False), file=answers, flush=True)


if __name__ == "__main__":
    main()
