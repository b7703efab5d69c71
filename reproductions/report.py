"""What people read: tables as csv and markdown, and their figures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from reproductions.claims import Claim, Paper
from reproductions.metrics import METRICS
from reproductions.pictures import png
from reproductions.storage import write_atomically
from reproductions.tables import COLUMNS as COLUMNS
from reproductions.tables import NUMBERS, table_text, table_texts

WORDS = {"row": str, "column": str}  # though they may look like numbers
PANELS = 8  # columns that are drawn side by side
LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green and blue, roughly: some bars are too light for white letters


def write_tables(
    paper: Paper, records: Sequence[dict[str, Any]], claims: Sequence[Claim | None], folder: Path, draw: bool = True
) -> None:
    """``<table>.csv`` and ``<table>.md`` of every table, and ``<table>.png`` of those with measured rows.

    What a table on disk has from data that this run was not given, or from software it lacks, stays in it.

    Raises:
        UserError: a table on disk is damaged, or of a newer schema.

    Args:
        paper: whose tables they are.
        records: one row of a table each, with the keys ``COLUMNS``.
        claims: the published number beside each record, None where there is none.
        folder: where the files go.
        draw: the figures too; they take longer than the tables.
    """
    frame = pd.DataFrame(records, columns=COLUMNS).astype({"n": "Int64", **dict.fromkeys(NUMBERS, float)})
    for name, measured_now in frame.groupby("table", sort=False):
        table = _with_earlier(measured_now, folder / f"{name}.csv")
        cells = set(map(tuple, table[["table", "row", "column"]].to_numpy()))
        beside = [claims[k] for k in measured_now.index] + [c for c in paper.claims if c.key in cells]
        files: dict[Path, str | bytes] = {
            folder / f"{name}.csv": table.to_csv(index=False, lineterminator="\n"),
            folder / f"{name}.md": markdown(paper, str(name), table, beside),
        }
        if draw and table["measured"].notna().any():
            files[folder / f"{name}.png"] = figure(paper.title_of(str(name)), table)
        for path, content in files.items():
            write_atomically(path, content)


def _with_earlier(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The table with the measured rows on disk that this run could not measure; they replace those not run."""
    if not path.exists():
        return table
    text = io.StringIO(table_text(path.read_bytes(), path))
    earlier = pd.read_csv(text, keep_default_na=False, na_values=[""], dtype=WORDS)
    key = ["row", "column", "data"]
    known = set(map(tuple, table[key].to_numpy()))
    ran = table["measured"].notna() | (table["run"] != "")  # some of them without a number
    now = set(map(tuple, table.loc[ran, key].to_numpy()))
    needed = (earlier["tier"] != "embedded") | earlier[key].apply(tuple, axis=1).isin(known)
    earlier = earlier[earlier["measured"].notna() & needed].astype({"n": "Int64", **dict.fromkeys(NUMBERS, float)})
    kept = earlier[[tuple(k) not in now for k in earlier[key].to_numpy()]]
    if kept.empty:
        return table
    stale = {tuple(k) for k in kept[key].to_numpy()}
    return pd.concat([kept, table[[tuple(k) not in stale for k in table[key].to_numpy()]]], ignore_index=True)


def read_tables(results: Path) -> dict[str, dict[str, pd.DataFrame]]:
    """The tables on disk: paper → table → rows.

    Raises:
        UserError: a table that is damaged, or of a newer schema.
    """
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for path, text in table_texts(results).items():
        found.setdefault(path.parent.name, {})[path.stem] = pd.read_csv(io.StringIO(text), dtype=WORDS)
    return found


def measured_text(row: pd.Series) -> str:
    """``65.91 ± 0.82``, the number alone where it is a single one, or a dash where nothing was measured."""
    if pd.isna(row["measured"]):
        return "–"
    form = METRICS[row["metric"]].form
    interval = "" if is_single(row) else f" ± {(row['ci_high'] - row['ci_low']) / 2:{form}}"
    return f"{row['measured']:{form}}{interval}"


def is_single(row: pd.Series) -> bool:
    """Whether the number is one sample, of which no interval is known."""
    return not pd.isna(row["n"]) and bool(row["n"] == 1)


def published_text(row: pd.Series) -> str:
    """The published number with its interval, or a dash where none was found."""
    if pd.isna(row["published"]):
        return "–"
    form = METRICS[row["metric"]].form
    interval = "" if pd.isna(row["published_ci"]) else f" ± {row['published_ci']:{form}}"
    return f"{row['published']:{form}}{interval}"


def cell(text: object) -> str:
    """Text that stays one cell of a markdown table, and text: no markup, link or further column comes of it."""
    escaped = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return escaped.replace("\\", "\\\\").replace("|", "\\|").replace("](", "]\\(")


