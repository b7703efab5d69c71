"""Losses of independent labels: binary cross entropy, and the asymmetric loss.

Logits and targets have shape ``(B, C)``; targets are 1 present, 0 absent, −1 left out. Both losses are sums over the
labels and means over the images.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """−Σ_c y log p + (1 − y) log(1 − p) with p = σ(logit), a mean over the images."""
    losses = F.binary_cross_entropy_with_logits(logits, (targets == 1).to(logits), reduction="none")
    return torch.where(targets < 0, 0, losses).sum() / len(logits)


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    gamma_positive: float = 0.0,
    gamma_negative: float = 4.0,
    clip: float = 0.05,
    focal_gradient: bool = False,
    floor: float = 1e-8,
) -> Tensor:
    """ASL (Ben-Baruch et al., ICCV 2021, eqs. 5–7), a mean over the images.

    −Σ_c y (1 − p)^γ₊ log p + (1 − y) p_m^γ₋ log(1 − p_m), with p = σ(logit) and p_m = max(p − m, 0): easy negatives
    count less, and those below the margin not at all.

    Args:
        logits: ``(B, C)``.
        targets: ``(B, C)``.
        gamma_positive: γ₊ ≥ 0.
        gamma_negative: γ₋ ≥ 0.
        clip: the margin m, in [0, 1).
        focal_gradient: the gradient goes through the weights (1 − p)^γ₊ and p_m^γ₋ too; its authors train without.
        floor: what p and 1 − p_m are at least in the logarithms; 0 for none. A label that is further off has no
            gradient from there.
    """
    p = logits.sigmoid()
    p_m = (p - clip).clamp(min=0)
    log_p = F.logsigmoid(logits)
    log_not = F.logsigmoid(-logits) if clip == 0 else torch.log1p(-p_m)
    if floor > 0:
        log_p, log_not = (x.clamp(min=math.log(floor)) for x in (log_p, log_not))
    weights = torch.where(targets == 1, (1 - p) ** gamma_positive, p_m**gamma_negative)
    losses = -(weights if focal_gradient else weights.detach()) * torch.where(targets == 1, log_p, log_not)
    return torch.where(targets < 0, 0, losses).sum() / len(logits)
