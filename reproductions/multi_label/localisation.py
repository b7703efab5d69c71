"""Where a label's weights lie in the image: the share of them inside the boxes of its objects."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def coverage(boxes: NDArray, objects: NDArray, classes: int, side: int, grid: int) -> Tensor:
    """The share of each patch that the boxes of a class cover, float32 ``(n, grid², classes)``.

    Args:
        boxes: ``(n, k, 4)``: x₀, y₀, x₁, y₁ in px, whole numbers, the last two exclusive.
        objects: ``(n, k)``, the class of the object in each box; negative where there is none.
        classes: C.
        side: of the images, in px.
        grid: patches along a side, a divisor of ``side``.
    """
    inside = torch.zeros(len(boxes), classes, side, side)
    for image, (of_image, kinds) in enumerate(zip(boxes.tolist(), objects.tolist(), strict=True)):
        for (x0, y0, x1, y1), c in zip(of_image, kinds, strict=True):
            if c >= 0:
                inside[image, c, y0:y1, x0:x1] = 1
    return F.avg_pool2d(inside, side // grid).flatten(2).mT


def mass_inside(weights: Tensor, covered: Tensor) -> Tensor:
    """Percent of the weights of each label that lies in its boxes, ``(n, C)``; NaN for a label without boxes.

    Args:
        weights: ``(n, N, C)`` ≥ 0, of any sum; a label's weight on a patch is spread evenly over it.
        covered: ``(n, N, C)`` by ``coverage``.
    """
    share = (weights * covered).sum(1) / weights.sum(1).clamp(min=torch.finfo(weights.dtype).tiny)
    return 100 * torch.where(covered.amax(1) > 0, share, torch.nan)
