"""The Ladder Local Adapter: what text says about a grid of patches, beside the frozen tower.

Notation: X are the patches of the global path after a block, T the raw text features of the current labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LadderAdapter(nn.Module):
    """out = W_out (Y₁ ∘ U₁ + Y₂ ∘ U₂): two streams of the patches, each attending to the text, under a spatial gate.

    U₁ = GELU(BN(conv₁ₓ₁ X)) and U₂ = GELU(BN(conv₃ₓ₃ X)), then U_i ← U_i + softmax(LN_i(U_i) LN(T)ᵀ/√d) LN(T), and
    Y = σ(conv₃ₓ₃ [mean; max over the channels of (U₁, U₂)]), one map for each stream. Since T are the current labels,
    so is what the patches become; batch normalisation couples the images of a batch in training mode only.

    Args:
        width: channels w of a patch.
        dimension: d of the text features, and of both streams.
    """

    def __init__(self, width: int, dimension: int) -> None:
        super().__init__()
        self.point = _stream(width, dimension, 1)
        self.field = _stream(width, dimension, 3)
        self.gate = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.out = nn.Conv2d(dimension, width, 1, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(dimension) for _ in range(2))
        self.text_norm = nn.LayerNorm(dimension)

    def forward(self, patches: Tensor, text: Tensor, grid: tuple[int, int]) -> Tensor:
        """What is added to the local path.

        Args:
            patches: X, ``(B, N, w)``, row by row.
            text: T, ``(C, d)``, not normalised.
            grid: rows and columns, N in all.

        Returns:
            ``(B, N, w)``.
        """
        X = patches.mT.unflatten(-1, grid)
        T = self.text_norm(text)
        U1, U2 = self._told(self.point(X), T, self.norms[0]), self._told(self.field(X), T, self.norms[1])
        both = torch.cat([U1, U2], 1)
        Y = self.gate(torch.stack([both.mean(1), both.amax(1)], 1)).sigmoid()
        return self.out(Y[:, :1] * U1 + Y[:, 1:] * U2).flatten(2).mT

    def _told(self, U: Tensor, T: Tensor, norm: nn.Module) -> Tensor:
        """U + softmax(LN(U) Tᵀ/√d) T, shape ``(B, d, rows, columns)``."""
        u = norm(U.movedim(1, -1))
        return U + ((u @ T.mT / T.shape[-1] ** 0.5).softmax(-1) @ T).movedim(-1, 1)


def _stream(width: int, dimension: int, side: int) -> nn.Sequential:
    """Convolution of a square of patches, batch normalisation, GELU."""
    convolution = nn.Conv2d(width, dimension, side, padding=side // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(dimension), nn.GELU())
