"""QAPLIB (Burkard, Karisch and Rendl, J. Global Optimization 10, 1997): its instances as files ``NAME.dat``.

The files are not part of the project. They are found at https://qaplib.mgi.polymtl.ca and
https://coral.ise.lehigh.edu/data-sets/qaplib; beside an instance, ``NAME.sln`` holds its best known permutation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class QaplibError(ValueError):
    """A file that is not as QAPLIB has them, in one sentence."""


def read_dat(path: Path) -> tuple[Array, Array]:
    """A and B (n, n) of an instance: minimise Σ_ij A[i, j] B[p(i), p(j)].

    Raises:
        QaplibError: no such file, words that are no numbers, or another number of them than 1 + 2 n².
    """
    numbers = _numbers(path)
    n = int(numbers[0]) if len(numbers) else 0
    if n < 1 or n != numbers[0] or len(numbers) != 1 + 2 * n * n:
        raise QaplibError(f"{path} holds {len(numbers)} numbers, and an instance has n, then n² and n² again")
    A, B = numbers[1:].reshape(2, n, n)
    return A, B


def read_sln(path: Path) -> tuple[float, NDArray[np.int64]]:
    """The best known value, and its permutation (n,) from 0 on.

    Raises:
        QaplibError: no such file, or not n, a value and a permutation of 1 … n.
    """
    numbers = _numbers(path)
    n = int(numbers[0]) if len(numbers) else 0
    p = numbers[2:].astype(np.int64) - 1
    if n < 1 or sorted(p.tolist()) != list(range(n)):
        raise QaplibError(f"{path} is no solution: n, the value, and a permutation of 1 … n")
    return float(numbers[1]), p


def _numbers(path: Path) -> Array:
    try:
        return np.array(path.read_text().replace(",", " ").split(), np.float64)
    except FileNotFoundError:
        raise QaplibError(f"there is no file {path}") from None
    except ValueError as error:
        raise QaplibError(f"{path} holds other than numbers ({error})") from None


def best_known(path: Path, A: Array, B: Array) -> float | None:
    """The value of the permutation in the ``.sln`` file beside an instance; None where there is none.

    Some files hold the inverse of the permutation that the value is of, and some values are of another convention:
    what counts is what the permutation, or its inverse, is worth.
    """
    solution = path.with_suffix(".sln")
    if not solution.exists():
        return None
    _, p = read_sln(solution)
    if len(p) != len(A):
        raise QaplibError(f"{solution} is of another size than {path}")
    return min(float((A * B[np.ix_(q, q)]).sum()) for q in (p, np.argsort(p)))
