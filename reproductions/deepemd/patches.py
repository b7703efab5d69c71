"""From an image to the patches that the encoder sees: the whole image, a pyramid of grids, or random crops.

Every random number comes from the generator that is passed in, in the order in which torchvision would draw it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

SIDE = 84
SHRUNK = 92
"""Test images are resized to 92×92, whatever their aspect ratio, before the central 84×84 is cut out."""
SCALE = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
TRIES = 10


@dataclass(frozen=True)
class Normalisation:
    """Means and standard deviations of the three channels, of pixels in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, patches: Sequence[Image.Image]) -> Tensor:
        """Stack the patches into a float32 tensor ``(patches, 3, height, width)``."""
        pixels = torch.stack([F.pil_to_tensor(patch) for patch in patches])
        return F.normalize(F.to_dtype(pixels, torch.float32, scale=True), list(self.mean), list(self.std))


COMMON = Normalisation((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255))
CIFAR_FS = Normalisation((0.5071, 0.4866, 0.4409), (0.2009, 0.1984, 0.2023))
NORMALISATIONS = {"cifar_fs": CIFAR_FS}
"""The data sets that have numbers of their own; all others take ``COMMON``.

The official code forgets CIFAR-FS's own numbers where it samples patches; here they hold everywhere.
"""


@dataclass(frozen=True)
class Fcn:
    """One patch, the image itself: a random crop in training, the centre of the image in testing."""

    normalisation: Normalisation = COMMON

    def __call__(self, image: Image.Image, train: bool, generator: torch.Generator) -> Tensor:
        if train:
            return self.normalisation([_random_crop(image, generator)])
        return self.normalisation([F.center_crop(F.resize(image, [SHRUNK, SHRUNK]), [SIDE, SIDE])])


@dataclass(frozen=True)
class Grid:
    """For each n in ``sizes`` the n² enlarged cells of an n×n grid on the original image, row by row.

    In testing a cell is ``ratio`` times as long as an even division; in training the ratio is drawn from [1, 3), once
    for each image and n, and each patch may be flipped. The official code crops CIFAR-FS's patches once more, as
    ``Fcn`` crops the image; here all data sets are treated alike.
    """

    sizes: tuple[int, ...]
    ratio: float = 2.0
    normalisation: Normalisation = COMMON

    def __call__(self, image: Image.Image, train: bool, generator: torch.Generator) -> Tensor:
        patches = []
        for n in self.sizes:
            ratio = 1 + 2 * torch.rand(1, generator=generator).item() if train else self.ratio
            columns, rows = ([grid_interval(side, ratio, n, k) for k in range(n)] for side in image.size)
            for top, bottom in rows:
                for left, right in columns:
                    patch = F.resized_crop(image, top, left, bottom - top, right - left, [SIDE, SIDE])
                    patches.append(_random_flip(patch, generator) if train else patch)
        return self.normalisation(patches)


@dataclass(frozen=True)
class Sampling:
    """Independent random crops of the image, in training and in testing alike."""

    patches: int
    normalisation: Normalisation = COMMON

    def __call__(self, image: Image.Image, train: bool, generator: torch.Generator) -> Tensor:
        return self.normalisation([_random_crop(image, generator) for _ in range(self.patches)])


def grid_interval(side: int, ratio: float, n: int, k: int) -> tuple[int, int]:
    """Pixels [lower, upper) that cell ``k`` of ``n`` takes on a side: ``ratio`` times an even share, cut at the ends.

    Raises:
        ValueError: the cell has no pixel.
    """
    step, half = side // n, int(side / n * ratio) // 2
    centre = step // 2 + k * step
    lower, upper = max(0, centre - half), min(side, centre + half)
    if lower >= upper:
        raise ValueError(f"a side of {side} px is too short for {n} cells")
    return lower, upper


def _random_flip(image: Image.Image, generator: torch.Generator) -> Image.Image:
    return F.horizontal_flip(image) if torch.rand(1, generator=generator) < 0.5 else image


def _random_crop(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """A crop of random area, aspect ratio and place, resized to 84×84 and flipped half of the time."""
    return _random_flip(F.resized_crop(image, *_random_box(*image.size, generator), [SIDE, SIDE]), generator)


def _random_box(width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width as torchvision's RandomResizedCrop draws them, but from this generator.

    The area is uniform in 8–100 % of the image's, the aspect ratio log-uniform in 3/4–4/3. When ten such boxes do not
    fit, the central one of the nearest allowed aspect ratio is taken.
    """
    for _ in range(TRIES):
        area = width * height * torch.empty(1).uniform_(*SCALE, generator=generator).item()
        logarithms = torch.log(torch.tensor(ASPECT)).tolist()
        aspect = math.exp(torch.empty(1).uniform_(*logarithms, generator=generator).item())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = (
                int(torch.randint(0, whole - part + 1, (1,), generator=generator))
                for whole, part in ((height, h), (width, w))
            )
            return top, left, h, w
    w, h = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    return (height - h) // 2, (width - w) // 2, h, w
