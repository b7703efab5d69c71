"""Pictures of matches: lines from keypoints to where they are transferred, and rows of plans as heat maps."""

from __future__ import annotations

import io
from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, to_rgba_array
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from reproductions.scot.cells import Cells
from reproductions.scot.method import Hyperpixels

RIGHT, WRONG = "#1a9850", "#e31a1c"
FADED = 0.3  # towards white, so that lines stand out
GAP = 12  # pixels between the two images
WIDTH, PANEL, DPI = 8.0, 2.6, 110  # inches of a comparison and of a panel of plans
PANELS = 3  # in a row
PALETTE = 192  # colours of the photographs: a file of a third of the size
STYLE = {**sns.axes_style("white"), **sns.plotting_context("notebook")}
SHADES = np.linspace(0, 1, 256)
HEAT = ListedColormap(np.column_stack([mpl.colormaps["inferno"](SHADES)[:, :3], 0.9 * np.sqrt(SHADES)]))


def draw_matches(
    source_image: np.ndarray,
    target_image: np.ndarray,
    source_keypoints: np.ndarray,
    predicted: np.ndarray,
    truth: np.ndarray,
    threshold: float,
) -> bytes:
    """A PNG of two images side by side, with lines from the source's keypoints to their predictions in the target.

    Green lines end within the threshold of the truth, which a ring marks, and red ones do not.

    Args:
        source_image: bytes ``(H, W, 3)``.
        target_image: the same, of any size.
        source_keypoints: ``(K, 2)`` in pixels of the source image, x first.
        predicted: ``(K, 2)`` in pixels of the target image.
        truth: likewise.
        threshold: ατ in pixels of the target image.
    """
    return draw_comparison(source_image, target_image, source_keypoints, truth, {"": predicted}, threshold)


def draw_comparison(
    source_image: np.ndarray,
    target_image: np.ndarray,
    source_keypoints: np.ndarray,
    truth: np.ndarray,
    predicted: Mapping[str, np.ndarray],
    threshold: float,
) -> bytes:
    """A PNG as of ``draw_matches`` with one row a method.

    Args:
        source_image: bytes ``(H, W, 3)``.
        target_image: the same, of any size.
        source_keypoints: ``(K, 2)`` in pixels of the source image, x first.
        truth: ``(K, 2)`` in pixels of the target image.
        predicted: likewise, by the method's name.
        threshold: ατ in pixels of the target image.
    """
    canvas = _side_by_side(source_image, target_image)
    height, width = canvas.shape[:2]
    shift = np.array([source_image.shape[1] + GAP, 0])
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(WIDTH, len(predicted) * (WIDTH * height / width + 0.4)), layout="constrained")
        rows = fig.subplots(len(predicted), squeeze=False)[:, 0]
        for axes, (name, points) in zip(rows, predicted.items(), strict=True):
            right = np.linalg.norm(points - truth, axis=-1) <= threshold
            colours = [RIGHT if r else WRONG for r in right]
            _show(axes, canvas)
            for colour, thickness in (("black", 2.4), ("white", 1.1)):  # seen on dark and on bright ground
                axes.scatter(*(truth + shift).T, s=42, facecolors="none", edgecolors=colour, lw=thickness)
            axes.add_collection(
                LineCollection([*np.stack([source_keypoints, points + shift], 1)], colors=colours, lw=1.3)
            )
            for ends in (source_keypoints, points + shift):
                axes.scatter(*ends.T, s=16, c=colours, edgecolors="white", lw=0.6, zorder=3)
            score = f"{right.sum()} of {len(right)} keypoints within {threshold:.3g} px"
            axes.set_title(f"{name}: {score}" if name else score, fontsize=11)
        return _png(fig)


