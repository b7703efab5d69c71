"""From an image's patches to its nodes: cells of a feature map, with or without a pyramid, or one node a patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.deepemd.method import nodes
from reproductions.deepemd.patches import COMMON, NORMALISATIONS, Fcn, Grid, Sampling


def pyramid_nodes(maps: Tensor, sizes: Sequence[int]) -> Tensor:
    """Nodes of a map pooled to a×a cells, for each a in turn, then of the map itself: ``(B, C, H, W)`` → ``(B, N, C)``.

    On 5×5 maps, sizes 2 and 1 give 4 + 1 + 25 = 30 nodes.
    """
    return torch.cat([*(nodes(F.adaptive_avg_pool2d(maps, a)) for a in sizes), nodes(maps)], dim=-2)


@dataclass(frozen=True)
class Embedding:
    """How an image becomes a set of nodes.

    Attributes:
        transform: cuts an image into its P patches.
        pyramid: sizes of the pooled maps whose cells come before the map's own; only for one patch an image.
    """

    transform: Fcn | Grid | Sampling
    pyramid: tuple[int, ...] = ()

    def __call__(self, encoder: nn.Module, patches: Tensor) -> Tensor:
        """Nodes ``(n, N, C)`` of n images given as patches ``(n, P, 3, 84, 84)``, encoded as one batch.

        A single patch gives the cells of its feature map, several give one pooled node each.
        """
        images, count = patches.shape[:2]
        maps = encoder(patches.flatten(0, 1))
        if count == 1:
            return pyramid_nodes(maps, self.pyramid)
        return maps.mean((-2, -1)).unflatten(0, (images, count))

    def on(self, dataset: str) -> Embedding:
        """The same with this data set's means and standard deviations of the channels."""
        normalisation = NORMALISATIONS.get(dataset, COMMON)
        return replace(self, transform=replace(self.transform, normalisation=normalisation))


VARIANTS = {
    "fcn": Embedding(Fcn()),
    "grid": Embedding(Grid((2, 3))),
    "sampling": Embedding(Sampling(9)),
}
"""The encoders that are trained, and on which nodes: the official defaults. Tests may take other patches and sizes."""


def make_embedding(variant: str, dataset: str) -> Embedding:
    """The nodes that the encoder of this name is trained on."""
    return VARIANTS[variant].on(dataset)
