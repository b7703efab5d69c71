"""Two paths through CLIP's image tower: the tower itself, and a local one that attends values to values.

The global path g is CLIP unchanged. The local path h starts where g starts and only gathers what attention adds,
h ← h + A_loc(LN(g)), with A_loc = softmax(V Vᵀ/√d_h) V through the same output projection, so that a patch keeps what
is like itself (CLIP Surgery, Li et al. 2023; RAM, CVPR 2025). At chosen blocks a side path may take part:
learned tokens are appended to g for that block, and an adapter adds to h what it makes of g after the block.

Shapes: B images, N patches, w the tower's width, d the common dimension, k learned tokens of a block. Nothing of h
feeds back into g, so that one run through the tower serves several vocabularies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reproductions.features.clip import Clip, ImageFeatures


class Paths(NamedTuple):
    """Where both paths have got: g ``(B, 1 + N, w)`` with the class token, h ``(B, N, w)`` without."""

    g: Tensor
    h: Tensor


def start(clip: Clip, images: Tensor) -> Paths:
    """Both paths before the first block, of images ``(B, 3, H, W)``."""
    x = clip.embed(images)
    return Paths(x, x[:, 1:])


def two_attentions(attention: Any, x: Tensor, learned: int = 0) -> tuple[Tensor, Tensor]:
    """What a block's attention adds to g and to h: queries to keys ``(B, T, w)``, and values to values ``(B, N, w)``.

    Args:
        attention: the block's ``nn.MultiheadAttention``.
        x: LN(g), ``(B, T, w)``: the class token, N patches, and the learned tokens.
        learned: how many learned tokens there are at the end; they are no keys of the local path.
    """
    heads, (B, T, w) = attention.num_heads, x.shape
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = qkv.view(B, T, 3, heads, w // heads).permute(2, 0, 3, 1, 4)
    kept = v[:, :, : T - learned]
    both = F.scaled_dot_product_attention(q, k, v), F.scaled_dot_product_attention(kept[:, :, 1:], kept, kept)
    to_g, to_h = (attention.out_proj(y.transpose(1, 2).flatten(2)) for y in both)
    return to_g, to_h


def advance(
    clip: Clip, paths: Paths, blocks: range, tokens: Mapping[int, Tensor] | None = None
) -> tuple[Paths, dict[int, Tensor]]:
    """Both paths after these blocks.

    Args:
        clip: whose image tower it is.
        paths: before the first of the blocks.
        blocks: numbers of consecutive blocks.
        tokens: block → its learned tokens ``(k, w)``; they are gone again after the block.

    Returns:
        The paths, and of each block with learned tokens g's patches after it, ``(B, N, w)``: what adapters read.
    """
    g, h = paths
    seen: dict[int, Tensor] = {}
    for number in blocks:
        block: Any = clip.blocks[number]
        learned = None if tokens is None else tokens.get(number)
        length, count = g.shape[1], 0
        if learned is not None:
            count = len(learned)
            g = torch.cat([g, learned.to(g.dtype).expand(len(g), -1, -1)], 1)
        to_g, to_h = two_attentions(block.attn, block.ln_1(g), count)
        g = g + to_g
        g = (g + block.mlp(block.ln_2(g)))[:, :length]
        h = h + to_h
        if learned is not None:
            seen[number] = g[:, 1:]
    return Paths(g, h), seen


def projected(clip: Clip, paths: Paths) -> ImageFeatures:
    """The class token of g ``(B, d)`` and the patches of h ``(B, N, d)`` in the common space; not normalised."""
    return ImageFeatures(clip.project(paths.g[:, 0]), clip.project(paths.h))
