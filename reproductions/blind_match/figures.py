"""Pictures of matchings: colours with their names, kernels side by side, and solvers against the problem's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import XKCD_COLORS
from matplotlib.figure import Figure

from reproductions.blind_match.contenders import Match
from reproductions.pictures import png

PER_ROW = 6  # colours
NAMED = 60  # members that an axis has room for
SHORTEST = 1e-3  # second that a time axis shows
LEAST = 1e-3  # of F over n², that an axis of values shows


def draw_colours(groups: Mapping[str, tuple[Sequence[str], Match]]) -> bytes:
    """Every colour with the name that it was matched to, and its own below where that is another, as PNG.

    Args:
        groups: title → the colours' own names, and their match.
    """
    heights = [-(-len(names) // PER_ROW) for names, _ in groups.values()]
    fig = Figure(figsize=(1.75 * PER_ROW, 0.85 * sum(heights) + 0.5 * len(groups)), layout="constrained")
    panels = fig.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, height, (title, (names, match)) in zip(panels, heights, groups.items(), strict=True):
        for k, name in enumerate(names):
            row, column = divmod(k, PER_ROW)
            given = names[match.permutation[k]]
            _swatch(axes, column, row, name, given)
        axes.set(xlim=(0, PER_ROW), ylim=(height, 0), xticks=[], yticks=[])
        axes.set_title(f"{title}: {match.correct} of {len(names)} right, {_proof(match)}", loc="left", fontsize=11)
        axes.set_frame_on(False)
    return png(fig)


def _swatch(axes: Axes, x: int, y: int, name: str, given: str) -> None:
    colour = XKCD_COLORS[f"xkcd:{name}"]
    axes.add_patch(mpl.patches.Rectangle((x + 0.02, y + 0.04), 0.96, 0.92, color=colour))
    dark = np.dot(mpl.colors.to_rgb(colour), (0.299, 0.587, 0.114)) < 0.55
    ink: dict[str, Any] = {"color": "white" if dark else "black", "ha": "center", "va": "center"}
    if given == name:
        axes.text(x + 0.5, y + 0.5, name, fontsize=10, weight="bold", **ink)
    else:
        axes.text(x + 0.5, y + 0.36, f"✗ {given}", fontsize=10, **ink)
        axes.text(x + 0.5, y + 0.68, f"({name})", fontsize=8, style="italic", **ink)


def _proof(match: Match) -> str:
    if match.proven:
        return f"proven optimal in {match.seconds:.2g} s"
    return f"not proven in {match.seconds:.2g} s"


def draw_sizes(title: str, sizes: Sequence[int], curves: Mapping[str, Sequence[Match | None]]) -> bytes:
    """Cost and bound over N² against N, a colour a solver: solid what it found, dashed its lower bound, as PNG.

    Args:
        title: of the figure.
        sizes: N of every point.
        curves: solver → its match at every size, None where there is none.
    """
    with mpl.rc_context({**sns.axes_style("whitegrid"), **sns.plotting_context("notebook")}):
        fig = Figure(figsize=(9, 5.5), layout="constrained")
        axes = fig.subplots()
        colours = sns.color_palette("husl", len(curves))
        for (name, matches), colour in zip(curves.items(), colours, strict=True):
            cost = [np.nan if m is None else m.cost for m in matches]
            bound = [np.nan if m is None or m.bound is None else m.bound for m in matches]
            axes.plot(sizes, cost, marker="o", markersize=4, color=colour, label=name)
            axes.plot(sizes, bound, linestyle="--", color=colour)
            proven = [(n, m.cost) for n, m in zip(sizes, matches, strict=True) if m is not None and m.proven]
            if proven:
                axes.plot(*zip(*proven, strict=True), linestyle="", marker="*", markersize=11, color=colour)
        lowest = min(m.cost for matches in curves.values() for m in matches if m is not None)
        axes.set(xlabel="N", ylabel="cost (solid), bound (dashed), over N²; stars: proven optimal", title=title)
        axes.set_ylim(bottom=min(0.0, lowest))
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return png(fig)


def draw_shuffling(levels: Sequence[float], curves: Mapping[str, np.ndarray]) -> bytes:
    """Alignment against the share of the pairs that are shuffled, with the spread of the permutations, as PNG.

    Args:
        levels: shares.
        curves: distortion → similarities ``(levels, permutations)``.
    """
    with mpl.rc_context({**sns.axes_style("whitegrid"), **sns.plotting_context("notebook")}):
        fig = Figure(figsize=(4.2 * len(curves), 3.8), layout="constrained")
        panels = fig.subplots(1, len(curves), squeeze=False)[0]
        for axes, (name, scores) in zip(panels, curves.items(), strict=True):
            low, middle, high = np.quantile(scores, [0.025, 0.5, 0.975], axis=1)
            axes.fill_between(levels, low, high, alpha=0.3)
            axes.plot(levels, middle)
            axes.set(title=name, xlabel="share of the names that are shuffled", ylabel="alignment")
    return png(fig)


def draw_match(
    V: np.ndarray,
    L: np.ndarray,
    match: Match,
    titles: tuple[str, str],
    names: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
) -> bytes:
    """Two kernels in matched order, their difference, and value and bound against time where they were kept, as PNG.

    Args:
        V: standardised kernel of the first side, ``(n, n)``.
        L: that of the second, its members in the order of their partners, ``(n, n)``.
        match: as it was found.
        titles: of the two sides.
        names: of the members of both sides in this order.
    """
    curve = 1 if match.history else 0
    fig = Figure(figsize=(4.6 * (3 + curve), 4.4), layout="compressed")
    panels = fig.subplots(1, 3 + curve, squeeze=False)[0]
    scale = max(np.abs(V).max(), np.abs(L).max())
    shown = {titles[0]: V, f"{titles[1]}, as matched": L, "difference": V - L}
    for axes, (title, K), side in zip(panels, shown.items(), (names[0], names[1], None), strict=False):
        image = axes.imshow(K, cmap="RdBu_r", vmin=-scale, vmax=scale)
        axes.set(title=title, xticks=[], yticks=[])
        if side is not None and len(side) <= NAMED:
            axes.set_yticks(range(len(side)), side, fontsize=min(9, 200 / len(side)))
    fig.colorbar(image, ax=panels[:3], shrink=0.75, label="standardised kernel")
    if curve:
        _anytime(panels[3], match)
    return png(fig)


def _anytime(axes: Axes, match: Match) -> None:
    """F/n² of the best permutation and the lower bound, as they came."""
    curves = {"value": (1, match.cost, "o-"), "lower bound": (2, match.bound, "o--")}
    seen = [match.cost]
    for label, (k, last, style) in curves.items():
        times = [(p[0], p[k]) for p in match.history] + [(match.seconds, last)]
        points = [(t, y) for t, y in times if y is not None]
        if points:
            seen += [y for _, y in points]
            axes.step(*zip(*points, strict=True), style, where="post", label=label, markersize=4)
    first, end = min(p[0] for p in match.history), max(match.seconds, SHORTEST)
    low = seen[-1] - max(abs(match.cost), LEAST)  # early bounds may be far below what counts
    low, high = max(low, min(seen)), max(seen)
    room = max(0.1 * (high - low), 0.05 * abs(high), LEAST)
    axes.set(xscale="log", xlim=(max(min(first / 2, end / 10), SHORTEST / 10), 1.5 * end))
    axes.set(ylim=(low - room, high + room), xlabel="seconds", ylabel="F over n²", title=_proof(match))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    axes.set_box_aspect(1)
    axes.legend(frameon=False)
