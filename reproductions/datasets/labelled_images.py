"""Images of classes that have names and texts: what blind matching looks at, on disk or in memory."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from PIL import Image

from reproductions import UserError
from reproductions.datasets.archives import check_zip
from reproductions.datasets.files import Tree, decode, is_image
from reproductions.storage import content_hash


class Images(Protocol):
    """Images that are decoded when they are asked for, from several threads at once."""

    def __len__(self) -> int: ...

    def load(self, i: int) -> Image.Image:
        """Image ``i`` in RGB."""

    def listing(self) -> Any:
        """What tells these images from others: made of arrays' hashes, strings and numbers."""


@dataclass(frozen=True)
class OnDisk:
    """Files below a folder, or inside a zip that is never unpacked.

    Attributes:
        names: of the files, with forward slashes.
    """

    place: Path
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def load(self, i: int) -> Image.Image:
        """Image ``i`` in RGB.

        Raises:
            UserError: it is missing, truncated or broken.
        """
        name = self.names[i]
        if self.place.is_dir():
            return decode(self.place / name, str(self.place / name))
        try:
            return decode(_opened(self.place).read(name), f"{self.place}/{name}")
        except (zipfile.BadZipFile, zlib.error, EOFError):
            raise UserError(f"{self.place} is no whole zip file: download it again") from None

    def listing(self) -> list[tuple[str | int, ...]]:
        """Names and sizes, and for those in a zip the checksums; the contents are gigabytes and are not read."""
        if self.place.is_dir():
            return [(name, (self.place / name).stat().st_size) for name in self.names]
        known = (_opened(self.place).getinfo(name) for name in self.names)
        return [(info.filename, info.file_size, info.CRC) for info in known]


@dataclass(frozen=True, eq=False)
class InMemory:
    """Small images of one size, uint8 ``(n, height, width, 3)``."""

    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, i: int) -> Image.Image:
        """Image ``i`` in RGB."""
        return Image.fromarray(self.pixels[i])

    def listing(self) -> str:
        """Hash of all pixels."""
        return content_hash(self.pixels)


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images, the class of each, and the texts that say what a class is.

    Attributes:
        tier: "paper" for the data a paper was measured on, "local" for others.
        labels: int64 ``(n,)``, positions in ``classes``.
        classes: their names.
        texts: one or more for every class.
        note: what the texts are where they are not those of the paper, else "".
    """

    name: str
    title: str
    tier: str
    images: Images
    labels: np.ndarray
    classes: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    licence: str
    source: str
    note: str = ""

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def sha256(self) -> str:
        """Hash of the listing of the images, and of classes and labels."""
        return content_hash(self.images.listing(), list(self.classes), self.labels)


def images_by_class(tree: Tree, split: str | None = None) -> dict[str, list[str]]:
    """The images of every class, both sorted: ``<class>/<image>``, with ``<split>/`` before it where one is named.

    Folders may stand above these; then all classes lie below the same one.

    Raises:
        UserError: there is no such image, or classes lie below several folders.
    """
    expected = "<class>/<image>" if split is None else f"{split}/<class>/<image>"
    members: dict[str, list[str]] = {}
    above: set[PurePosixPath] = set()
    for name in tree.names:
        folder = PurePosixPath(name).parent
        if is_image(name) and folder.name and split in (None, folder.parent.name):
            members.setdefault(folder.name, []).append(name)
            above.add(folder.parent)
    if not members:
        raise UserError(f"{tree.path} has no images of classes: {expected} is expected in it")
    if len(above) > 1:
        first, second = sorted(map(str, above))[:2]
        raise UserError(
            f"{tree.path} has classes in {first} and in {second}: {expected} is expected in one folder alone"
        )
    return {name: sorted(members[name]) for name in sorted(members)}


def from_members(place: Path, members: dict[str, list[str]]) -> tuple[OnDisk, np.ndarray]:
    """The images of all classes, one class after the other, and their labels."""
    names = tuple(name for found in members.values() for name in found)
    return OnDisk(place, names), np.repeat(np.arange(len(members)), [len(found) for found in members.values()])


@lru_cache(maxsize=4)  # the directory of a large zip takes a while to read
def _opened(path: Path) -> zipfile.ZipFile:
    archive = zipfile.ZipFile(path)
    check_zip(archive, path)
    return archive
