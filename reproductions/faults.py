"""What goes wrong outside the program – disks, memory, folders – in one sentence each, with what to do."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from rich.console import Console

from reproductions import UserError
from solvers import InvalidProblem, UnknownSolver

FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
"""A disk or a quota is used up."""
DISK = FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
"""Faults of the place that is written to, never of the file that is read."""
TOO_LITTLE = ("can't allocate memory", "not enough memory")
"""What torch says, in a RuntimeError, where it gets no memory of the CPU."""
AGAIN = "what is finished is kept, and the same command goes on from there"


def sentence(error: BaseException) -> str | None:
    """What the user is told; None for an error of the program itself, whose traceback is wanted."""
    if isinstance(error, UserError | InvalidProblem | UnknownSolver):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "CUDA error: out of memory" in str(error)
    ):
        return (
            "the GPU has too little free memory for this: end other programs on it, take a smaller --batch-size where "
            f"the command has one, or pass --device cpu; {AGAIN}"
        )
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in TOO_LITTLE)
    ):
        return f"this machine has too little free memory for this: end other programs, or take fewer --jobs; {AGAIN}"
    return _of_files(error) if isinstance(error, OSError) else None


def first_words(error: BaseException) -> str:
    """What an error of a library says first; how to switch its checks off, which may follow, is no advice of ours."""
    lines = str(error).strip().splitlines()
    return lines[0].partition(". ")[0].rstrip(".") if lines else type(error).__name__


def _of_files(error: OSError) -> str:
    where = "a file" if error.filename is None else str(error.filename)
    if error.errno in FULL:
        return f"the disk is full, {where} was not written: make room; {AGAIN}"
    if error.errno == errno.EROFS:
        return f"{where} lies on a file system that can only be read: name another folder"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{where} may not be read or written by this user: change its permissions, or name another folder"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{where} is, or lies below, a file where a folder is expected: name another folder"
    return f"{error.strerror or str(error) or type(error).__name__}: {where}"


@contextmanager
def said_in_one_sentence(program: str, console: Console) -> Iterator[None]:
    """End the program with exit code 2 and a sentence where one tells all, with 130 where it was stopped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"{program}: stopped", soft_wrap=True, markup=False)
        sys.exit(130)
    except Exception as error:
        said = sentence(error)
        if said is None:
            raise
        console.print(f"{program}: {said}", soft_wrap=True, markup=False)
        sys.exit(2)
