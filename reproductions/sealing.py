"""Seals of cached files: each carries the hash of what it holds, and what does not match its own is not trusted.

An atomic write leaves no half of a file; disks, copies between machines and editors may.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from reproductions.schema import SCHEMA

METADATA = "__metadata__"
"""The key of a safetensors header that names no tensor."""


def sealed(value: Any) -> dict[str, Any]:
    """What JSON can write, with the schema and the sha256 of its text."""
    return {"schema": SCHEMA, "sha256": _hash(json.loads(json.dumps(value, allow_nan=False))), "value": value}


def unsealed(entry: Any) -> Any | None:
    """What was sealed; None where the seal is missing, broken, or of another schema."""
    if not isinstance(entry, dict) or entry.keys() != {"schema", "sha256", "value"} or entry["schema"] != SCHEMA:
        return None
    return entry["value"] if entry["sha256"] == _hash(entry["value"]) else None


def sealed_tensors(content: bytes) -> bytes:
    """The same safetensors file, with schema and hash in its metadata."""
    header, data = _parts(content)
    metadata = {"schema": str(SCHEMA), "sha256": _hash(header, data)}
    text = json.dumps({METADATA: metadata, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data
    return b"".join([len(text).to_bytes(8, "little"), text, data])


def is_sealed(content: bytes) -> bool:
    """Whether this is a safetensors file of this schema that holds what it held when it was sealed."""
    try:
        header, data = _parts(content)
        return safetensors_metadata(content) == {"schema": str(SCHEMA), "sha256": _hash(header, data)}
    except ValueError:
        return False


def safetensors_metadata(content: bytes) -> dict[str, str] | None:
    """The metadata of a safetensors file, None where it has none.

    Raises:
        ValueError: it is no such file.
    """
    return _header(content).get(METADATA)


def _header(content: bytes) -> dict[str, Any]:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    if isinstance(header, dict):
        return header
    raise ValueError("a safetensors file begins with an object")


def _parts(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """What a safetensors file says of its tensors, and their bytes."""
    header = {name: tensor for name, tensor in _header(content).items() if name != METADATA}
    return header, memoryview(content)[8 + int.from_bytes(content[:8], "little") :]


def _hash(value: Any, data: bytes | memoryview = b"") -> str:
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()
