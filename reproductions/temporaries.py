"""Files and folders in the making: whoever makes one holds a lock on it, so that what a killed process left is known.

The kernel gives up the lock of a process that ends, however it ends. What nobody holds is a leftover, and is removed
when the next run starts; what another run is writing at that moment is not.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".making"
PATTERN = re.compile(rf"\..*\.[a-z0-9_]{{8}}{re.escape(SUFFIX)}")
LONGEST = 50  # characters of a name that a temporary one repeats: file systems end at 255 bytes


@contextmanager
def in_the_making(path: Path, folder: bool = False) -> Iterator[tuple[int, Path]]:
    """An empty temporary file, or folder, beside a path, to be renamed to it: its descriptor and its path.

    It is gone afterwards, unless it was renamed.
    """
    handle, temporary = _made(path, folder)
    try:
        yield handle, temporary
    finally:
        _remove(temporary)
        os.close(handle)


def remove_leftovers(results: Path) -> list[Path]:
    """Remove what killed processes left below a folder of results, and say what it was.

    Folders of unpacked data sets are not searched: nothing is written into them.
    """
    found = []
    for place, folders, names in os.walk(results):
        for name in [*folders, *names]:
            path = Path(place, name)
            if PATTERN.fullmatch(name) and _removed_if_free(path):
                found.append(path)
        inside = Path(place) == results / "cache" / "data"
        folders[:] = [] if inside else [name for name in folders if not PATTERN.fullmatch(name)]
    return found


def _made(path: Path, folder: bool) -> tuple[int, Path]:
    prefix = f".{path.name[:LONGEST]}."
    while True:
        if folder:
            temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=prefix, suffix=SUFFIX))
            try:
                handle = os.open(temporary, os.O_RDONLY)
            except FileNotFoundError:  # it was taken for a leftover before it could be locked
                continue
        else:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=SUFFIX)
            temporary = Path(name)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if temporary.exists():  # the same may have happened here
            return handle, temporary
        os.close(handle)


def _removed_if_free(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # gone meanwhile, or another user's
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)
    except OSError:  # somebody is writing it
        return False
    finally:
        os.close(handle)
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
