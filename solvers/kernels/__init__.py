"""The compiled inner loops: arrays in, arrays out; nothing of the rest of the project is imported here.

Numba's cache on disk asks whether the file of a function has changed, not those of the functions it calls. So that no
stale code is ever run, what was compiled from other sources than these is dropped here, before anything is loaded.
"""

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path


def _digests(folder: Path) -> dict[str, str]:
    """Of every module, the hash of its source and of all that it imports from here."""
    sources = {path.stem: path.read_text() for path in sorted(folder.glob("*.py"))}
    digests = {}
    for module in sources:
        reached, new = {module}, {module}
        while new:
            found = {name for m in new for name in re.findall(r"from solvers\.kernels\.(\w+) import", sources[m])}
            new = found & sources.keys() - reached
            reached |= new
        digests[module] = hashlib.sha256("".join(sources[m] for m in sorted(reached)).encode()).hexdigest()
    return digests


def _drop_stale(folder: Path) -> None:
    """Remove from the cache beside the sources what its stamp says was compiled from others."""
    cache = folder / "__pycache__"
    stamp, digests = cache / "kernels.json", _digests(folder)
    stamped = json.loads(stamp.read_text()) if stamp.exists() else {}
    if stamped == digests:
        return
    for module in digests:
        if stamped.get(module) != digests[module]:
            for path in cache.glob(f"{module}.*.nb[ic]"):
                path.unlink(missing_ok=True)
    cache.mkdir(exist_ok=True)
    partial = stamp.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(digests))
    partial.replace(stamp)


with contextlib.suppress(OSError, ValueError):  # a folder that cannot be written holds no cache that could be stale
    _drop_stale(Path(__file__).parent)
