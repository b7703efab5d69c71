"""Images with several labels each, on disk: what the multi-label data sets are to the rest, and how they are made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np
from PIL import Image

from reproductions import UserError
from reproductions.datasets.files import decode
from reproductions.storage import content_hash

LEFT_OUT = -1


@dataclass(frozen=True, eq=False)
class MultiLabelImages:
    """A split of a multi-label data set, each image decoded when it is asked for.

    A class may be without positives and an image without labels: such data sets exist, and what becomes of them is
    for the metric to say.

    Attributes:
        split: "train", "val" or "test".
        tier: "paper" for the data a paper was measured on, "local" for a user's own.
        targets: int8 ``(n, C)``: 1 present, 0 absent, −1 left out of training and ranking (difficult).
        classes: the names of the C columns.
    """

    name: str
    title: str
    split: str
    tier: str
    paths: tuple[Path, ...]
    targets: np.ndarray
    classes: tuple[str, ...]
    licence: str
    source: str

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, i: int) -> Image.Image:
        """Image ``i`` in RGB.

        Raises:
            UserError: the file is missing, truncated or broken.
        """
        return decode(self.paths[i], str(self.paths[i]))

    @cached_property
    def sha256(self) -> str:
        """Hash of the listing: file names, file sizes, classes and targets, in order.

        The contents are gigabytes and are not read; a file changed without changing its size goes unnoticed.
        """
        listing = [(path.name, path.stat().st_size) for path in self.paths]
        return content_hash(listing, list(self.classes), self.targets)

    def with_classes(self, names: Sequence[str]) -> Self:
        """The same images with the columns of these classes, in this order; an image may be left without labels.

        Raises:
            UserError: a name is unknown or stands twice.
        """
        column = {name: c for c, name in enumerate(self.classes)}
        if unknown := next((name for name in names if name not in column), None):
            raise UserError(f"{self.title} has no class {unknown!r}: choose among its {len(column)} classes")
        check_unique(names, f"the choice of classes of {self.title}")
        chosen = np.ascontiguousarray(self.targets[:, [column[name] for name in names]])
        return replace(self, targets=chosen, classes=tuple(names))


@dataclass(frozen=True)
class Files:
    """Which files exist; every folder is listed once, however many files are asked for."""

    _names: dict[Path, frozenset[str]] = field(default_factory=dict)

    def __contains__(self, path: Path) -> bool:
        folder = path.parent
        if folder not in self._names:
            self._names[folder] = frozenset(p.name for p in folder.iterdir()) if folder.is_dir() else frozenset()
        return path.name in self._names[folder]


def data_folder(root: Path, names: Sequence[str], inside: str, title: str) -> Path:
    """The data set's folder: ``root/<name>`` of the first name that holds the file or folder ``inside``, else ``root``.

    Raises:
        UserError: none of them holds it.
    """
    if found := find_folder(root, names, inside):
        return found
    raise UserError(f"{root} has no {title}: {inside} is expected in it, or in a folder {' or '.join(names)} of it")


def find_folder(root: Path, names: Sequence[str], inside: str) -> Path | None:
    """The first of ``root/<name>`` and ``root`` itself that holds the file or folder ``inside``, or None."""
    return next((place for place in (*(root / name for name in names), root) if (place / inside).exists()), None)


def located(names: Iterable[str], folders: Sequence[Path], listing: Path) -> tuple[Path, ...]:
    """The images that a file lists, found below these folders.

    A name is looked for whole, then without its first folder, and so on: the longest end of it that exists below one
    of the folders counts, the folders in their order. So lists with the absolute paths of another machine are read
    too, and no image is ever taken from outside the folders. Backslashes separate folders as slashes do.

    Raises:
        UserError: images are missing; it says how many and names the first.
    """
    files = Files()
    found: list[Path] = []
    missing: list[str] = []
    for name in names:
        path = _longest_end(name, folders, files)
        found += [path] if path else []
        missing += [] if path else [name]
    if missing:
        where = " or ".join(str(folder) for folder in folders)
        raise UserError(
            f"{listing} lists {len(missing)} images that are missing, the first of them {missing[0]}:"
            f" unpack all images below {where}"
        )
    return tuple(found)


def _longest_end(name: str, folders: Sequence[Path], files: Files) -> Path | None:
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "..")]
    ends = (Path(*parts[start:]) for start in range(len(parts)))
    return next((folder / end for end in ends for folder in folders if folder / end in files), None)


def targets_of(labels: Sequence[Iterable[str]], classes: Sequence[str], listing: Path) -> np.ndarray:
    """Targets int8 ``(n, C)`` of the label names of n images; a label listed twice counts once.

    Raises:
        UserError: a class is listed twice, or an image has a label that is no class.
    """
    check_unique(classes, f"the list of classes of {listing}")
    column = {name: c for c, name in enumerate(classes)}
    targets = np.zeros((len(labels), len(classes)), dtype=np.int8)
    for i, names in enumerate(labels):
        for name in names:
            if name not in column:
                raise UserError(
                    f"{listing} gives image {i} the label {name!r}, which is none of its {len(column)} classes"
                )
            targets[i, column[name]] = 1
    return targets


def check_unique(names: Sequence[str], what: str) -> None:
    """Refuse a name that stands twice; ``what`` says where.

    Raises:
        UserError: it says which.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{what} has {name!r} twice: every name can stand once")
        seen.add(name)


def check_disjoint(seen: Iterable[str], unseen: Iterable[str], where: str) -> None:
    """Refuse classes that are both seen and unseen: their zero-shot figures would not be zero-shot.

    Raises:
        UserError: it names one of them and their number.
    """
    if both := sorted(set(seen) & set(unseen)):
        raise UserError(f"{where} has {len(both)} classes among both the seen and the unseen ones, {both[0]!r} for one")
