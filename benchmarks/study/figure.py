"""The figures of the study: times side by side, and accuracy against time."""

from __future__ import annotations

import io
import textwrap

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.study.cases import TABLES
from benchmarks.study.tables import CASE, heading


def figure(name: str, table: pd.DataFrame) -> bytes:
    """The table as a PNG; of the accuracies, the curves with the fewest threads.

    Raises:
        ValueError: nothing in the table was timed.
    """
    if table["wall_median"].isna().all():
        raise ValueError(f"nothing was timed for {name}")
    with mpl.rc_context({**sns.axes_style("whitegrid"), **sns.plotting_context("notebook")}):
        fig = _curves(table) if name == "sinkhorn_accuracy" else _times(table)
        fig.suptitle(TABLES[name].title)
        buffer = io.BytesIO()
        fig.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _times(table: pd.DataFrame) -> Figure:
    """A panel a case: median wall times with their interquartile range, ours in orange, what went wrong in words."""
    groups = [rows for _, rows in table.groupby(CASE, dropna=False, sort=False) if rows["wall_median"].notna().any()]
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    shown = [rows[rows["status"] != "not run"].sort_values("wall_median") for rows in groups]
    height = 1.1 + 0.3 * max(map(len, shown))
    fig = Figure(figsize=(6 * columns, height * lines + 0.5), layout="constrained")
    panels = list(fig.subplots(lines, columns, squeeze=False).flat)
    ours, theirs = sns.color_palette("colorblind")[1], sns.color_palette("colorblind")[0]
    for panel, rows in zip(panels, shown, strict=False):
        panel.set_xscale("log")
        for k, (_, row) in enumerate(rows.iterrows()):
            colour = ours if row["library"] == "matchmark" else theirs
            if not pd.isna(row["wall_median"]):
                panel.errorbar(row["wall_median"], k, xerr=row["wall_iqr"] / 2, fmt="o", color=colour, capsize=3)
            if row["status"] != "ok":
                at = rows["wall_median"].min() if pd.isna(row["wall_median"]) else row["wall_median"]
                panel.text(at, k, f"  {row['status']}", va="center", size="small")
        panel.set_yticks(range(len(rows)), rows["solver"])
        panel.set_title(textwrap.fill(heading(rows), 48), size="small")
        panel.set_xlabel("seconds")
        panel.grid(axis="y", visible=False)
        panel.invert_yaxis()
        _label_decades(panel)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    return fig


def _label_decades(panel: Axes) -> None:
    """Powers of ten alone where there are two at least, else 1, 2 and 5 of each: more would run into each other."""
    low, high = panel.get_xlim()
    few = high < 100 * low
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    if few:
        panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _curves(table: pd.DataFrame) -> Figure:
    """A column of panels an ε: the marginal error above, the value error below, both against time."""
    table = table[(table["threads"] == table["threads"].min()) & (table["status"] != "not run")]
    exact, curves = table[table["what"] == "exact"], table[table["what"] == "plan"]
    regs = sorted(curves["reg"].unique(), reverse=True)
    names = list(curves["solver"].unique())
    colours = dict(zip(names, sns.color_palette("husl", len(names)), strict=True))
    markers = dict(zip(names, "osD^v<>PX*hp"[: len(names)], strict=True))
    fig = Figure(figsize=(3.6 * len(regs) + 1.8, 8), layout="constrained")
    panels = fig.subplots(2, len(regs), sharex=True, sharey="row", squeeze=False)
    for k, reg in enumerate(regs):
        rows = curves[curves["reg"] == reg]
        for line, error in enumerate(("marginal_error", "value_error")):
            _errors(panels[line, k], rows, error, colours, markers)
        for _, row in exact[exact["status"] == "ok"].iterrows():
            style = "-" if row["library"] == "matchmark" else ":"
            panels[1, k].axvline(row["wall_median"], color="black", linestyle=style, label=f"{row['solver']} (exact)")
        panels[0, k].set_title(f"ε = {reg:g}")
        panels[1, k].set_xlabel("seconds")
        if failed := list(rows.loc[rows["status"].isin(("overflow", "failed")), "solver"].unique()):
            panels[0, k].text(0.02, 0.02, "no answer: " + ", ".join(failed), transform=panels[0, k].transAxes, size=7)
    panels[0, 0].set_ylabel("marginal error (1-norm)")
    panels[1, 0].set_ylabel("value error (relative)")
    handles, labels = panels[1, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right upper")
    return fig


def _errors(
    panel: Axes, rows: pd.DataFrame, error: str, colours: dict[str, tuple[float, ...]], markers: dict[str, str]
) -> None:
    """One curve a solver over its numbers of iterations; errors below 1e-16 or above 10 are drawn there."""
    for name, colour in colours.items():
        own = rows[(rows["solver"] == name) & rows["wall_median"].notna()].sort_values("iterations")
        ours = (own["library"] == "matchmark").any()
        panel.plot(
            own["wall_median"],
            own[error].clip(1e-16, 10),
            marker=markers[name],
            markersize=4,
            color="black" if ours else colour,
            linewidth=2 if ours else 1,
            label=name,
        )
    panel.set_xscale("log")
    panel.set_yscale("log")
