"""Cells without a network: DAISY descriptors (Tola et al., TPAMI 2010) of scikit-image on a regular grid."""

from __future__ import annotations

import numpy as np
import torch
from skimage.color import rgb2gray
from skimage.feature import daisy

from reproductions.scot.cells import Cells
from reproductions.scot.images import SIDE, resized
from reproductions.scot.method import Hyperpixels

JUMP, RADIUS = 8, 15  # pixels between cells, and around each that its descriptor sees


def daisy_cells(image: np.ndarray, side: int = SIDE) -> tuple[Hyperpixels, float]:
    """Descriptors of an image ``(H, W, 3)`` of bytes, resized to a longer side, and the ratio of the sizes.

    The border is mirrored, so that the first cell lies in the corner, as those of a network.
    """
    x, ratio = resized(torch.from_numpy(rgb2gray(image)).float()[None], side)
    size = x.shape[-2:]
    padded = np.pad(x[0].numpy(), RADIUS, mode="reflect")
    maps = daisy(padded, step=JUMP, radius=RADIUS, rings=2, histograms=6, orientations=8)
    cells = Cells.of_map(maps.shape[:2], JUMP, 2 * RADIUS + 1, size)
    features = torch.from_numpy(maps).float().flatten(0, 1)
    return Hyperpixels(features, cells, torch.ones(len(cells))), ratio
