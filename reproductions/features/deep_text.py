"""CLIP's text tower with learned tokens in some of its blocks (RAM, CVPR 2025; deep prompts as in MaPLe, CVPR 2023).

A block's learned tokens are put behind the first token before the block and taken out after it. The sequence is cut
to the tower's context meanwhile: what is beyond skips the block.

Shapes: C texts, L tokens, w the tower's width, k learned tokens of a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reproductions.features.clip import Clip

STD = 0.02  # of the learned tokens in the beginning


class DeepText(nn.Module):
    """Learned tokens of the chosen blocks; the tower itself is not part of the module.

    Attributes:
        tokens: block (from 0) → learned tokens ``(k, w)``.
        first: the first block that has some; those before it give the same for good.

    Raises:
        ValueError: no blocks, or one that the tower lacks.
    """

    def __init__(self, clip: Clip, layers: Sequence[int], count: int) -> None:
        super().__init__()
        check_layers(layers, len(clip.text_blocks))
        self.tokens = nn.ParameterDict({str(k): STD * torch.randn(count, clip.text_width) for k in layers})
        self.first = min(layers)

    @torch.no_grad()
    def frozen(self, clip: Clip, ids: Tensor) -> Tensor:
        """Token numbers ``(C, L)`` → what enters the first block that has learned tokens, ``(C, L, w)``."""
        x = clip.embed_text(ids)
        for block in clip.text_blocks[: self.first]:
            x = block(x, attn_mask=clip.causal_mask(x.shape[1]))
        return x

    def forward(self, clip: Clip, x: Tensor, ids: Tensor) -> Tensor:
        """What ``frozen`` gave, and the same token numbers → features ``(C, d)``, not normalised."""
        for number in range(self.first, len(clip.text_blocks)):
            block = clip.text_blocks[number]
            if str(number) not in self.tokens:
                x = block(x, attn_mask=clip.causal_mask(x.shape[1]))
                continue
            learned = self.tokens[str(number)]
            k, context = len(learned), clip.model.context_length
            beyond = x[:, context - k :]
            inside = torch.cat([x[:, :1], learned.to(x.dtype).expand(len(x), -1, -1), x[:, 1 : context - k]], 1)
            inside = block(inside, attn_mask=clip.causal_mask(inside.shape[1]))
            x = torch.cat([inside[:, :1], inside[:, 1 + k :], beyond], 1)
        return clip.read_text(x, ids)


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Refuse numbers of blocks that a tower of this depth lacks, or none at all.

    Raises:
        ValueError: the message says which there are.
    """
    if not layers or not all(0 <= k < depth for k in layers):
        raise ValueError(f"numbers of blocks from 0 to {depth - 1} are expected, not {tuple(layers)}")