def draw_plan(
    source_image: np.ndarray,
    target_image: np.ndarray,
    source: Hyperpixels,
    target: Hyperpixels,
    plan: Tensor,
    points: np.ndarray,
) -> bytes:
    """A PNG of the source with some points marked, then of the target under the mass that each point's cell sends.

    Each heat map is scaled to its own maximum, which a ring surrounds.

    Args:
        source_image: bytes ``(H, W, 3)``, of any size: it is drawn in the frame of the cells.
        target_image: likewise.
        source: the cells of the source.
        target: the cells of the target.
        plan: T, ``(targets, sources)``.
        points: ``(K, 2)`` in pixels of the resized source image; the nearest cell stands for each.
    """
    nearest = torch.cdist(torch.from_numpy(points).float(), source.cells.centres).argmin(1)
    grey = np.repeat(target_image.mean(-1, keepdims=True), 3, -1).astype(np.uint8)
    columns = min(1 + len(points), PANELS)
    rows = -(-(1 + len(points)) // columns)
    tallest = max(height / width for height, width in (source.cells.size, target.cells.size))
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(PANEL * columns, rows * (PANEL * tallest + 0.3)), layout="constrained")
        panels = fig.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        _show(panels[0], source_image, source.cells.size)
        panels[0].set_title("source", fontsize=9)
        for k, (cell, point) in enumerate(zip(nearest, points, strict=True), start=1):
            mass, axes = plan[:, cell].numpy(), panels[k]
            half = 1 + int(np.searchsorted(np.cumsum(np.sort(mass)[::-1]), mass.sum() / 2))
            _show(axes, grey, target.cells.size)
            heat, extent = _on_grid(target.cells, mass / mass.max())
            axes.imshow(heat, extent=extent, cmap=HEAT, vmin=0, vmax=1, interpolation="bilinear")
            _frame(axes, target.cells.size)
            x, y = target.cells.centres[mass.argmax()].tolist()
            for colour, thickness in (("black", 2.4), ("white", 1.1)):  # seen on dark and on bright ground
                axes.plot(x, y, "o", mfc="none", mec=colour, ms=17, mew=thickness, clip_on=False)
            axes.set_title(f"{k}: half the mass on {half} of {len(mass)} cells", fontsize=9)
            panels[0].plot(*point, "o", color=RIGHT, mec="white", ms=13, clip_on=False)
            panels[0].text(*point, str(k), color="white", fontsize=9, ha="center", va="center_baseline")
        return _png(fig)


def _side_by_side(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    height = max(len(source), len(target))
    canvas = np.full((height, source.shape[1] + GAP + target.shape[1], 3), 255, np.uint8)
    canvas[: len(source), : source.shape[1]] = source
    canvas[: len(target), source.shape[1] + GAP :] = target
    return canvas


def _on_grid(cells: Cells, values: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Values of cells as an image, 0 where there is no cell, and the left, right, lower and upper ends it fills."""
    centres = cells.centres.numpy().astype(np.int64)
    low = centres.min(0)
    step = int(np.gcd.reduce((centres - low).ravel())) or cells.field
    column, row = ((centres - low) // step).T
    heat = np.zeros((row.max() + 1, column.max() + 1))
    heat[row, column] = values
    left, upper = low - step / 2
    return heat, (left, left + step * heat.shape[1], upper + step * heat.shape[0], upper)


def _show(axes: Axes, image: np.ndarray, size: tuple[int, int] | None = None) -> None:
    """The image, filling ``size`` in height and width; pixel centres are whole numbers."""
    height, width = image.shape[:2] if size is None else size
    faded = (image + FADED * (255.0 - image)).astype(np.uint8)
    axes.imshow(faded, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="bilinear")
    _frame(axes, (height, width))
    axes.set_axis_off()


def _frame(axes: Axes, size: tuple[int, int]) -> None:
    axes.set(xlim=(-0.5, size[1] - 0.5), ylim=(size[0] - 0.5, -0.5))


def _png(fig: Figure) -> bytes:
    """The figure with a palette: colours of the photographs and heat maps, and exactly those of lines and text."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI)
    image = Image.open(buffer).convert("RGB")
    drawn = np.rint(255 * to_rgba_array([RIGHT, WRONG, "white", "black"])[:, :3]).astype(np.uint8)
    heat = HEAT(SHADES[::6], bytes=True)[:, :3]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*drawn.ravel(), *heat.ravel(), *(image.quantize(PALETTE).getpalette() or [])])
    codes = np.array(image.quantize(palette=palette, dither=Image.Dither.NONE))
    for code, colour in enumerate(drawn):  # which the line above takes for similar ones
        codes[(np.asarray(image) == colour).all(-1)] = code
    coded = Image.fromarray(codes)
    coded.putpalette(palette.getpalette() or [])
    buffer = io.BytesIO()
    coded.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
