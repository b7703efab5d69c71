"""Reading pickles of data without running what they say: builtin containers, numbers, strings and NumPy arrays only."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from reproductions import UserError

ALLOWED = {
    **{(module, name): ("builtins", name) for module in ("__builtin__", "builtins") for name in ("set", "frozenset")},
    ("_codecs", "encode"): ("_codecs", "encode"),  # how the second protocol writes the bytes of an array
    ("numpy", "ndarray"): ("numpy", "ndarray"),
    ("numpy", "dtype"): ("numpy", "dtype"),
    **{
        (f"numpy.{core}.{module}", name): (f"numpy._core.{module}", name)
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    },
}
"""The only names a pickle may refer to, and where they live today; the rest of what is allowed needs no name."""


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(*ALLOWED[module, name])
        except KeyError:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}") from None


def read_pickle(path: Path, expected: str, encoding: str = "ASCII") -> Any:
    """What a pickle holds, if that is made of dicts, lists, tuples, sets, numbers, strings and NumPy arrays.

    Args:
        path: the file.
        expected: what should be there, for the message.
        encoding: of the strings that Python 2 wrote; "latin1" where NumPy arrays are among them.

    Raises:
        UserError: the file is missing, is no pickle, or holds anything else, which is not run.
    """
    try:
        with path.open("rb") as file:
            return _DataUnpickler(file, encoding=encoding).load()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {expected} there") from error
    except Exception as error:  # broken pickles raise nearly anything
        raise UserError(f"{path} is no pickle of plain data ({error}): {expected} there") from error
