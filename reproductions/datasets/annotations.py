"""Reading annotation files: whatever is wrong with one of them is said in one sentence that names it."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from reproductions import UserError
from reproductions.datasets.archives import check_arrays
from reproductions.faults import first_words


def existing(path: Path, what: str) -> Path:
    """The path itself where it exists.

    Raises:
        UserError: it does not; the sentence says what it should have been.
    """
    if not path.exists():
        raise UserError(f"{what} is missing: {path} does not exist")
    return path


def read_arrays(path: Path, *keys: str) -> tuple[np.ndarray, ...]:
    """These arrays of an .npz file, nothing of it unpickled.

    Raises:
        UserError: no such file, not a whole archive of numbers, or without one of the arrays.
    """
    try:
        with existing(path, "a file of features").open("rb") as file, np.load(file, allow_pickle=False) as stored:
            check_arrays(stored, path)
            return tuple(stored[key] for key in keys)
    except KeyError as error:
        raise UserError(
            f"{path} is not as expected ({error.args[0]}): the arrays {', '.join(keys)} are expected"
        ) from error
    except UserError:
        raise
    except Exception as error:  # zip, zlib, npy header: each has its own
        raise UserError(f"{path} cannot be read: a whole .npz file is expected there") from error


def read_array(path: Path, expected: str, mapped: bool = False) -> np.ndarray:
    """The array of an .npy file, nothing of it unpickled; mapped, it is left on disk.

    Raises:
        UserError: no such file, or not a whole one of plain numbers or text; ``expected`` says what should be there.
    """
    try:
        found = np.load(existing(path, "an array"), mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {expected} there") from error
    if isinstance(found, np.ndarray):
        return found
    found.close()
    raise UserError(f"{path} holds several arrays: {expected} there")


def check_split(split: str, known: tuple[str, ...], title: str) -> None:
    """Refuse a split the data set does not have.

    Raises:
        UserError: it lists the splits there are.
    """
    if split not in known:
        raise UserError(f"{title} has no split {split!r}: choose one of {', '.join(known)}")


def read_text(path: Path, expected: str) -> str:
    """A UTF-8 text file; ``expected`` says what should stand in it.

    Raises:
        UserError: the file is missing or no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {expected} there") from error


def read_lines(path: Path, expected: str) -> list[str]:
    """The lines of a text file that are not blank, without the space around them.

    Raises:
        UserError: the file is missing, no text, or has no such line.
    """
    lines = [line.strip() for line in read_text(path, expected).splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty: {expected} there")
    return lines


def read_rows(path: Path, expected: str) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a csv file, space around the cells taken off.

    Raises:
        UserError: the file is missing, has no row, or a row of another length than its header.
    """
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(read_text(path, expected).splitlines()) if row]
    except csv.Error as error:
        raise UserError(f"{path} is no csv file: {expected} there") from error
    if len(rows) < 2:
        raise UserError(f"{path} lists nothing: {expected} there")
    header = rows[0]
    for k, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise UserError(f"row {k} of {path} has {len(row)} columns where its header has {len(header)}")
    return header, rows[1:]


def read_json(path: Path, expected: str) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: the file is missing, truncated, or no JSON.
    """
    try:
        return json.loads(read_text(path, expected))
    except ValueError as error:
        raise UserError(f"{path} is truncated or no JSON: {expected} there") from error


def read_matlab(path: Path, *, squeeze: bool = False) -> Mapping[str, Any]:
    """The variables of a MATLAB file; squeezed, without axes of length one and with structs as objects.

    Raises:
        UserError: the file is missing or unreadable.
    """
    existing(path, "an annotation")
    try:
        return loadmat(path, squeeze_me=squeeze, struct_as_record=not squeeze)
    except Exception as error:  # what is no such file raises nearly anything
        raise UserError(f"the annotation {path} cannot be read ({first_words(error)}): copy it again") from error
