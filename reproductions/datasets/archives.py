"""Archives of other people's: nothing in them may leave the folder they are unpacked into, or fill the disk."""

from __future__ import annotations

import errno
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from numpy.lib.npyio import NpzFile

from reproductions import UserError
from reproductions.faults import DISK
from reproductions.temporaries import in_the_making

RATIO = 100
"""What is larger than ``SMALL`` may not be this many times as large as its archive: images hardly shrink at all."""
SMALL = 2**30
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, NotImplementedError)


def unpack(archive: Path, place: Path) -> None:
    """Unpack a .zip or .tar (also compressed) into a folder that is whole or absent; one that is there is left alone.

    Raises:
        UserError: the archive is broken or encrypted; it holds something else than files and folders, a path that
            leads out of it, or much more than its own size; nothing of it remains then.
        OSError: the place cannot be written to.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with in_the_making(place, folder=True) as (_, part):
        try:
            (_unpack_zip if archive.suffix == ".zip" else _unpack_tar)(archive, part)
        except (*BROKEN, OSError, RuntimeError) as error:  # RuntimeError: a zip wants a password
            if isinstance(error, OSError) and error.errno in DISK:
                raise
            raise UserError(f"{archive} cannot be unpacked ({error}): copy it again") from None
        try:
            part.rename(place)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process was first
                raise


def check_zip(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse a zip that would fill memory or disk with what it says it holds; reading gives no more than that.

    Raises:
        UserError: it is much more than the archive's own size.
    """
    _check_size(sum(member.file_size for member in archive.infolist()), path)


def check_arrays(stored: NpzFile, path: Path) -> None:
    """The same for the arrays of an .npz.

    Raises:
        UserError: they are much more than the file's own size.
    """
    assert stored.zip is not None  # it is open
    check_zip(stored.zip, path)


def _unpack_zip(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        check_zip(archive, path)
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            _check_member(path, member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
        archive.extractall(folder)


def _unpack_tar(path: Path, folder: Path) -> None:
    total = 0
    with tarfile.open(path) as archive:
        for member in archive:
            _check_member(path, member.name, member.isreg() or member.isdir())
            total += member.size
            _check_size(total, path)
            archive.extract(member, folder, filter="data")


def _check_member(path: Path, name: str, plain: bool) -> None:
    if name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name or re.match("[A-Za-z]:", name):
        raise UserError(f"{path} is refused: it holds {name!r}, which would lie outside the folder it is unpacked into")
    if not plain:
        raise UserError(f"{path} is refused: {name!r} is neither a file nor a folder but a link or a device")


def _check_size(size: int, path: Path) -> None:
    if size > max(SMALL, RATIO * path.stat().st_size):
        raise UserError(
            f"{path} is refused: it would unpack to {size / 2**30:.1f} GiB or more, over {RATIO} times its own size;"
            " if it is meant to, unpack it yourself"
        )
