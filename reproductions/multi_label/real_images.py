"""Real images that fit on any machine: COCO-256 with stored patch features, and Corel5k's sets of visual tokens.

COCO-256: 128 training and 128 test images, MobileNetV2's 7 × 7 patches, and CLIP's text vectors of the classes.
Corel5k: 4500 training and 500 test images, each a set of visual tokens, with 374 words. Encoders are one linear layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from reproductions.datasets import coco, coco_yolo, corel5k
from reproductions.multi_label.in_memory import Descent
from reproductions.multi_label.localisation import coverage
from reproductions.multi_label.tokens import Tokens
from reproductions.storage import content_hash

SEEDS = 3
STORED = {"train": "train", "test": "val"}  # COCO-256 is tested on its validation split
BOX_SIDE = 56  # px on which boxes are drawn: eight to a patch


class Study(ABC):
    """A small real data set, its columns of labels in the order of the scores: seen ones first.

    Attributes:
        name, title: "coco256", "COCO-256".
        table: where its rows stand.
        candidates: setting → the labels that are ranked.
        kappa: κ, our choice.
        predicted: labels an image for precision and recall.
    """

    name: str
    title: str
    candidates: dict[str, slice]
    kappa: float
    predicted: int
    descent: Descent

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Hash of the data."""

    @property
    @abstractmethod
    def seen(self) -> int:
        """How many labels training knows."""

    @abstractmethod
    def inputs(self, split: str) -> Tensor:
        """What the encoder takes."""

    @abstractmethod
    def targets(self, split: str) -> NDArray[np.int8]:
        """``(n, C)``."""

    @abstractmethod
    def encoder(self) -> nn.Module:
        """Untrained: inputs → ``Tokens``."""

    @abstractmethod
    def text(self) -> Tensor:
        """Text vectors ``(C, d)``; a parameter is trained."""

    def covered(self) -> Tensor | None:
        """The share of each region that a label's boxes cover in the test images, where boxes are known."""
        return None


class Projection(nn.Module):
    """Stored patches ``(B, channels, H, W)`` into the space of the text."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(channels, dim, bias=False)

    def forward(self, images: Tensor) -> Tokens:
        regions = self.project(images.flatten(2).mT)
        return Tokens(regions.mean(-2), (regions,))


class TokenVectors(nn.Module):
    """Sets of visual tokens ``(B, K)``, padded with −1, as their vectors."""

    def __init__(self, vocabulary: int, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(vocabulary, dim)

    def forward(self, images: Tensor) -> Tokens:
        mask = images >= 0
        regions = self.vectors(images.clamp(min=0))
        share = mask / mask.sum(-1, keepdim=True).clamp(min=1)
        return Tokens((share.unsqueeze(-1) * regions).sum(-2), (regions,), mask)


@dataclass(frozen=True, eq=False)
class Coco256(Study):
    """COCO-256 with 48 seen and 17 unseen classes (Bansal et al., ECCV 2018)."""

    folder: Path
    name = "coco256"
    title = "COCO-256"
    kappa = 20.0
    predicted = 3
    descent = Descent(epochs=16, batch=16, lr=2e-3)
    seen = len(coco.SEEN)
    candidates = {"ZSL": slice(len(coco.SEEN), None), "GZSL": slice(None)}  # noqa: RUF012

    @cached_property
    def splits(self) -> dict[str, coco_yolo.CocoPatches]:
        return {name: coco_yolo.load_coco_patches(self.folder, kept) for name, kept in STORED.items()}

    @cached_property
    def columns(self) -> list[int]:
        """Seen classes, then unseen ones, among COCO's 80."""
        return [coco.CLASSES.index(name) for name in (*coco.SEEN, *coco.UNSEEN)]

    @property
    def sha256(self) -> str:
        return content_hash(*(part.sha256 for part in self.splits.values()))

    def inputs(self, split: str) -> Tensor:
        return torch.from_numpy(np.array(self.splits[split].features))  # a copy: what the loader gives is read-only

    def targets(self, split: str) -> NDArray[np.int8]:
        return self.splits[split].targets[:, self.columns]

    def encoder(self) -> nn.Module:
        return Projection(coco_yolo.CHANNELS, self.text().shape[1])

    def text(self) -> Tensor:
        return F.normalize(torch.from_numpy(self.splits["train"].clip[self.columns]), dim=-1)

    def covered(self) -> Tensor | None:
        """The features are of whole images, so boxes and patches are parts of the same square."""
        found = self.splits["test"].boxes
        if found is None:
            return None
        most = max(len(b.objects) for b in found)
        boxes, objects = np.zeros((len(found), most, 4), np.int64), np.full((len(found), most), -1)
        for k, b in enumerate(found):
            corners = b.corners * BOX_SIDE
            boxes[k, : len(corners)] = np.concatenate([np.floor(corners[:, :2]), np.ceil(corners[:, 2:])], 1)
            objects[k, : len(corners)] = b.objects
        classes = len(coco.CLASSES)
        return coverage(boxes, objects, classes, BOX_SIDE, coco_yolo.GRID)[..., self.columns]


@dataclass(frozen=True, eq=False)
class Corel5k(Study):
    """Corel5k: all words are seen."""

    folder: Path
    name = "corel5k"
    title = "Corel5k"
    kappa = 5.0  # chosen on the last 500 training images
    predicted = 5  # as is the rule on Corel5k
    descent = Descent(epochs=8, batch=64, lr=4e-3)
    dim = 64
    seen = corel5k.WORDS
    candidates = {"all words": slice(None)}  # noqa: RUF012

    @cached_property
    def splits(self) -> dict[str, corel5k.TokenSets]:
        return {name: corel5k.load_corel5k(self.folder, name) for name in corel5k.SPLITS}

    @property
    def sha256(self) -> str:
        return content_hash(*(part.sha256 for part in self.splits.values()))

    def inputs(self, split: str) -> Tensor:
        return torch.from_numpy(self.splits[split].tokens)

    def targets(self, split: str) -> NDArray[np.int8]:
        return self.splits[split].targets

    def encoder(self) -> nn.Module:
        return TokenVectors(corel5k.TOKENS, self.dim)

    def text(self) -> Tensor:
        return nn.Parameter(torch.randn(corel5k.WORDS, self.dim))


@cache
def studies(folder: Path | None) -> tuple[Study, ...]:
    """The small real data sets that a folder holds.

    Raises:
        UserError: one that is there, but not as expected.
    """
    found: list[Study] = []
    if folder is not None and (folder / coco_yolo.PATCHES).is_file():
        found.append(Coco256(folder))
    if folder is not None and any((folder / name).is_dir() for name in corel5k.FOLDERS):
        found.append(Corel5k(folder))
    return tuple(found)
