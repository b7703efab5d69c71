"""``matchmark solve``: a problem in an .npz or .dd file, its solution in another."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from reproductions import UserError
from reproductions.datasets.archives import check_arrays
from reproductions.faults import first_words
from reproductions.storage import write_atomically
from solvers import AssignmentProblem, GraphMatchingProblem, QuadraticAssignmentProblem, Solution, TransportProblem
from solvers.dd_files import read_dd
from solvers.registry import solver_class

FIELDS = {"cost": 2, "a": 1, "b": 1, "A": 2, "B": 2, "linear": 2, "constant": 0}
PROBLEMS = {
    "transport": TransportProblem,
    "assignment": AssignmentProblem,
    "quadratic_assignment": QuadraticAssignmentProblem,
}
Problem = TransportProblem | AssignmentProblem | QuadraticAssignmentProblem | GraphMatchingProblem


def read_problem(path: Path, kind: str | None, solver: str | None) -> Problem:
    """The problem in a file: the array ``cost`` (and ``a``, ``b``), or ``A`` and ``B`` (and ``linear``, ``constant``).

    Args:
        path: an .npz archive, or a .dd file (or .dd.gz) with a graph matching.
        kind: "transport", "assignment" or "quadratic_assignment"; None to read it off the arrays and the solver.
        solver: name of the solver that is to take it.

    Raises:
        UserError: no such file, not an archive of numbers, unknown or missing arrays, arrays of a wrong rank.
        InvalidProblem: entries that cannot make a problem.
    """
    if path.suffix == ".dd" or path.name.endswith(".dd.gz"):
        if not path.exists():
            raise UserError(f"there is no file {path}")
        if kind is not None:
            raise UserError(f"a .dd file holds a graph matching; leave out the problem type {kind!r}")
        return read_dd(path)
    arrays = _arrays(path)
    kind = kind or _kind(arrays, solver)
    if kind not in PROBLEMS:
        raise UserError(f"there is no problem type {kind!r}; the types are: {', '.join(PROBLEMS)}")
    needed, optional = {
        "transport": (["cost"], ["a", "b"]),
        "assignment": (["cost"], []),
        "quadratic_assignment": (["A", "B"], ["linear", "constant"]),
    }[kind]
    for name in needed:
        if name not in arrays:
            raise UserError(f"{path} has no array {name!r}, which a {kind} problem needs; it has: {_listed(arrays)}")
    for name, array in arrays.items():
        if name not in needed + optional:
            raise UserError(
                f"{path} has an array {name!r}, which a {kind} problem does not take; it takes: "
                f"{', '.join(needed + optional)}"
            )
        if array.ndim != FIELDS[name]:
            raise UserError(
                f"{name} in {path} has {array.ndim} dimensions, shape {array.shape}, but it must have {FIELDS[name]}: "
                f"one problem a file"
            )
    return PROBLEMS[kind](**arrays)


def write_solution(path: Path, solution: Solution) -> None:
    """The solution as an .npz archive: the plan or permutation, value, bound, potentials, status and settings."""
    tensors = {
        name: getattr(solution, name) for name in ("plan", "permutation", "value", "lower_bound", "marginal_error")
    }
    arrays: dict[str, Any] = {name: t.detach().cpu().numpy() for name, t in tensors.items() if t is not None}
    if solution.potentials is not None:
        arrays |= {
            f"potential_{side}": p.detach().cpu().numpy() for side, p in zip("fg", solution.potentials, strict=True)
        }
    arrays |= {"status": solution.status.name, "solver": solution.solver, "settings": repr(dict(solution.settings))}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise UserError(f"there is no file {path}")
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{path} holds a single array; pass an .npz archive with 'cost', or with 'A' and 'B'")
            check_arrays(archive, path)
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not an .npz archive of numbers ({first_words(error)})") from None


def _kind(arrays: dict[str, np.ndarray], solver: str | None) -> str:
    if "A" in arrays or "B" in arrays:
        return "quadratic_assignment"
    if "cost" not in arrays:
        raise UserError(f"the file has neither the array 'cost' nor the arrays 'A' and 'B'; it has: {_listed(arrays)}")
    if solver is not None and "a" not in arrays and "b" not in arrays:
        takes = solver_class(solver).problem_types
        if TransportProblem not in takes and AssignmentProblem in takes:
            return "assignment"
    return "transport"


def _listed(arrays: dict[str, np.ndarray]) -> str:
    return ", ".join(arrays) or "nothing"
