"""``matchmark match``: two files of embeddings, matched blindly; pairs, certificate and figure in three others."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from reproductions import UserError
from reproductions.blind_match.contenders import Match, matched
from reproductions.blind_match.figures import draw_match
from reproductions.blind_match.method import Distortion, standardised
from reproductions.datasets.annotations import existing, read_lines
from reproductions.datasets.archives import check_arrays
from reproductions.faults import first_words
from reproductions.opening import check_writable
from reproductions.provenance import library_versions
from reproductions.statistics import Estimate, clopper_pearson
from reproductions.storage import write_atomically
from solvers import Solution
from solvers.solver import Solver

SHORTEST, LONGEST = 1e-12, 1e100  # of a vector, so that its direction and its squares are numbers
SAME = 1e-12  # how far apart directions are that differ by rounding alone
OUTPUTS = (".csv", ".json", ".png")


@dataclass(frozen=True, eq=False)
class Embeddings:
    """One side: a vector a member, as a file holds them.

    Attributes:
        vectors: float64 ``(n, d)``.
        sha256: of the file.
        names: of the members, where they have any.
    """

    path: Path
    vectors: Tensor
    sha256: str
    names: tuple[str, ...] | None = None

    def kernel(self, distortion: Distortion) -> Tensor:
        """The standardised kernel ``(n, n)``.

        Raises:
            UserError: there is none of these vectors, or nothing in it to match by.
        """
        x = self.vectors
        if distortion.name == "cka" and (x.shape[1] < 2 or bool((x.std(1) <= SAME * x.norm(dim=1)).any())):
            raise UserError(f"{self.path}: cka divides a vector by its deviation, and here one has equal entries alone")
        seen = x if distortion.name == "knn" else F.normalize(x, dim=1)
        if bool(((seen - seen[0]).norm(dim=1) <= SAME * seen[0].norm()).all()):
            raise UserError(f"{self.path}: all rows are the same to {distortion.title}: there is nothing to match by")
        try:
            return standardised(distortion.kernel(x))
        except ValueError as error:
            raise UserError(f"{self.path}: {error}") from None


def read_embeddings(path: Path, names: Path | None = None) -> Embeddings:
    """The embeddings in an ``.npy`` file, or in an ``.npz`` with one array.

    Args:
        path: real numbers ``(n, d)``.
        names: a text file with the n names, one a line.

    Raises:
        UserError: no such file, no numbers, another shape, NaN or infinity, a vector without a direction, other names
            than members.
    """
    x, digest = _array(path)
    if x.dtype.kind not in "fiu":
        raise UserError(f"{path} holds {x.dtype}, and embeddings are real numbers")
    if x.ndim != 2 or 0 in x.shape:
        raise UserError(f"{path} has shape {x.shape}: embeddings are (n, d), a vector a row")
    vectors = torch.from_numpy(x.astype(np.float64))
    finite = vectors.isfinite()
    if not bool(finite.all()):
        i, j = (~finite).nonzero()[0].tolist()
        raise UserError(f"{path} holds {int((~finite).sum())} NaN or infinite numbers, the first at [{i}, {j}]")
    lengths = vectors.norm(dim=1)
    bad = ~((lengths >= SHORTEST) & (lengths <= LONGEST))
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise UserError(
            f"row {i} of {path} has length {lengths[i]:.3g}, and lengths are between {SHORTEST:g} and {LONGEST:g}"
        )
    return Embeddings(path, vectors, digest, None if names is None else _names(names, len(vectors)))


def read_truth(path: Path, n: int) -> Tensor:
    """The partner of every member of the first side, int64 ``(n,)``, from an ``.npy`` file.

    Raises:
        UserError: no such file, or not a permutation of 0 … n − 1.
    """
    partners, _ = _array(path)
    if partners.dtype.kind not in "iu" or partners.shape != (n,) or sorted(partners.tolist()) != list(range(n)):
        raise UserError(f"{path} has {partners.dtype} of shape {partners.shape}: that is not 0 … {n - 1} in some order")
    return torch.from_numpy(partners.astype(np.int64))


@dataclass(frozen=True, eq=False)
class FileMatch:
    """Two sides and how they were matched; π(i) is the row of b that row i of a was given.

    Attributes:
        V: standardised kernel of a, ``(n, n)``.
        L: of b, ``(n, n)``.
        solution: as the solver gave it.
        match: the same with values over n².
        truth: the partners of the rows of a, where they are known.
    """

    a: Embeddings
    b: Embeddings
    distortion: Distortion
    V: Tensor
    L: Tensor
    solution: Solution
    match: Match
    truth: Tensor | None = None

    @property
    def aligned(self) -> Tensor:
        """L[π(i), π(k)], ``(n, n)``."""
        p = torch.tensor(self.match.permutation)
        return self.L[p][:, p]

    @property
    def contributions(self) -> Tensor:
        """What each pair adds to F: half of ℓ over its row and its column, ``(n,)``; their sum is F(π)."""
        loss = self.distortion.loss(self.V, self.aligned)
        return (loss.sum(0) + loss.sum(1)) / 2

    @property
    def accuracy(self) -> Estimate | None:
        """Percent of the members with their true partner, and its Clopper–Pearson interval."""
        if self.truth is None:
            return None
        return clopper_pearson(int((torch.tensor(self.match.permutation) == self.truth).sum()), len(self.truth))

    @property
    def gap(self) -> float | None:
        """(F − lower bound) / n²: absolute, since the best F of two like sides is zero."""
        return None if self.match.bound is None else self.match.cost - self.match.bound

    def pairs(self) -> pd.DataFrame:
        """A row a pair: index, name_a, partner, name_b, contribution; and truth and correct where it is known."""
        p = list(self.match.permutation)
        columns: dict[str, Sequence[Any]] = {
            "index": range(len(p)),
            "name_a": self.a.names or [""] * len(p),
            "partner": p,
            "name_b": [self.b.names[j] for j in p] if self.b.names else [""] * len(p),
            "contribution": self.contributions.tolist(),
        }
        if self.truth is not None:
            known = self.truth.tolist()
            columns |= {"truth": known, "correct": [i == j for i, j in zip(p, known, strict=True)]}
        return pd.DataFrame(columns)

    def certificate(self) -> dict[str, Any]:
        """What was matched by what, how good it is, and what is proven of it; as JSON can write it."""
        found, n2 = self.solution, len(self.V) ** 2
        accuracy = self.accuracy
        return {
            "a": _described(self.a),
            "b": _described(self.b),
            "metric": self.distortion.name,
            "k": self.distortion.k if self.distortion.name == "knn" else None,
            "n": len(self.V),
            "value": self.match.cost * n2,
            "value_over_n2": self.match.cost,
            "lower_bound": None if self.match.bound is None else self.match.bound * n2,
            "lower_bound_over_n2": self.match.bound,
            "gap_over_n2": self.gap,
            "proven_optimal": self.match.proven,
            "status": found.status.name,
            "sentence": found.status.sentence,
            "note": found.message,
            "solver": found.solver,
            "settings": {name: _plain(value) for name, value in found.settings.items()},
            "iterations": None if found.iterations is None else int(found.iterations),
            "seconds": found.solve_time,
            "accuracy": None
            if accuracy is None
            else {"percent": accuracy.mean, "low": accuracy.low, "high": accuracy.high},
            "versions": library_versions(),
        }


def check_sizes(a: Embeddings, b: Embeddings) -> None:
    """Refuse two sides that cannot be matched one to one by their inner distances.

    Raises:
        UserError: unlike numbers of members, or fewer than three.
    """
    n, m = len(a.vectors), len(b.vectors)
    if n != m:
        raise UserError(f"{a.path} has {n} vectors and {b.path} has {m}: each must have one partner, so as many")
    if n < 3:
        raise UserError(f"{a.path} and {b.path} have {n} vectors each: matching by inner distances needs three or more")


def match_embeddings(
    a: Embeddings, b: Embeddings, distortion: Distortion, solver: Solver, truth: Tensor | None = None
) -> FileMatch | Solution:
    """The permutation that aligns the standardised kernels of two sides (Schnaus et al., CVPR 2025).

    Args:
        a: n vectors.
        b: as many, of any width.
        distortion: what kernels are compared, and how.
        solver: of quadratic assignments.
        truth: partners of a's rows, ``(n,)``.

    Returns:
        The match; the solution alone where the solver could not run.

    Raises:
        UserError: sides that cannot be matched.
        TypeError: a solver of other problems.
        ValueError: more members than the solver takes.
    """
    check_sizes(a, b)
    V, L = a.kernel(distortion), b.kernel(distortion)
    problem = distortion.problem(V, L)
    found = solver.solve(problem)
    if found.permutation is None:
        return found
    return FileMatch(a, b, distortion, V, L, found, matched(problem, found), truth)


def output_paths(prefix: Path, inputs: Sequence[Path]) -> tuple[Path, ...]:
    """``PREFIX.csv``, ``PREFIX.json`` and ``PREFIX.png``, in a folder that exists from now on.

    Raises:
        UserError: no file name, or that of an input; a folder that cannot be made or written to.
    """
    if prefix.name in ("", ".."):
        raise UserError(f"--output takes the beginning of a file name, not {str(prefix)!r}")
    paths = tuple(prefix.with_name(prefix.name + suffix) for suffix in OUTPUTS)
    for path in paths:
        if path.resolve() in {p.resolve() for p in inputs}:
            raise UserError(f"{path} would be overwritten, and it is an input: pass another --output")
    check_writable(prefix.parent)
    return paths


def write_match(paths: Sequence[Path], match: FileMatch) -> None:
    """The pairs as csv, the certificate as JSON and the figure as PNG, to these three files."""
    csv, certificate, figure = paths
    write_atomically(csv, match.pairs().to_csv(index=False))
    write_atomically(certificate, json.dumps(match.certificate(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    names = match.a.names, None if match.b.names is None else [match.b.names[j] for j in match.match.permutation]
    titles = match.a.path.name, match.b.path.name
    write_atomically(figure, draw_match(match.V.numpy(), match.aligned.numpy(), match.match, titles, names))


def _array(path: Path) -> tuple[np.ndarray, str]:
    """The one array in a file, and the file's sha256."""
    expected = "an .npy file of numbers, or an .npz with one such array, is expected"
    if existing(path, "an array").is_dir():
        raise UserError(f"{path} is a folder: {expected}")
    content = path.read_bytes()
    try:
        stored = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(stored, np.lib.npyio.NpzFile):
            with stored:
                check_arrays(stored, path)
                arrays = [stored[name] for name in stored.files]
        else:
            arrays = [stored]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({first_words(error)}): {expected}") from None
    if len(arrays) != 1:
        raise UserError(f"{path} has {len(arrays)} arrays: {expected}")
    return arrays[0], hashlib.sha256(content).hexdigest()


def _names(path: Path, n: int) -> tuple[str, ...]:
    names = read_lines(path, "names, one a line, are expected")
    if len(names) != n:
        raise UserError(f"{path} has {len(names)} names, and there are {n} vectors to name")
    return tuple(names)


def _described(side: Embeddings) -> dict[str, Any]:
    return {"file": str(side.path), "sha256": side.sha256, "shape": list(side.vectors.shape)}


def _plain(value: Any) -> Any:
    """A setting as JSON can write it."""
    known = value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
    return value if known else repr(value)
