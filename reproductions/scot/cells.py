"""The cells of a feature map in its image: centres, receptive fields, weights, and how keypoints move with them.

Coordinates are pixels of the resized image, x first. Cells are numbered row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Staircase of SCOT: the weight of a cell whose activation, from 0 to 1, is above the threshold.
BACKGROUND, STAIRS = 0.5, ((0.4, 0.8), (0.5, 0.9), (0.6, 1.0))


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of an image: those of a whole map, or some of them.

    Attributes:
        centres: float32 ``(n, 2)``.
        field: side of the receptive field in pixels; a box reaches ⌊field/2⌋ to each side of its centre.
        size: height and width of the image.
    """

    centres: Tensor
    field: int
    size: tuple[int, int]

    @classmethod
    def of_map(cls, shape: Sequence[int], jump: int, field: int, size: Sequence[int]) -> Cells:
        """The cells of a map with ``shape`` rows and columns, ``jump`` pixels apart, the first at the corner."""
        rows, columns = shape
        y, x = torch.meshgrid(torch.arange(rows) * jump, torch.arange(columns) * jump, indexing="ij")
        return cls(torch.stack([x, y], -1).reshape(-1, 2).float(), field, (size[0], size[1]))

    def __len__(self) -> int:
        return len(self.centres)

    @property
    def corners(self) -> Tensor:
        """Upper left corners of the boxes, ``(n, 2)``."""
        return self.centres - self.field // 2

    @property
    def boxes(self) -> Tensor:
        """x₁, y₁, x₂, y₂, ``(n, 4)``."""
        return torch.cat([self.corners, self.centres + self.field // 2], -1)

    def inside(self, margin: int = 10) -> Tensor:
        """Numbers of the cells whose boxes leave the image by at most ``margin`` pixels."""
        height, width = self.size
        low = (self.corners >= -margin).all(-1)
        high = (self.boxes[:, 2:] <= torch.tensor([width + margin, height + margin])).all(-1)
        return (low & high).nonzero()[:, 0]

    def subset(self, numbers: Tensor) -> Cells:
        """Some of the cells."""
        return Cells(self.centres[numbers], self.field, self.size)

    def weights(self, activation: Tensor | None, full: float = 1.0) -> Tensor:
        """Staircase weights of the cells by the activation at their centres, not yet scaled to total 1: ``(n,)``.

        Args:
            activation: a map of the image's size, ``(H, W)``; None for equal weights.
            full: the value of full activation: 1, or 255 for a stored mask.
        """
        if activation is None:
            return torch.ones(len(self))
        x, y = self.centres.long().unbind(-1)
        m = activation[y.clamp(max=activation.shape[0] - 1), x.clamp(max=activation.shape[1] - 1)]
        w = torch.full_like(m, BACKGROUND, dtype=torch.float32)
        for threshold, weight in STAIRS:
            w[m > threshold * full] = weight
        return w

    def transfer(self, target: Cells, match: Tensor, keypoints: Tensor, nearest: bool = False) -> Tensor:
        """Keypoints in the target image: each moves as the matched cells whose boxes it lies in, on the average.

        A point that no box covers moves as the cell with the nearest centre, and so do all where ``nearest`` is set.

        Args:
            target: cells of the other image.
            match: the target's cell of each cell, ``(n,)``.
            keypoints: ``(K, 2)``.
            nearest: by the nearest cell alone.

        Returns:
            ``(K, 2)``.
        """
        shift = target.corners[match] - self.corners
        offset = keypoints[:, None] - self.centres
        covered = (offset.abs() <= self.field // 2).all(-1)
        closest = offset.square().sum(-1).argmin(-1)
        if nearest:
            return keypoints + shift[closest]
        covered[torch.arange(len(keypoints)), closest] |= ~covered.any(-1)
        share = covered.to(shift.dtype)
        return keypoints + share @ shift / share.sum(-1, keepdim=True)
