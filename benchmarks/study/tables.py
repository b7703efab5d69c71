"""What people read of the study: its tables as csv and markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from benchmarks.study.cases import TABLES

CASE = ["table", "what", "size", "dtype", "weights", "reg", "iterations", "tolerance", "temperature", "threads"]
ERRORS = ["marginal_error", "value_error", "gradient_error"]
COLUMNS = [
    *CASE, "solver", "library", "version", "kind", "status", "reason", "repetitions",
    "wall_median", "wall_min", "wall_iqr", "cpu_median", "cpu_min", *ERRORS,
    "ratio_to_fastest_peer", "ratio_to_fastest_log_peer", "measured",
]  # fmt: skip


def frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The rows with the columns ``COLUMNS``; seconds and relative errors are numbers, absent ones are empty.

    A ratio is the median wall time of a row over that of the fastest peer (not ours) with status "ok" in the same case
    and with as many threads: below 1 where the row is faster. ``ratio_to_fastest_log_peer`` compares with the peers of
    the log domain only.
    """
    table = pd.DataFrame(rows, columns=COLUMNS)
    peer = (table["status"] == "ok") & (table["library"] != "matchmark")
    for column, among in (
        ("ratio_to_fastest_peer", peer),
        ("ratio_to_fastest_log_peer", peer & (table["kind"] == "log")),
    ):
        table["fastest"] = table["wall_median"].where(among).astype(float)
        fastest = table.groupby(CASE, dropna=False)["fastest"].transform("min")
        table[column] = table["wall_median"].astype(float) / fastest
    return table[COLUMNS]


def csv(table: pd.DataFrame) -> str:
    """One row a contender and case, five significant digits."""
    return table.to_csv(index=False, lineterminator="\n", float_format="%.5g")


def markdown(name: str, table: pd.DataFrame, machine: str) -> str:
    """The table for reading: a section a case, the fastest first, then what has no time and what was left out."""
    spec = TABLES[name]
    lines = [f"# {spec.title}", spec.note, f"Measured on {machine}. {READING}"]
    curve = name == "sinkhorn_accuracy"
    for _, rows in table.groupby([c for c in CASE if not (curve and c == "iterations")], dropna=False, sort=False):
        lines += [f"## {heading(rows)}", _curves(rows) if curve else _section(rows)]
    if (without := table[table["wall_median"].isna()]).size:
        lines += ["## Without a time", _reasons(without)]
    if spec.left_out:
        lines += ["## Left out", "\n".join(f"- {what}: {why}." for what, why in spec.left_out.items())]
    return "\n\n".join(lines) + "\n"


READING = (
    "Seconds of wall time, from arrays to the answer: the median over 9 repetitions (from 3 on for what takes "
    "seconds; their number is in the csv), in which all solvers take turns, with its interquartile range, the minimum, "
    "and the median CPU time, compilation excluded. Ours (in bold) include their checks of input and answer. Ratios "
    "are of medians; below 1 is faster than the fastest peer."
)


def heading(rows: pd.DataFrame) -> str:
    """What the rows of a section have in common."""
    case = rows.iloc[0]
    words = [case["size"].replace("x", " × "), case["what"]]
    if not pd.isna(case["reg"]):
        words.append(f"ε = {case['reg']:g}")
    if not pd.isna(case["tolerance"]):
        words.append(f"to a marginal error of {case['tolerance']:g}")
    elif rows["iterations"].nunique() == 1:
        words.append(f"{case['iterations']:g} iterations")
    words.append(case["dtype"])
    if case["table"] == "emd":
        words.append(f"{case['weights']} weights")
    return ", ".join([*words, "1 thread" if case["threads"] == 1 else f"{case['threads']} threads"])


def _section(rows: pd.DataFrame) -> str:
    timed = rows[rows["wall_median"].notna()].sort_values("wall_median")
    if timed.empty:
        return "Nothing was timed; the reasons are below."
    shown = pd.DataFrame(
        {
            "solver": _names(timed),
            "kind": timed["kind"],
            "median": [f"{m:.3g} ± {i:.1g}" for m, i in zip(timed["wall_median"], timed["wall_iqr"], strict=True)],
            "minimum": timed["wall_min"].map("{:.3g}".format),
            "CPU": timed["cpu_median"].map("{:.3g}".format),
            "to the fastest peer": timed["ratio_to_fastest_peer"].map(lambda r: _or_dash("{:.2f}", r)),
            "to the fastest log-domain peer": timed["ratio_to_fastest_log_peer"].map(lambda r: _or_dash("{:.2f}", r)),
            **{e.replace("_", " "): timed[e].map(lambda x: _or_dash("{:.1e}", x)) for e in ERRORS},
            "but": timed["reason"],
        }
    )
    empty = [column for column in shown if shown[column].isin(("–", "")).all()]
    return shown.drop(columns=empty).to_markdown(index=False, disable_numparse=True)


def _curves(rows: pd.DataFrame) -> str:
    """A line a solver, a column a number of iterations: milliseconds, marginal error, value error."""
    rows = rows[rows["status"] != "not run"]
    cells = [
        row["status"]
        if pd.isna(row["wall_median"])
        else f"{1e3 * row['wall_median']:.3g} ms, {row['marginal_error']:.0e}, {row['value_error']:.0e}"
        for _, row in rows.iterrows()
    ]
    shown = pd.DataFrame({"solver": _names(rows), "iterations": rows["iterations"], "cell": cells})
    columns = {k: "time, marginal error, value error" if pd.isna(k) else f"{k:g}" for k in shown["iterations"].unique()}
    wide = pd.DataFrame(index=shown["solver"].unique())
    for k, title in columns.items():
        of_k = shown["iterations"].isna() if pd.isna(k) else shown["iterations"] == k
        wide[title] = shown[of_k].set_index("solver")["cell"]
    return wide.rename_axis("solver").reset_index().to_markdown(index=False, disable_numparse=True)


def _names(rows: pd.DataFrame) -> list[str]:
    ours = rows["library"] == "matchmark"
    return [f"**{name}**" if own else name for name, own in zip(rows["solver"], ours, strict=True)]


def _or_dash(form: str, number: float) -> str:
    return "–" if pd.isna(number) else form.format(number)


def _reasons(without: pd.DataFrame) -> str:
    """Every reason once, with the instances it is for."""
    lines = []
    for (solver, status, reason), rows in without.groupby(["solver", "status", "reason"], sort=False):
        sizes = ", ".join(rows["size"].unique())
        regs = "" if without["reg"].nunique() < 2 else f"; ε = {', '.join(f'{r:g}' for r in rows['reg'].unique())}"
        lines.append(f"- {solver}: {status}, {reason} ({sizes}{regs}).")
    return "\n".join(lines)
