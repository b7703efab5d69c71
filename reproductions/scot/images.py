"""What SCOT does to an image before its network sees it: normalised, then resized to a longer side of 300 pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 300
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(image: np.ndarray, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Pixels 0 … 255 ``(H, W, 3)`` by a mean and deviation, ImageNet's unless said: float32 ``(3, H, W)``."""
    x = torch.from_numpy(np.asarray(image, np.float32)).movedim(-1, 0) / 255
    return (x - torch.tensor(tuple(mean))[:, None, None]) / torch.tensor(tuple(std))[:, None, None]


def resized(x: Tensor, side: int = SIDE) -> tuple[Tensor, float]:
    """A map ``(C, H, W)`` with its longer side brought to ``side``, up or down, and the ratio of the sizes.

    Keypoints are multiplied by the same ratio; height and width are rounded down.
    """
    height, width = x.shape[-2:]
    ratio = side / max(height, width)
    size = int(height * ratio), int(width * ratio)
    return F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0], ratio
