"""Reading data sets from disk: folders and zips alike, and images that may be broken."""

from __future__ import annotations

import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from reproductions import UserError
from reproductions.datasets.archives import check_zip, unpack
from reproductions.storage import content_hash

IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".webp"))
ARCHIVES = (".tar", ".tgz", ".gz", ".zip")
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises, by format, for a file that is no whole image, or says it has hundreds of millions of pixels."""


def is_image(name: str) -> bool:
    """Whether the name is that of an image, and not of a hidden file some systems leave beside it."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def decode(source: Path | bytes, name: str, mode: str = "RGB") -> Image.Image:
    """The image in the colour mode asked for.

    Raises:
        UserError: there is no whole image; the message names the file as ``name``.
    """
    try:
        with Image.open(source if isinstance(source, Path) else BytesIO(source)) as image:
            return image.convert(mode)
    except FileNotFoundError as error:
        raise UserError(f"the image {name} is missing") from error
    except UNREADABLE as error:
        raise UserError(f"{name} is truncated, broken or far too large: put a whole image there") from error


@dataclass(frozen=True)
class Tree:
    """All files below a folder or inside a zip: sorted names with forward slashes, and how to read one."""

    path: Path
    names: tuple[str, ...]
    read: Callable[[str], bytes]

    def pixels(self, name: str, mode: str, side: int) -> np.ndarray:
        """A square image, float32 ``(channels, side, side)`` in [0, 1].

        Raises:
            UserError: it is broken or of another size.
        """
        image = decode(self.read(name), f"{self.path}/{name}", mode)
        if image.size != (side, side):
            raise UserError(f"{self.path}/{name} is {image.width}×{image.height} px, but {side}×{side} is expected")
        values = np.asarray(image, dtype=np.float32) / 255
        return np.moveaxis(np.atleast_3d(values), -1, 0)


@contextmanager
def open_tree(path: Path) -> Iterator[Tree]:
    """A folder, or a zip that is read in place and never unpacked.

    Raises:
        UserError: the path is neither, or (also while reading) the zip is broken.
    """
    if path.is_dir():
        found = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        yield Tree(path, tuple(found), lambda name: (path / name).read_bytes())
        return
    if not path.is_file():
        raise UserError(f"there is no {path}: a folder or a zip file is expected there")
    try:
        with zipfile.ZipFile(path) as archive:
            check_zip(archive, path)
            inside = sorted(n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX/"))
            yield Tree(path, tuple(inside), archive.read)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path} is no whole zip file: download it again") from error


def folder_or_zip(folder: Path, stem: str) -> Path | None:
    """``<folder>/<stem>`` or ``<folder>/<stem>.zip``, whichever exists; the unpacked one first."""
    return next((p for p in (folder / stem, folder / f"{stem}.zip") if p.exists()), None)


def unpacked(folder: Path, names: Sequence[str], storage: Path) -> Path | None:
    """The folder that holds one of these: the one given, or where a .tar or .zip in it was unpacked; None without.

    An archive is taken for a data set's by its first entry, and unpacked once, below ``storage``.

    Raises:
        UserError: an archive that cannot be read or unpacked, or may not be.
    """
    if any((folder / name).is_dir() for name in names):
        return folder
    for path in sorted(p for p in folder.iterdir() if p.suffix in ARCHIVES):
        if first_folder(path) not in names:
            continue
        status = path.stat()
        place = storage / content_hash(path.name, status.st_size, status.st_mtime_ns)[:16]
        if not place.is_dir():
            unpack(path, place)
        return place
    return None


def first_folder(path: Path) -> str | None:
    """The folder of an archive's first entry; None where it is no archive."""
    status = path.stat()
    return _first_folder(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)  # every data set asks for it again, and the directory of a large zip takes a while to read
def _first_folder(path: Path, changed: int, size: int) -> str | None:
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as file:
                name = file.namelist()[0]
        else:
            with tarfile.open(path) as file:
                first = file.next()
                name = "" if first is None else first.name
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError, IndexError):
        return None
    return PurePosixPath(name).parts[0] if name else None
