"""Hyperpixels (Min et al., ICCV 2019): the layers of a network, side by side, at every cell of the first of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reproductions.scot.activation import SCALES, activation, combined
from reproductions.scot.backbones import Backbone
from reproductions.scot.cells import Cells
from reproductions.scot.images import SIDE, normalised, resized
from reproductions.scot.method import Hyperpixels

Masses = Literal["uniform", "activation", "mask"]


def stacked(maps: Sequence[Tensor]) -> Tensor:
    """Maps of several layers at the size of the first, ``(ΣC, h, w)``."""
    size = maps[0].shape[-2:]
    return torch.cat([F.interpolate(m[None], size=size, mode="bilinear", align_corners=True)[0] for m in maps])


@torch.no_grad()
def hyperpixels(
    backbone: Backbone, image: np.ndarray, masses: Masses = "uniform", mask: np.ndarray | None = None, side: int = SIDE
) -> tuple[Hyperpixels, float]:
    """The hyperpixels of an image ``(H, W, 3)`` of bytes, and the ratio by which it was resized.

    Args:
        backbone: the network and its layers.
        image: pixels from 0 to 255.
        masses: of the cells: all alike, by class activation maps, or by a stored mask.
        mask: ``(H, W)`` of bytes, where the masses come from one.
        side: the longer side of the resized image.
    """
    x, ratio = resized(normalised(image, backbone.mean, backbone.std), side)
    size = x.shape[-2:]
    maps = stacked(backbone.network.tapped(x, backbone.layers))
    cells = Cells.of_map(maps.shape[-2:], *backbone.network.geometry(backbone.layers[0]), size)
    if masses == "mask":
        assert mask is not None
        stored = torch.from_numpy(np.asarray(mask, np.float32))[None]
        at_size = F.interpolate(stored[None], size=size, mode="bilinear", align_corners=False)[0, 0]
        weights = cells.weights(at_size, full=255)
    else:
        weights = cells.weights(activation_of(backbone, x) if masses == "activation" else None)
    return Hyperpixels(maps.flatten(1).mT.contiguous(), cells, weights), ratio


def activation_of(backbone: Backbone, x: Tensor) -> Tensor:
    """The activation map of a resized image ``(3, H, W)``, from three scales, each enlarged from the one before."""
    size, found = x.shape[-2:], []
    for scale in SCALES:
        larger = int(size[0] * scale), int(size[1] * scale)
        x = x if scale == 1 else F.interpolate(x[None], size=larger, mode="bilinear", align_corners=True)[0]
        found.append(activation(*backbone.network.classified(x), size))
    return combined(found)
