"""CLIP's image tower as PatchCT's encoder: the class token, and the patches of chosen blocks, in the common space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reproductions import UserError
from reproductions.features.clip import Clip
from reproductions.multi_label.tokens import Tokens


class ClipEncoder(nn.Module):
    """Images ``(B, 3, H, W)`` → ``Tokens``: the last block's class token, and the patches of blocks, projected.

    The image tower is trained; the text tower is frozen, and in the state so that trained weights belong to one CLIP.
    Tokens are in full precision also under mixed precision.

    Args:
        clip: both towers.
        blocks: whose patches are the layers, from 0, the last block at the end.

    Raises:
        ValueError: the blocks do not end with the last one.
    """

    def __init__(self, clip: Clip, blocks: Sequence[int]) -> None:
        super().__init__()
        if not blocks or blocks[-1] != len(clip.blocks) - 1:
            raise ValueError(f"the last block, {len(clip.blocks) - 1}, has to end the chosen ones, {tuple(blocks)}")
        self.clip, self.blocks = clip.requires_grad_(False), tuple(blocks)
        self.clip.model.visual.requires_grad_(True)

    def forward(self, images: Tensor) -> Tokens:
        """Tokens of images whose sides are multiples of CLIP's patch."""
        found = [_full(self.clip.project(x)) for x in self.clip.layers(images, self.blocks)]
        return Tokens(found[-1][:, 0], tuple(x[:, 1:] for x in found))


def layer_positions(layers: Sequence[int], depth: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The blocks that an encoder of this depth needs for these layers, and where among them each of the layers is.

    Raises:
        UserError: there is no such block.
    """
    if not layers or not all(-depth <= k < depth for k in layers):
        raise UserError(f"transport.layers are {tuple(layers)}, but the image tower has the blocks 0 to {depth - 1}")
    blocks = tuple(sorted({k % depth for k in layers} | {depth - 1}))
    return blocks, tuple(blocks.index(k % depth) for k in layers)


def _full(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
