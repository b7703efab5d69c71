"""Pictures of weights: where in an image each of its labels has its weight, one method a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from reproductions.pictures import png

STYLE = {**sns.axes_style("white"), **sns.plotting_context("notebook")}
PANEL, DPI = 1.5, 110  # inches, dots an inch


def draw_weights(
    images: NDArray,
    boxes: NDArray,
    objects: NDArray,
    classes: Sequence[str],
    weights: Mapping[str, Tensor],
) -> bytes:
    """A PNG: a row for each label of each image, the image with the label's boxes first, then each method's weights.

    Args:
        images: ``(n, channels, H, W)`` in [0, 1].
        boxes: ``(n, k, 4)``: x₀, y₀, x₁, y₁ in px.
        objects: ``(n, k)``, the class in each box, negative where there is none.
        classes: names.
        weights: method → ``(n, N, C)``, N patches of a square grid.
    """
    shown = [(i, c) for i in range(len(images)) for c in sorted({int(c) for c in objects[i] if c >= 0})]
    with mpl.rc_context(STYLE):
        size = PANEL * (1 + len(weights)), PANEL * len(shown) + 0.5
        fig = Figure(figsize=size, layout="constrained")
        panels = fig.subplots(len(shown), 1 + len(weights), squeeze=False)
        for (i, c), line in zip(shown, panels, strict=True):
            picture = np.broadcast_to(images[i], (3, *images[i].shape[1:])).transpose(1, 2, 0)
            line[0].imshow(picture)
            line[0].set_ylabel(classes[c], rotation=0, ha="right", va="center")
            extent = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
            for panel, of_method in zip(line[1:], weights.values(), strict=True):
                side = round(of_method.shape[1] ** 0.5)
                panel.imshow(of_method[i, :, c].reshape(side, side).numpy(), cmap="inferno", vmin=0, extent=extent)
            for panel in line:
                panel.set(xticks=[], yticks=[])
                for (x0, y0, x1, y1), kind in zip(boxes[i], objects[i], strict=True):
                    if kind == c:
                        corner = (x0 - 0.5, y0 - 0.5)
                        panel.add_patch(Rectangle(corner, x1 - x0, y1 - y0, fill=False, edgecolor="#35b779", lw=1.5))
        for panel, title in zip(panels[0], ("image", *weights), strict=True):
            panel.set_title(title, fontsize=10)
        return png(fig, DPI)
