"""The compiled inner loops: arrays in, arrays out; nothing of the rest of the project is imported here.

Numba's cache on disk asks whether the file of a function has changed, not those of the functions it calls. So that no
stale code is ever run, what was compiled from other sources than these is dropped here, before anything is loaded.
"""

import contextlib
import hashlib
import os
from pathlib import Path

_FOLDER = Path(__file__).parent


def _drop_stale(folder: Path) -> None:
    """Empty the cache beside the sources when its stamp is not theirs."""
    sources = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    stamp, digest = folder / "__pycache__" / "numba.sha256", hashlib.sha256(sources).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    for path in stamp.parent.glob("*.nb[ic]"):
        path.unlink(missing_ok=True)
    stamp.parent.mkdir(exist_ok=True)
    partial = stamp.with_suffix(f".{os.getpid()}")
    partial.write_text(digest)
    partial.replace(stamp)


with contextlib.suppress(OSError):  # a folder that cannot be written holds no cache that could be stale
    _drop_stale(_FOLDER)
