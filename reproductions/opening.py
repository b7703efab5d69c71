"""Before any work starts: a folder of results can be written, is of today's schema, and free of a killed run's rest."""

from __future__ import annotations

import json
import os
from pathlib import Path

import safetensors.torch
from filelock import FileLock

from reproductions import UserError
from reproductions.faults import sentence
from reproductions.schema import FILE, SCHEMA, is_measured_row, schema_of
from reproductions.sealing import safetensors_metadata, sealed, sealed_tensors
from reproductions.storage import write_atomically
from reproductions.tables import BrokenTable, table_text
from reproductions.temporaries import in_the_making, remove_leftovers


def check_writable(folder: Path) -> None:
    """Write a file of one byte into a folder, which is made where it is missing, and remove it.

    Raises:
        UserError: that cannot be done, and why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with in_the_making(folder / "probe") as (handle, _):
            os.write(handle, b"\0")
            os.fsync(handle)
    except OSError as error:
        named = OSError(error.errno, error.strerror, str(folder))
        raise UserError(f"the results cannot be written: {sentence(named)}") from None


def open_results(results: Path) -> None:
    """Make a folder of results ready: writable, of today's schema, without the temporary files of killed processes.

    Tables and cached files of an older schema are brought to today's, once. Cached files that cannot be read are then
    removed; damaged tables stay as they are until they are written again.

    Raises:
        UserError: it cannot be written; it is of a newer schema, and nothing in it was touched.
    """
    cache = results / "cache"
    schema_of(results), schema_of(cache)
    check_writable(results)
    cache.mkdir(exist_ok=True)
    with FileLock(cache / "schema.lock"):
        if schema_of(cache) < SCHEMA:
            _migrate_cache(cache)
            _say(cache)
        if schema_of(results) < SCHEMA:
            _migrate_tables(results)
            _say(results)
    remove_leftovers(results)


def _say(folder: Path) -> None:
    write_atomically(folder / FILE, json.dumps({"schema": SCHEMA}) + "\n")


def _migrate_tables(results: Path) -> None:
    for path in sorted(results.glob("*/*.csv")):
        content = path.read_bytes()
        if content.startswith(b"paper,table,"):
            try:
                text = table_text(content, path)
            except BrokenTable:
                continue
            if text.encode() != content:
                write_atomically(path, text)


def _migrate_cache(cache: Path) -> None:
    for place, folders, names in os.walk(cache):
        if Path(place) == cache and "data" in folders:
            folders.remove("data")  # unpacked data sets
        for name in names:
            path = Path(place, name)
            if path.suffix == ".json" and path.name != FILE:
                _seal_json(path)
            elif path.suffix == ".safetensors":
                _seal_tensors(path)


def _seal_json(path: Path) -> None:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        path.unlink()
        return
    if isinstance(value, dict) and value.keys() == {"schema", "sha256", "value"}:
        return  # a migration that was stopped goes on
    if path.parent.name == "rows" and not is_measured_row(value):
        path.unlink()
        return
    write_atomically(path, json.dumps(sealed(value), indent=1, allow_nan=False))


def _seal_tensors(path: Path) -> None:
    content = path.read_bytes()
    try:
        metadata = safetensors_metadata(content)
        safetensors.torch.load(content)
    except (ValueError, safetensors.SafetensorError):
        path.unlink()
        return
    if metadata is None:  # else it is sealed already, or is a file of weights with metadata of its own
        write_atomically(path, sealed_tensors(content))
