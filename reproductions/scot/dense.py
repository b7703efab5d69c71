"""Dense flow by SCOT, as it is scored on TSS: where every pixel of the target image lies in the source image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reproductions import UserError
from reproductions.datasets.correspondence import image_size
from reproductions.datasets.flow import flow_accuracy, read_flow
from reproductions.datasets.tss import FlowPair
from reproductions.scot.backbones import Backbone
from reproductions.scot.cells import Cells
from reproductions.scot.hyperpixels import Masses
from reproductions.scot.images import SIDE
from reproductions.scot.method import Hyperpixels, Matching
from reproductions.scot.views import View, cells_of

THRESHOLD = 5.0  # percent of the longer side: the radius of TSS's main number
AT_ONCE = 2**21  # pairs of points and cells


def evaluate_pair(
    pair: FlowPair,
    backbone: Backbone,
    matching: Matching,
    masses: Masses = "activation",
    side: int = SIDE,
) -> float:
    """Percent of the pixels of known flow whose end point is off by at most 5 % of the longer side.

    Raises:
        UserError: a file that is missing or broken, a flow of another size than its image, too small an image.
    """
    views = View.of_file(pair.source, pair.flip_source), View.of_file(pair.target)
    (s, source_ratio), (t, target_ratio) = (cells_of(view, backbone, masses, side) for view in views)
    flow = dense_flow(s, t, matching, source_ratio, target_ratio, image_size(pair.target))
    try:
        return flow_accuracy(flow, read_flow(pair.flow), THRESHOLD)
    except ValueError as error:
        raise UserError(f"{pair.flow} is no flow of {pair.target}: {error}") from error


def dense_flow(
    source: Hyperpixels,
    target: Hyperpixels,
    matching: Matching,
    source_ratio: float,
    target_ratio: float,
    size: tuple[int, ...],
) -> np.ndarray:
    """Flow from the target's pixels into the source, in pixels of the original images: float32 ``(H, W, 2)``.

    The target's cells are matched to the source's, those of either image only whose boxes leave it by at most 10
    pixels. As in the official code pixels count from 1, in both images and before they are scaled: pixel (u, v) is at
    (u, v) times the target's ratio, and its flow is where that moves, over the source's ratio, less (u, v).

    Args:
        source: one image as hyperpixels.
        target: the other.
        matching: called with the target first.
        source_ratio: resized over original size of the source.
        target_ratio: the same of the target.
        size: H and W of the original target image.

    Raises:
        UserError: no cell is left of an image.
    """
    source, target = pruned(source), pruned(target)
    y, x = (torch.arange(1, n + 1, dtype=torch.float64) for n in size)
    moved = transferred_grid(
        target.cells, source.cells, matching.matches(target, source), x * target_ratio, y * target_ratio
    )
    return (moved / source_ratio - grid_points(x, y)).float().numpy()


def pruned(image: Hyperpixels) -> Hyperpixels:
    """The hyperpixels whose boxes hardly leave the image.

    Raises:
        UserError: there is none.
    """
    inside = image.cells.inside()
    if not len(inside):
        height, width = image.cells.size
        raise UserError(
            f"no receptive field of {image.cells.field} px fits an image resized to {width} x {height}: take an "
            "earlier first layer or a larger side"
        )
    return Hyperpixels(image.features[inside], image.cells.subset(inside), image.weights[inside])


def grid_points(x: Tensor, y: Tensor) -> Tensor:
    """The points of a grid by their coordinates along its sides, ``(len(y), len(x), 2)``."""
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def transferred_grid(source: Cells, target: Cells, match: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The points of a grid in the target image, ``(len(y), len(x), 2)``: what ``Cells.transfer`` gives, but fast.

    The boxes are squares about the points of another grid, so that a box covers a point where its column covers x and
    its row covers y. Shifts are summed over the covering rows, then over the covering columns: no matrix of points by
    cells is made.
    """
    (columns, column), (rows, row) = (torch.unique(c, return_inverse=True) for c in source.centres.unbind(-1))
    shift = (target.corners[match] - source.corners).double()
    table = torch.zeros(len(rows), len(columns), 3, dtype=torch.float64)  # of each cell its shift, and 1: it is there
    table[row, column] = torch.cat([shift, torch.ones_like(shift[:, :1])], -1)
    x, y = x.double(), y.double()
    in_column, in_row = (((p[:, None] - c).abs() <= source.field // 2).double() for p, c in ((x, columns), (y, rows)))
    sums = torch.einsum("yr,rcd,xc->yxd", in_row, table, in_column)
    points, count = grid_points(x, y), sums[..., 2:]
    moved = points + sums[..., :2] / count.clamp(min=1)
    bare = count[..., 0] == 0
    if bare.any():  # the nearest cell moves these: few points at a time
        parts = points[bare].split(max(1, AT_ONCE // len(source)))
        moved[bare] = torch.cat([source.transfer(target, match, part) for part in parts])
    return moved
