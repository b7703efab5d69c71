"""Files of weights in a folder of the user's: found by name, told apart by content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from reproductions.storage import Cache, content_hash

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
FOLDER = "weights"


def find_weights(folder: Path | None, stems: Sequence[str]) -> Path | None:
    """``<folder>/weights/<stem>`` with one of ``SUFFIXES``: the first that exists, stems by precedence."""
    if folder is None:
        return None
    candidates = (folder / FOLDER / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def weights_sha256(path: Path, cache: Cache) -> str:
    """Sha256 of a file's content, or of all files below a folder; each file is read once, until it changes."""
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file())
        return content_hash([(p.relative_to(path).as_posix(), weights_sha256(p, cache)) for p in inside])
    status = path.stat()
    key = content_hash(str(path.resolve()), status.st_size, status.st_mtime_ns)
    known = cache.read_json(FOLDER, key)
    if isinstance(known, str):
        return known
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    cache.write_json(FOLDER, key, found)
    return found
