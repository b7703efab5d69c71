"""The five few-shot benchmarks in the layouts of DeepEMD's archives, and folders of one's own classes.

The loaders take the folder that holds ``miniimagenet/``, ``tiered_imagenet/``, ``cub/``, ``FC100/`` or ``cifar_fs/``.
Whatever is missing or unexpected is refused before any image is decoded.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reproductions import UserError
from reproductions.datasets.files import is_image
from reproductions.datasets.image_files import ImageFiles

SPLITS = ("train", "val", "test")
IMAGENET_TERMS = "ImageNet terms of access (non-commercial research and education)"
CIFAR_TERMS = "none stated (CIFAR-100)"
CUB_BROKEN_ROW = 5864


@dataclass(frozen=True)
class Benchmark:
    """What is known of a benchmark in advance.

    Attributes:
        classes: the number of classes of the train, val and test split.
        raw: whether the official images are larger than the encoder's input.
    """

    title: str
    folder: str
    classes: tuple[int, int, int]
    raw: bool
    licence: str
    source: str


BENCHMARKS = {
    "mini_imagenet": Benchmark(
        "miniImageNet",
        "miniimagenet",
        (64, 16, 20),
        True,
        IMAGENET_TERMS,
        "O. Vinyals et al., Matching Networks for One Shot Learning, 2016; split of S. Ravi, H. Larochelle, 2017",
    ),
    "tiered_imagenet": Benchmark(
        "tieredImageNet",
        "tiered_imagenet",
        (351, 97, 160),
        True,
        IMAGENET_TERMS,
        "M. Ren et al., Meta-Learning for Semi-Supervised Few-Shot Classification, 2018",
    ),
    "cub": Benchmark(
        "CUB-200-2011",
        "cub",
        (100, 50, 50),
        True,
        "non-commercial research and education",
        "C. Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, 2011; split of H.-J. Ye et al. (FEAT), 2020",
    ),
    "fc100": Benchmark(
        "FC100", "FC100", (60, 20, 20), False, CIFAR_TERMS, "B. N. Oreshkin et al., TADAM, 2018; from CIFAR-100"
    ),
    "cifar_fs": Benchmark(
        "CIFAR-FS",
        "cifar_fs",
        (64, 16, 20),
        False,
        CIFAR_TERMS,
        "L. Bertinetto et al., Meta-learning with differentiable closed-form solvers, 2019; from CIFAR-100",
    ),
}


def mini_imagenet(folder: Path, split: str) -> ImageFiles:
    """``miniimagenet/images/`` and ``miniimagenet/split/<split>.csv``; classes in the order of the csv."""
    root = _root("mini_imagenet", folder, split)
    table = root / "split" / f"{split}.csv"
    return _benchmark("mini_imagenet", split, table, _listed(table, root / "images"))


def cub(folder: Path, split: str) -> ImageFiles:
    """``cub/<file of the csv>`` and ``cub/split/<split>.csv``; the birds cropped to their boxes in advance.

    The official code leaves out row 5864 (from zero) of the train split, unseen, because its image is broken. Here
    that row alone is left out, and only where it cannot be decoded; a whole image there belongs to the split.
    """
    root = _root("cub", folder, split)
    table = root / "split" / f"{split}.csv"
    pairs = _listed(table, root)
    files = _benchmark("cub", split, table, pairs)
    if split == "train" and len(pairs) > CUB_BROKEN_ROW:
        try:
            files.load(CUB_BROKEN_ROW)
        except UserError:
            return _benchmark("cub", split, table, pairs[:CUB_BROKEN_ROW] + pairs[CUB_BROKEN_ROW + 1 :])
    return files


def tiered_imagenet(folder: Path, split: str) -> ImageFiles:
    """``tiered_imagenet/<split>/<class>/``; classes and images sorted by name.

    The official code numbers the classes in the order the file system lists them, which differs between machines:
    its episodes of a given seed cannot be had again. Sorted, they are the same everywhere.
    """
    return _split_folder("tiered_imagenet", folder, split, split)


def fc100(folder: Path, split: str) -> ImageFiles:
    """``FC100/<split>/<class>/``; sorted, unlike officially, as for tieredImageNet."""
    return _split_folder("fc100", folder, split, split)


def cifar_fs(folder: Path, split: str) -> ImageFiles:
    """``cifar_fs/meta-<split>/<class>/``; sorted, unlike officially, as for tieredImageNet."""
    return _split_folder("cifar_fs", folder, split, f"meta-{split}")


FEW_SHOT: dict[str, Callable[[Path, str], ImageFiles]] = {
    "mini_imagenet": mini_imagenet,
    "tiered_imagenet": tiered_imagenet,
    "cub": cub,
    "fc100": fc100,
    "cifar_fs": cifar_fs,
}


def class_folder(folder: Path, split_file: Path, split: str) -> ImageFiles:
    """Any folder with one sub-folder a class; a JSON file names the classes of each split.

    The file is ``{"train": [class, …], "val": […], "test": […]}``; classes are numbered in its order, and those it
    does not name are left out.

    Raises:
        UserError: the file is not of that form, a split is empty, a class is in two places, is unknown or has no image.
    """
    _check_split(split)
    chosen = _read_splits(split_file)
    known = {p.name: p for p in _subfolders(folder)}
    for name, classes in chosen.items():
        for c in classes:
            if c not in known:
                raise UserError(f"{split_file} names the class {c!r} under {name!r}, but {folder} has no such folder")
    pairs = [pair for c in chosen[split] for pair in _images_of(known[c])]
    return _image_files(
        pairs,
        name=folder.resolve().name,
        title=folder.resolve().name,
        split=split,
        tier="local",
        licence="the owner's",
        source=f"{folder} split by {split_file.name}",
    )


def _read_splits(split_file: Path) -> dict[str, list[str]]:
    expected = 'a JSON object {"train": [class names], "val": [...], "test": [...]} is expected'
    try:
        content = json.loads(split_file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{split_file} cannot be read: {expected} there") from error
    except ValueError as error:
        raise UserError(f"{split_file} is not JSON: {expected}") from error
    if not isinstance(content, dict) or set(content) != set(SPLITS):
        raise UserError(f"{split_file} has not the three splits: {expected}")
    home: dict[str, str] = {}
    for name in SPLITS:
        classes = content[name]
        if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
            raise UserError(f"{split_file} has no list of names under {name!r}: {expected}")
        if not classes:
            raise UserError(f"{split_file} has no class under {name!r}: every split needs at least one")
        for c in classes:
            if c in home:
                raise UserError(f"{split_file} names the class {c!r} under {home[c]!r} and {name!r}: it can stand once")
            home[c] = name
    return content


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}: choose from {', '.join(SPLITS)}")


def _root(name: str, folder: Path, split: str) -> Path:
    _check_split(split)
    root = folder / BENCHMARKS[name].folder
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: {BENCHMARKS[name].title} is expected there")
    return root


def _listed(table: Path, images: Path) -> list[tuple[Path, str]]:
    """Image file and class of every row of a csv."""
    expected = "a header line and rows of image file and class are expected"
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} cannot be read: {expected} there") from error
    if not rows or is_image(rows[0][0]):
        raise UserError(f"{table} has no header line: {expected}")
    if short := next((row for row in rows if len(row) < 2), None):
        raise UserError(f"{table} has the line {','.join(short)!r} of one column: {expected}")
    pairs = [(images / file, label) for file, label, *_ in rows[1:]]
    if missing := next((path for path, _ in pairs if not path.is_file()), None):
        raise UserError(f"{table} lists {missing}, but there is no such file: unpack the images completely")
    return pairs


def _split_folder(name: str, folder: Path, split: str, split_folder: str) -> ImageFiles:
    root = _root(name, folder, split) / split_folder
    return _benchmark(name, split, root, [pair for c in _subfolders(root) for pair in _images_of(c)])


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: one sub-folder of images for each class is expected there")
    return sorted((p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: p.name)


def _images_of(folder: Path) -> list[tuple[Path, str]]:
    images = sorted((p for p in folder.iterdir() if is_image(p.name)), key=lambda p: p.name)
    if not images:
        raise UserError(f"{folder} has no image: each class needs some, as .jpg or .png files")
    return [(path, folder.name) for path in images]


def _benchmark(name: str, split: str, where: Path, pairs: list[tuple[Path, str]]) -> ImageFiles:
    facts = BENCHMARKS[name]
    files = _image_files(
        pairs,
        name=name,
        title=facts.title,
        split=split,
        tier="paper",
        licence=facts.licence,
        source=facts.source,
        raw=facts.raw,
    )
    expected = facts.classes[SPLITS.index(split)]
    if len(files.classes) != expected:
        raise UserError(
            f"{where} has {len(files.classes)} classes, but the {split} split of {facts.title} has {expected}"
        )
    return files


def _image_files(pairs: list[tuple[Path, str]], **facts: Any) -> ImageFiles:
    """Number the classes in the order in which they first appear."""
    numbers: dict[str, int] = {}
    labels = np.array([numbers.setdefault(c, len(numbers)) for _, c in pairs], dtype=np.int64)
    return ImageFiles(paths=tuple(path for path, _ in pairs), labels=labels, classes=tuple(numbers), **facts)