def markdown(paper: Paper, name: str, table: pd.DataFrame, claims: Sequence[Claim | None]) -> str:
    """The table for reading: measured beside published, then verdicts, data and the sources of the claims."""
    shown = pd.DataFrame(
        {
            "row": table["row"].map(cell),
            "column": table["column"].map(cell),
            "measured (95 %)": [measured_text(r) for _, r in table.iterrows()],
            "n": table["n"].map(lambda n: "–" if pd.isna(n) else str(n)),
            "published": [published_text(r) for _, r in table.iterrows()],
            "verdict": table["verdict"].map(cell),
            "why": table["reason"].map(cell),
        }
    )
    if table["measured"].isna().all():
        shown = shown.drop(columns=["measured (95 %)", "n"])
    lines = [
        f"# {paper.title_of(name)}",
        f"{paper.authors}, *{paper.title}*, {paper.link}",
        f"{', '.join(METRICS[m].phrase for m in table['metric'].unique())}; "
        f"tier: {', '.join(map(cell, table['tier'].unique()))}; data: {', '.join(map(cell, table['data'].unique()))}.",
        shown.to_markdown(index=False, disable_numparse=True),
    ]
    sources = dict.fromkeys(
        f"- {c.data}, {c.version}: {c.protocol}. Source: {c.source}. Tolerance {c.tolerance:g}: {c.tolerance_reason}."
        for c in claims
        if c is not None
    )
    if sources:
        lines += ["Published numbers:", "\n".join(sources)]
    return "\n\n".join(lines) + "\n"


def figure(title: str, table: pd.DataFrame) -> bytes:
    """Horizontal bars with 95 % intervals, one panel a column, as a PNG; a heat map where columns are many."""
    measured = table[table["measured"].notna()]
    with mpl.rc_context({**sns.axes_style("whitegrid"), **sns.plotting_context("notebook")}):
        fig = (_heat_map if measured["column"].nunique() > PANELS else _bars)(measured)
        fig.suptitle(f"{title} ({measured['data'].iloc[0]}, {measured['tier'].iloc[0]} tier)")
        return png(fig, 150)


def _heat_map(measured: pd.DataFrame) -> Figure:
    """Rows by columns; what the columns' names share stands below."""
    metric = METRICS[measured["metric"].iloc[0]]
    names, columns = measured["row"].unique(), measured["column"].unique()
    values = measured.pivot(index="row", columns="column", values="measured").loc[names, columns]
    shared, *others = {c.rpartition(", ")[0] for c in columns}
    if not others:
        values.columns = [c.rpartition(", ")[2] for c in columns]
    fig = Figure(figsize=(3.5 + 0.55 * len(columns), 1.9 + 0.45 * len(names)), layout="constrained")
    axes = fig.subplots()
    label = {"label": metric.label}
    form = ".0f" if metric.unit else metric.form
    sns.heatmap(values, annot=True, fmt=form, cmap="rocket", ax=axes, cbar_kws=label, annot_kws={"size": 9})
    axes.set(xlabel="" if others else shared, ylabel="")
    axes.tick_params(axis="x", rotation=60)
    axes.tick_params(axis="y", rotation=0)
    return fig


def _bars(measured: pd.DataFrame) -> Figure:
    """A panel a column."""
    columns = list(measured["column"].unique())
    names = list(measured["row"].unique())
    colours = dict(zip(names, sns.color_palette("colorblind", len(names)), strict=True))
    fig = Figure(figsize=(2.4 + 3.6 * len(columns), 1.3 + 0.45 * len(names)), layout="constrained")
    panels = fig.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for panel, column in zip(panels, columns, strict=True):
        part = measured[measured["column"] == column].set_index("row").reindex(names)
        centre = part["measured"]
        error = [centre - part["ci_low"], part["ci_high"] - centre]
        panel.barh(names, centre, xerr=error, color=[colours[n] for n in names], error_kw={"capsize": 3})
        metric = METRICS[part["metric"].dropna().iloc[0]]
        texts = ["" if pd.isna(v) else f"{v:{metric.form}}" for v in centre]
        if (centre.dropna() < centre.max() / 8).any():  # too short to write into
            panel.bar_label(panel.containers[-1], texts, padding=14)
            panel.margins(x=0.25)
        else:
            written = panel.bar_label(panel.containers[-1], texts, label_type="center")
            for label, name in zip(written, names, strict=True):
                label.set_color("black" if np.dot(colours[name], LUMINANCE) > 0.5 else "white")
        panel.set_title(column)
        panel.set_xlabel(metric.label)
        panel.grid(axis="y", visible=False)
    panels[0].invert_yaxis()
    return fig
