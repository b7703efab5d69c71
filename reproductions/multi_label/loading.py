"""Multi-label images as a model takes them, in an order of their own in every epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from reproductions.loading import seed_of
from reproductions.machine import Machine
from reproductions.multi_label.augmentation import Transform

ALTERED, ORDERED, STEPPED = range(3)
"""What sets the random numbers of images, of their order and of the model's steps apart."""


class LabelledImages(Protocol):
    """What training and tests ask of a split, as ``datasets.multi_label`` gives it.

    Attributes:
        title: what messages call the data set.
        targets: int8 ``(n, C)``, 1 for present, 0 for absent and −1 for left out.
        sha256: names images and targets.
    """

    @property
    def title(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def targets(self) -> np.ndarray: ...
    @property
    def sha256(self) -> str: ...
    def __len__(self) -> int: ...
    def load(self, i: int) -> Image.Image: ...


@dataclass(frozen=True, eq=False)
class TrainingImages(Dataset[tuple[Tensor, Tensor]]):
    """Each image ``(3, side, side)``, altered anew in every epoch, and its targets ``(C,)``."""

    images: LabelledImages
    transform: Transform
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image = self.images.load(i)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
            torch.default_generator.manual_seed(seed_of(ALTERED, self.seed, self.epoch, i))
            return self.transform(image), torch.from_numpy(self.images.targets[i])


@dataclass(frozen=True, eq=False)
class ScoredImages(Dataset[Tensor]):
    """Each image ``(3, side, side)`` under a transform that draws no random numbers."""

    images: LabelledImages
    transform: Transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.transform(self.images.load(i))


def epoch_order(count: int, batch: int, seed: int, epoch: int, machine: Machine) -> list[list[int]]:
    """The images of each step of an epoch that this process takes; those of all processes are the step's batch.

    The order depends on seed and epoch alone. The images left over by whole batches are other ones every epoch.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(ORDERED, seed, epoch)))
    whole = order[: count - count % batch].split(batch)
    return [step[machine.rank :: machine.count].tolist() for step in whole]
