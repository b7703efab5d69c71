"""Class activation maps: how much each pixel speaks for the classes a network sees (Zhou et al., CVPR 2016).

SCOT takes them for the masses of the cells: what the network recognises weighs more than the background.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES = (1.0, 1.5, 2.0)
CLASSES = 2  # the likeliest ones that a map is the maximum of


def activation(maps: Tensor, logits: Tensor, head: Tensor, size: Sequence[int]) -> Tensor:
    """The map of one scale, ``(H, W)``: the maximum of those of the two likeliest classes.

    Each is (m − min m) / max m of m = Σ_c w_c maps_c, as the official code has it: its maximum stays below 1.

    Args:
        maps: of the last convolution, ``(C, h, w)``.
        logits: ``(classes,)``.
        head: weights of the last layer, ``(classes, C)``.
        size: H and W.
    """
    likeliest = logits.topk(min(CLASSES, len(logits))).indices
    m = torch.einsum("kc,chw->khw", head[likeliest], maps)
    m = F.interpolate(m[None], size=tuple(size), mode="bilinear", align_corners=True)[0]
    lowest, highest = m.amin((-2, -1), keepdim=True), m.amax((-2, -1), keepdim=True)
    return ((m - lowest) / torch.where(highest == 0, 1, highest)).amax(0)  # a map of zeros stays one


def combined(maps: Sequence[Tensor]) -> Tensor:
    """The sum of the scales' maps, scaled to a maximum of (nearly) 1."""
    total = torch.stack(list(maps)).sum(0)
    return total / (total.max() + 1e-5)
