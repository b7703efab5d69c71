"""The solvers' side of the page: the study's tables, asv's newest result, and every certificate there is.

All are lists: ``columns`` by name, and ``rows`` of cells. A cell is a text, or (text, number) where rows can be ordered
by the number.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from reproductions.report_page.figures import Figure, embedded

Cell = str | tuple[str, float]
NOTHING = "–"
TASK = ("what", "size", "dtype", "weights", "reg", "iterations", "tolerance", "threads")
ERRORS = ("marginal_error", "value_error", "gradient_error")
REACHED = 1e-6  # of the best value known, relative
TITLES = {
    "sinkhorn": "Sinkhorn: time to a plan",
    "sinkhorn_accuracy": "Sinkhorn: accuracy against time",
    "sinkhorn_gradient": "Sinkhorn: plan with gradient",
    "gpu_sinkhorn": "Sinkhorn on a GPU",
    "emd": "Exact transport",
    "conditional_transport": "Conditional transport",
    "gromov_wasserstein": "Gromov–Wasserstein",
    "quadratic_assignment": "Quadratic assignment in equal time",
    "quadratic_proofs": "Quadratic assignment: proofs in a minute",
    "quadratic_proofs_long": "Quadratic assignment: proofs in ten minutes",
}


@dataclass(frozen=True)
class Listing:
    """A list of the page, with the figure beside it."""

    name: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: list[list[Cell]]
    figure: Figure | None = None


def seconds(x: Any) -> Cell:
    """A time for reading, from nanoseconds to hours."""
    if not _is_number(x):
        return NOTHING
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(x) >= size or unit == "µs":
            return f"{x / size:.3g} {unit}", float(x)
    raise AssertionError


def number(x: Any, form: str = ".3g") -> Cell:
    """A number for reading, a dash where there is none."""
    return (f"{x:{form}}", float(x)) if _is_number(x) else NOTHING


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and math.isfinite(x)


def study(results: Path) -> list[Listing]:
    """The tables of ``benchmarks.study`` and ``benchmarks.quadratic_study``; none where they are not on disk."""
    found = []
    for name, title in TITLES.items():
        path = results / "benchmarks" / f"{name}.csv"
        try:
            frame = pd.read_csv(path)
        except (OSError, ValueError):
            continue
        figure = embedded(path.with_suffix(".png"), f"{title}: the numbers of the list below")
        if {"wall_median", *TASK} <= set(frame.columns):
            found.append(Listing(name, title, _times_note(frame), *_times(frame), figure))
        elif {"value_gap", "proven"} <= set(frame.columns):
            found.append(Listing(name, title, "", *_by_solver(frame), figure))
    return found


def _times_note(frame: pd.DataFrame) -> str:
    ours = frame[(frame["library"] == "matchmark") & frame["ratio_to_fastest_peer"].notna()]
    if ours.empty:
        return ""
    best = ours.groupby([c for c in TASK if c in ours], dropna=False)["ratio_to_fastest_peer"].min()
    return (
        f"On {int((best < 1).sum())} of {len(best)} tasks ours is faster than the fastest peer; the median ratio of "
        f"the times is {best.median():.2f} (below 1: ours is faster)."
    )


def _times(frame: pd.DataFrame) -> tuple[tuple[str, ...], list[list[Cell]]]:
    errors = [e for e in ERRORS if frame[e].notna().any()]
    columns = (
        *("task", "size", "precision", "threads", "solver", "library", "time", "to the fastest peer"),
        *(e.replace("_", " ") for e in errors),
        "status",
    )
    rows = [
        [
            _task(r["what"], r["reg"], r["iterations"], r["tolerance"]),
            str(r["size"]),
            str(r["dtype"]),
            number(r["threads"], ".0f"),
            str(r["solver"]),
            str(r["library"]),
            seconds(r["wall_median"]),
            number(r["ratio_to_fastest_peer"]),
            *(number(r[e], ".1e") for e in errors),
            str(r["status"]) if r["status"] == "ok" or pd.isna(r["reason"]) else f"{r['status']}: {r['reason']}",
        ]
        for r in frame.to_dict("records")
    ]
    return columns, rows


def _task(what: str, reg: float, iterations: float, tolerance: float) -> str:
    parts = {"ε {:g}": reg, "{:g} iterations": iterations, "to {:g}": tolerance}
    return ", ".join([what, *(form.format(x) for form, x in parts.items() if _is_number(x))])


def _by_solver(frame: pd.DataFrame) -> tuple[tuple[str, ...], list[list[Cell]]]:
    """One row a solver over all instances that it was given."""
    columns = ("solver", "library", "instances", "best value reached", "median gap of values", "proven", "median time")
    rows: list[list[Cell]] = []
    for (solver, library), part in frame.groupby(["solver", "library"], sort=False):
        gaps = part["value_gap"]
        rows.append(
            [
                str(solver),
                str(library),
                number(len(part), "d"),
                _percent((gaps <= REACHED).sum(), len(part)),
                number(100 * gaps.median()) if gaps.notna().any() else NOTHING,
                _percent((part["proven"].astype(str) == "True").sum(), len(part)),
                seconds(float(part["seconds"].median())),
            ]
        )
    return columns, rows


def _percent(count: int, of: int) -> Cell:
    return f"{100 * count / of:.0f} %", count / of


CERTIFIED = ("problem", "solver", "value", "lower bound", "gap (%)", "proven optimal", "time")


def certificates(results: Path, papers: dict[str, dict[str, pd.DataFrame]]) -> Listing | None:
    """Every outcome that has a lower bound: what was found, below what nothing is, and whether it is proven."""
    rows = [*_of_papers(papers), *_of_study(results)]
    note = (
        "The lower bound is recomputed in float64 by the independent referee from the solver's dual variables, or is "
        "that of a finished branch and bound. Of several problems the means are shown, and the share that is proven."
    )
    return Listing("certificates", "Value, lower bound and proof", note, CERTIFIED, rows) if rows else None


def _of_papers(papers: dict[str, dict[str, pd.DataFrame]]) -> Iterable[list[Cell]]:
    """Cost, bound, gap, proof and time of one outcome may stand in one table or in five."""
    keys = ["row", "solver", "settings", "tier", "data"]
    metrics = ["matching_cost", "matching_bound", "optimality_gap", "proven_optimal", "solve_time"]
    for tables in papers.values():
        frames = [t[t["measured"].notna() & t["metric"].isin(metrics)] for t in tables.values()]
        if not frames or (frame := pd.concat(frames)).empty:
            continue
        for key, part in frame.groupby(keys, sort=False):
            by = dict(zip(part["metric"], part["measured"].astype(float), strict=True))
            if "matching_bound" in by:
                row, solver, settings, _, data = map(str, key)
                yield [
                    f"{data}; {row} ({settings})",
                    solver,
                    number(by.get("matching_cost"), ".5f"),
                    number(by["matching_bound"], ".5f"),
                    number(by.get("optimality_gap"), ".2f"),
                    number(by.get("proven_optimal"), ".0f") if "proven_optimal" in by else NOTHING,
                    seconds(by.get("solve_time")),
                ]


def _of_study(results: Path) -> Iterable[list[Cell]]:
    for name in ("quadratic_proofs", "quadratic_proofs_long"):
        try:
            frame = pd.read_csv(results / "benchmarks" / f"{name}.csv")
        except (OSError, ValueError):
            continue
        for r in frame[frame["bound"].notna() & frame["value"].notna()].to_dict("records"):
            gap = 100 * (r["value"] - r["bound"]) / max(abs(r["value"]), 1e-12)
            proven: Cell = ("yes", 100.0) if str(r["proven"]) == "True" else ("no", 0.0)
            value, bound = number(r["value"], ".9g"), number(r["bound"], ".9g")
            yield [
                str(r["instance"]),
                str(r["solver"]),
                value,
                bound,
                number(gap, ".2f"),
                proven,
                seconds(r["seconds"]),
            ]


def newest_of_asv(results: Path) -> Listing | None:
    """Every number of asv's newest result; None where there is none that can be read."""
    try:
        about = json.loads((results / "asv" / "benchmarks.json").read_text())
        paths = [p for p in results.glob("asv/*/*.json") if p.name != "machine.json"]
        newest = max((json.loads(p.read_text()) for p in paths), key=lambda found: found["date"])
        rows = [row for name in newest["results"] for row in _of_benchmark(name, newest, about.get(name, {}))]
        where, commit = newest["params"], newest["commit_hash"][:8]
        machine = f"{where['machine']} ({where['num_cpu']} processors, {where['cpu']})"
        note = f"Commit {commit} on {machine}; lower is better."
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Listing("asv", "asv: the newest result", note, ("benchmark", "solver", "instance", "value", "unit"), rows)


def _of_benchmark(name: str, of: dict[str, Any], about: dict[str, Any]) -> Iterable[list[Cell]]:
    known = dict(zip(of["result_columns"], of["results"][name], strict=False))
    values, params = known.get("result") or [], known.get("params") or []
    names: Sequence[str] = about.get("param_names", [])
    unit = str(about.get("unit", ""))
    for chosen, value in zip(itertools.product(*params), values, strict=False):
        if not _is_number(value):
            continue  # skipped where it does not apply
        by = dict(zip(names, (str(c).strip("'") for c in chosen), strict=False))
        solver = by.pop("solver", NOTHING)
        cell = seconds(value) if unit == "seconds" else number(value)
        yield [name, solver, ", ".join(by.values()) or NOTHING, cell, unit]
