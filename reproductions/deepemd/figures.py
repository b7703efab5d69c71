"""Pictures of DeepEMD: where an image's nodes flow to, and what a solver's accuracy costs in time."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from reproductions.pictures import png

STYLE = {**sns.axes_style("white"), **sns.plotting_context("notebook")}
DPI = 110
GAP = 0.25  # between the two images, in widths of one
SHOWN = 0.02  # of the greatest flow: thinner lines are left out
HEAT = "rocket_r"


def draw_flows(pairs: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]], side: int) -> bytes:
    """A PNG with a row for each pair of images: the nodes and the flow between them, and the flow as a heat map.

    A node's disc has the area of its weight, a line the width of its flow.

    Args:
        pairs: what to call each pair; the query image and the prototype's ``(H, W)``, in [0, 1]; the flow ``(N, M)``,
            whose nodes are the cells of a grid, row by row.
        side: cells of a side of that grid.
    """
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(8.4, 2.9 * len(pairs)), layout="constrained")
        panels = fig.subplots(len(pairs), 2, squeeze=False, width_ratios=(2.1, 1))
        for (title, query, prototype, flow), (left, right) in zip(pairs, panels, strict=True):
            _draw_nodes(left, query, prototype, flow, side)
            left.set_title(title, fontsize=10)
            right.imshow(flow, cmap=HEAT, vmin=0)
            right.set(xticks=[], yticks=[], xlabel="prototype's nodes", ylabel="query's nodes")
            right.set_title(f"flow: {(flow > SHOWN * flow.max()).sum()} of {flow.size} pairs", fontsize=10)
        return png(fig, DPI)


def draw_accuracy_against_time(table: pd.DataFrame, accuracy: str, time: str) -> bytes:
    """A PNG of the solver table: accuracy and time of an episode of every solver, with 95 % intervals.

    Args:
        table: as on disk.
        accuracy: the column of the accuracies.
        time: that of the times in milliseconds.
    """
    measured = table[table["measured"].notna()]
    x, y = (measured[measured["column"] == c].set_index("row") for c in (time, accuracy))
    with mpl.rc_context({**sns.axes_style("whitegrid"), **sns.plotting_context("notebook")}):
        fig = Figure(figsize=(8.0, 4.6), layout="constrained")
        axes = fig.subplots()
        for name, colour in zip(x.index, sns.color_palette("colorblind", len(x)), strict=True):
            (u, v) = x.loc[name], y.loc[name]
            spread = [[c["measured"] - c["ci_low"], c["ci_high"] - c["measured"]] for c in (u, v)]
            axes.errorbar(
                u["measured"],
                v["measured"],
                xerr=np.reshape(spread[0], (2, 1)),
                yerr=np.reshape(spread[1], (2, 1)),
                fmt="o" if name.startswith("EMD") else "s",
                color=colour,
                capsize=3,
                label=f"{name} (n = {v['n']:.0f})",
            )
        axes.set_xscale("log")
        few = x["measured"].max() < 100 * x["measured"].min()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="time of an episode (ms, 95 %)", ylabel=f"{accuracy} accuracy (%, 95 %)")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        return png(fig, DPI)


def _draw_nodes(axes: Axes, query: np.ndarray, prototype: np.ndarray, flow: np.ndarray, side: int) -> None:
    shift = 1 + GAP
    for image, left in ((query, 0.0), (prototype, shift)):
        axes.imshow(1 - image, extent=(left, left + 1, 1, 0), cmap="gray", vmin=-1, vmax=1)
    centre = (np.arange(side) + 0.5) / side
    cells = np.stack(np.meshgrid(centre, centre, indexing="xy"), -1).reshape(-1, 2)
    ends = cells, cells + np.array([shift, 0])
    for (x, y), weights in zip((p.T for p in ends), (flow.sum(1), flow.sum(0)), strict=True):
        axes.scatter(x, y, s=90 * weights / weights.max(), color="#b2182b", alpha=0.75, lw=0, zorder=3)
    shown = np.argwhere(flow > SHOWN * flow.max())
    strength = flow[tuple(shown.T)] / flow.max()
    lines = [np.stack([ends[0][i], ends[1][j]]) for i, j in shown]
    axes.add_collection(LineCollection(lines, linewidths=2.2 * strength, colors="#2166ac", alpha=0.8))
    axes.set(xlim=(0, 1 + shift), ylim=(1, 0), aspect="equal")
    axes.set_axis_off()
