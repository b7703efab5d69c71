"""What an image data set is to the rest: images, labels, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from reproductions.storage import content_hash


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images in memory.

    Attributes:
        images: float32 ``(n, channels, height, width)`` in [0, 1].
        labels: int64 ``(n,)``.
        tier: "embedded" when it comes with the package's dependencies.
    """

    name: str
    title: str
    tier: str
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    licence: str
    source: str

    @cached_property
    def sha256(self) -> str:
        """Hash of all pixels and labels: what the numbers were really measured on."""
        return content_hash(self.images, self.labels)

    def split(self, classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Images and labels of some classes, the labels renumbered 0, 1, … in the order given."""
        keep = np.flatnonzero(np.isin(self.labels, classes))
        position = {c: k for k, c in enumerate(classes)}
        labels = [position[int(c)] for c in self.labels[keep]]
        return torch.from_numpy(self.images[keep]), torch.tensor(labels)
