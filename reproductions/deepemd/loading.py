"""Images and episodes as patches, with random numbers that depend on neither workers nor interruptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from reproductions import UserError
from reproductions.datasets.image_files import ImageFiles
from reproductions.deepemd.episodes import Episode, episodes
from reproductions.deepemd.patches import Fcn, Grid, Sampling
from reproductions.loading import seed_of

Transform = Fcn | Grid | Sampling


def draw_episodes(files: ImageFiles, way: int, queries: int, count: int, seed: int, shot: int = 1) -> list[Episode]:
    """``count`` episodes of a split.

    Raises:
        UserError: the split has too few classes, or a class too few images.
    """
    try:
        return list(episodes(files.labels, way, shot, queries, count, seed))
    except ValueError as error:
        raise UserError(f"the {files.split} split of {files.title} is too small: {error}") from None


def images_of(episode: Episode) -> Tensor:
    """The episode's images: those of the support first, shot by shot."""
    return torch.cat([episode.support.t().flatten(), episode.query])


@dataclass(frozen=True, eq=False)
class TrainingImages(Dataset[tuple[Tensor, int]]):
    """The first patch of each image under the training transform, and its label; an epoch has patches of its own."""

    files: ImageFiles
    transform: Transform
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch, i))
        return _patches(self.files, i, self.transform, True, generator)[0], int(self.files.labels[i])


@dataclass(frozen=True, eq=False)
class EpisodeImages(Dataset[Tensor]):
    """Whole episodes as patches ``(way × shot + way × queries, P, 3, 84, 84)``, the support images first, shot by shot.

    Attributes:
        train: whether the transform is that of training.
        seed: of the crops; those of an episode depend on nothing else and on its position.
    """

    files: ImageFiles
    transform: Transform
    drawn: Sequence[Episode]
    train: bool
    seed: int

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, k: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of(self.seed, k))
        indices = images_of(self.drawn[k]).tolist()
        return torch.stack([_patches(self.files, i, self.transform, self.train, generator) for i in indices])


@dataclass(frozen=True, eq=False)
class SplitImages(Dataset[Tensor]):
    """Every image of a split as patches ``(P, 3, 84, 84)``, under a test transform that draws no random numbers."""

    files: ImageFiles
    transform: Transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Tensor:
        return _patches(self.files, i, self.transform, False, torch.Generator())


def _patches(files: ImageFiles, i: int, transform: Transform, train: bool, generator: torch.Generator) -> Tensor:
    try:
        return transform(files.load(i), train, generator)
    except ValueError as error:
        raise UserError(f"{files.paths[i]} cannot be cut into patches: {error}") from None
