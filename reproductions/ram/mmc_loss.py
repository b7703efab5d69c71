"""The multi-matching contrastive loss of RAM."""

from __future__ import annotations

import torch
from torch import Tensor


def mmc_loss(Z: Tensor, targets: Tensor) -> Tensor:
    """L(Z) = −(1/ΣY) Σ_bc Y_bc (Z_bc − log Σ_b'c' exp Z_b'c'): one softmax over all image–label pairs of the batch.

    Args:
        Z: logits ``(B, C)``.
        targets: Y, ``(B, C)``: 1 present, 0 absent, −1 left out of both sums.

    Returns:
        A scalar; 0 where no label is present.
    """
    present = targets == 1
    log_total = Z.masked_fill(targets < 0, -torch.inf).logsumexp((0, 1))
    return torch.where(present, log_total - Z, 0).sum() / present.sum().clamp(min=1)
