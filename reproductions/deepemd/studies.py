"""Few-shot data sets small enough to train an encoder on here: digits, and what ``--data`` holds of two others.

Each has base classes, which an encoder of this project's is trained on, and novel ones, which its episodes are of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reproductions.datasets import ImageSet, load_digits
from reproductions.datasets.omniglot import load_omniglot, load_one_shot_runs
from reproductions.datasets.tiny_imagenet import base_and_novel, load_tiny_imagenet, wnids
from reproductions.deepemd.backbone import ResNet12
from reproductions.deepemd.episodes import Episode, episodes
from reproductions.deepemd.pretrain import Pretraining, cached_feature_maps, pretrained_encoder
from reproductions.experiment import Options
from reproductions.storage import content_hash

QUERIES = 15


@dataclass(frozen=True)
class Task:
    """A column of a table: so many episodes of so many classes and images, or the runs that come with the data."""

    way: int
    shot: int
    count: int
    runs: bool = False

    @property
    def column(self) -> str:
        return f"{self.way}-way {self.shot}-shot{' runs' if self.runs else ''}"


@dataclass(frozen=True, eq=False)
class Study:
    """One data set.

    Attributes:
        table: what its table is called.
        name, tier: of the data.
        load: images and labels of the base classes, of the novel ones, and the runs (all their images, and which are
            whose), where there are any.
        pretraining: of the encoder.
    """

    table: str
    name: str
    tier: str
    pretraining: Pretraining
    tasks: tuple[Task, ...]
    load: Callable[[], tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, list[Episode]] | None]]

    @cached_property
    def _loaded(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, list[Episode]] | None]:
        return self.load()

    @property
    def base(self) -> tuple[Tensor, Tensor]:
        """Images and labels that the encoder is trained on."""
        return self._loaded[0]

    def images(self, task: Task) -> Tensor:
        """The images that the episodes of a task number."""
        runs = self._loaded[2]
        return runs[0] if task.runs and runs is not None else self._loaded[1][0]

    def episodes(self, task: Task, seed: int) -> list[Episode]:
        """The episodes of a task; the same for every method."""
        runs = self._loaded[2]
        if task.runs and runs is not None:
            return runs[1]
        labels = self._loaded[1][1].numpy()
        return list(episodes(labels, task.way, task.shot, QUERIES, task.count, seed=seed + task.shot))

    @cached_property
    def sha256(self) -> str:
        """Of all images and labels."""
        (base, base_labels), (novel, novel_labels), runs = self._loaded
        parts = [base, base_labels, novel, novel_labels, *([runs[0]] if runs is not None else [])]
        return content_hash(*(x.numpy() for x in parts))


@cache
def studies(data: Path | None) -> tuple[Study, ...]:
    """The digits; Omniglot and Tiny-ImageNet where the folder has them.

    Raises:
        UserError: a data set that is there, but not as expected.
    """
    found = [_digits()]
    if data is not None:
        omniglot = data / "omniglot" if (data / "omniglot").is_dir() else data
        if any(omniglot.glob("images_background*")):
            found.append(_omniglot(omniglot))
        if (data / "tiny-imagenet-200").is_dir() or any(data.glob("tinyimagenet200_*.zip")):
            found.append(_tiny_imagenet(data))
    return tuple(found)


def study_of(table: str, options: Options) -> Study:
    """The study whose table it is, of accuracies or of gains."""
    return next(s for s in studies(options.data) if s.table == table.removesuffix("_gains"))


def encoder(study: Study, options: Options, on_epoch: Callable[[int, int, float], None] = lambda *_: None) -> ResNet12:
    """The encoder that is trained on the base classes, once."""
    return pretrained_encoder(*study.base, replace(study.pretraining, seed=options.seed), options.cache, on_epoch)


@cache
def feature_maps(study: Study, task: Task, options: Options) -> Tensor:
    """Feature maps ``(n, C, H, W)`` of the images of a task; every row, in any process, reads the same."""
    return cached_feature_maps(encoder(study, options), study.images(task), study.pretraining, options.cache)


def _digits() -> Study:
    digits = load_digits()
    return Study(
        "few_shot_digits",
        digits.name,
        digits.tier,
        Pretraining(classes=(0, 1, 2, 3, 4)),
        (Task(5, 1, 600), Task(5, 5, 600)),
        lambda: (digits.split((0, 1, 2, 3, 4)), digits.split((5, 6, 7, 8, 9)), None),
    )


def _omniglot(folder: Path) -> Study:
    """Trained on the characters of five alphabets in eight, drawn once; episodes are of the other alphabets.

    The one-shot runs are of alphabets that the background sets do not have.
    """
    everything = load_omniglot(folder)
    alphabets = sorted({name.partition("/")[0] for name in everything.classes})
    order = [alphabets[k] for k in np.random.default_rng(0).permutation(len(alphabets))]
    kept = set(order[: round(len(order) * 5 / 8)])
    base = tuple(k for k, name in enumerate(everything.classes) if name.partition("/")[0] in kept)
    novel = tuple(sorted(set(range(len(everything.classes))) - set(base)))
    return Study(
        "few_shot_omniglot",
        "Omniglot",
        everything.tier,
        Pretraining(classes=base, widths=(32, 64, 128), epochs=30, rotation=10.0),
        (Task(20, 1, 20, runs=True), Task(5, 1, 600), Task(5, 5, 600), Task(10, 1, 600)),
        lambda: (everything.split(base), everything.split(novel), _runs(folder)),
    )


def _runs(folder: Path) -> tuple[Tensor, list[Episode]]:
    runs = load_one_shot_runs(folder)
    images = torch.from_numpy(np.concatenate([x for run in runs for x in (run.training, run.test)]))
    found, start = [], 0
    for run in runs:
        way = len(run.training)
        support = torch.arange(start, start + way)[:, None]
        query = torch.arange(start + way, start + way + len(run.test))
        found.append(Episode(support, query, torch.from_numpy(run.answers)))
        start += way + len(run.test)
    return images, found


def _tiny_imagenet(folder: Path) -> Study:
    """Trained on the training images of 150 classes; episodes are of the validation images of the 50 others."""
    base, novel = base_and_novel(wnids(folder, "train"))

    def split(of: ImageSet) -> tuple[Tensor, Tensor]:
        return of.split(tuple(range(len(of.classes))))

    def load() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], None]:
        return (
            split(load_tiny_imagenet(folder, "train", base)),
            split(load_tiny_imagenet(folder, "val", novel)),
            None,
        )

    pretraining = Pretraining(
        classes=tuple(range(len(base))),
        side=64,
        widths=(24, 48, 96, 192),
        epochs=12,
        lr=0.1,
        rotation=10.0,
        flip=True,
    )
    tasks = (Task(5, 1, 600), Task(5, 5, 600), Task(10, 1, 600))
    return Study("few_shot_tiny_imagenet", "Tiny-ImageNet", "local", pretraining, tasks, load)
