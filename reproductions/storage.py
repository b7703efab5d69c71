"""Files that are either whole or absent: atomic writes, content hashes, and the cache built on them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from filelock import FileLock
from torch import Tensor

from reproductions.sealing import is_sealed, sealed, sealed_tensors, unsealed
from reproductions.temporaries import in_the_making

PACKAGES = ("solvers", "reproductions")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a killed writer, never sees half of it.

    Raises:
        OSError: it names the file; what stood there before still does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    try:
        with in_the_making(path) as (handle, temporary):
            with os.fdopen(handle, "wb", closefd=False) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            mask = os.umask(0)  # temporary files are private; give this one the permissions open() would
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            temporary.replace(path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # not the temporary file


def content_hash(*parts: Any) -> str:
    """Sha256 over arrays (dtype, shape and bytes) and anything JSON can write, in order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        elif isinstance(part, bytes):
            digest.update(part)
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
        digest.update(b"\0")
    return digest.hexdigest()


@cache
def source_hash(files: tuple[Path, ...] | None = None) -> str:
    """Hash of these source files, or of all code and claims of the project: cached results die with the code."""
    if files is None:
        root = Path(__file__).parent.parent
        found = (p for package in PACKAGES for p in (root / package).rglob("*"))
        files = tuple(sorted(p for p in found if p.suffix in (".py", ".toml")))
    return content_hash(*(part for p in files for part in (p.name, p.read_bytes())))


@dataclass(frozen=True)
class Cache:
    """Files under one folder, named by kind and by the hash of everything they depend on.

    A file that cannot be read back, or does not hold what was written, is computed again, never trusted.
    """

    folder: Path

    def path(self, kind: str, key: str, suffix: str) -> Path:
        return self.folder / kind / f"{key[:32]}{suffix}"

    def read_json(self, kind: str, key: str) -> Any | None:
        try:
            return unsealed(json.loads(self.path(kind, key, ".json").read_bytes()))
        except (FileNotFoundError, ValueError, RecursionError):
            return None

    def write_json(self, kind: str, key: str, value: Any) -> None:
        write_atomically(self.path(kind, key, ".json"), json.dumps(sealed(value), indent=1, allow_nan=False))

    def tensors(self, kind: str, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Named tensors, made once: a second process that asks for them waits for the first."""
        path = self.path(kind, key, ".safetensors")
        lock = self.path("locks", key, ".lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if path.is_file() and is_sealed(content := path.read_bytes()):
                return safetensors.torch.load(content)
            made = {name: x.detach().cpu().contiguous() for name, x in make().items()}
            write_atomically(path, sealed_tensors(safetensors.torch.save(made)))
            return made
