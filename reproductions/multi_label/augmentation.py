"""What is done to images before a model sees them, in training and in tests, through torchvision's transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from reproductions.multi_label.configuration import Settings

Transform = Callable[[Image.Image], Tensor]
"""An RGB image of any size becomes ``(3, side, side)``."""

BICUBIC = InterpolationMode.BICUBIC


def pad_crop_erase(settings: Settings) -> Transform:
    """RAM's: mirrored, moved by up to 10 px onto black, and in half of the images a part replaced by noise.

    The further blur, noise and contrast of the official code are left out.
    """
    return v2.Compose(
        [
            v2.Resize((settings.side, settings.side), BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.Pad(10),
            v2.RandomCrop(settings.side),
            *_as_input(settings),
            v2.RandomErasing(p=0.5, value="random"),
        ]
    )


def resized_crop(settings: Settings) -> Transform:
    """A part of the image of at least a quarter of its area, mirrored: as ML-GCN and its successors have it."""
    crop = v2.RandomResizedCrop((settings.side, settings.side), scale=(0.25, 1), interpolation=BICUBIC)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *_as_input(settings)])


def randaugment_cutout(settings: Settings) -> Transform:
    """RandAugment and a grey part of up to a quarter of the area: as ML-Decoder and Query2Label have them."""
    return v2.Compose(
        [
            v2.Resize((settings.side, settings.side), BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(),
            *_as_input(settings),
            v2.RandomErasing(p=1, scale=(0.02, 0.25), ratio=(0.5, 2)),  # 0 is the mean colour
        ]
    )


RECIPES: dict[str, Callable[[Settings], Transform]] = {
    recipe.__name__: recipe for recipe in (pad_crop_erase, resized_crop, randaugment_cutout)
}
"""The augmentations that a configuration may name."""


def whole_image(settings: Settings) -> Transform:
    """What tests see: the image resized to a square, bilinearly, as torchvision does it where nothing else is said."""
    return v2.Compose([v2.Resize((settings.side, settings.side)), *_as_input(settings)])


def _as_input(settings: Settings) -> list[Any]:
    as_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return [*as_tensor, v2.Normalize(settings.mean, settings.std), v2.ToPureTensor()]
