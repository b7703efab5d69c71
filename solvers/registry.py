"""Which solvers there are: a name leads to a class, loaded only when it is asked for.

Adding a solver is one file and one line in ``BUILTIN``; another distribution adds its own through an entry point in
the group ``matchmark.solvers`` (name = "module:Class").
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from solvers.graph_matching import GraphMatchingProblem
from solvers.partial import PartialTransportProblem
from solvers.problems import AssignmentProblem, Problem, QuadraticAssignmentProblem, TransportProblem
from solvers.solution import Solution
from solvers.solver import Solver
from solvers.unbalanced import UnbalancedTransportProblem

BUILTIN = {
    "sinkhorn": "solvers.sinkhorn:Sinkhorn",
    "emd": "solvers.emd:EMD",
    "conditional_transport": "solvers.conditional_transport:ConditionalTransport",
    "jonker_volgenant": "solvers.jonker_volgenant:JonkerVolgenant",
    "gromov_wasserstein": "solvers.gromov_wasserstein:GromovWasserstein",
    "hahn_grant": "solvers.hahn_grant:HahnGrant",
    "branch_and_bound": "solvers.branch_and_bound:BranchAndBound",
    "faq": "solvers.faq:FAQ",
    "local_cka": "solvers.local_cka:LocalCKA",
    "two_opt": "solvers.two_opt:TwoOpt",
    "local_search": "solvers.local_search:LocalSearch",
    "mpopt": "solvers.mpopt:MPOpt",
    "pylibmgm": "solvers.pylibmgm:PyLibMGM",
    "gurobi": "solvers.gurobi:Gurobi",
    "highs": "solvers.highs:HiGHS",
    "brute_force": "solvers.brute_force:BruteForce",
}
DEFAULTS: dict[type, str] = {
    TransportProblem: "emd",
    PartialTransportProblem: "emd",
    UnbalancedTransportProblem: "sinkhorn",
    AssignmentProblem: "jonker_volgenant",
    QuadraticAssignmentProblem: "branch_and_bound",
    GraphMatchingProblem: "mpopt",
}
GROUP = "matchmark.solvers"


class UnknownSolver(ValueError):
    """No solver has this name."""


@cache
def _plugins() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        other = BUILTIN.get(point.name) or (found[point.name].value if point.name in found else None)
        if other is not None and other != point.value:
            raise ImportError(f"two solvers are called {point.name!r}: {other} and {point.value}; uninstall one")
        found[point.name] = point
    return found


def solver_names() -> list[str]:
    """All names, built-in first, available here or not."""
    return [*BUILTIN, *(name for name in _plugins() if name not in BUILTIN)]


def solver_class(name: str) -> type[Solver]:
    """The class behind a name.

    Raises:
        UnknownSolver: no such name; the message lists the nearest.
    """
    if name in BUILTIN:
        module, _, attribute = BUILTIN[name].partition(":")
        return getattr(import_module(module), attribute)
    if name in _plugins():
        return _plugins()[name].load()
    raise UnknownSolver(f"there is no solver {name!r}{_nearest(name, solver_names())}")


def make_solver(name: str, **settings: Any) -> Solver:
    """The solver of that name with these settings.

    Raises:
        UnknownSolver: no such name.
        TypeError: a setting this solver does not have; the message lists the nearest.
    """
    cls = solver_class(name)
    known = [f.name for f in dataclasses.fields(cls)]
    for setting in settings:
        if setting not in known:
            raise TypeError(f"{name} has no setting {setting!r}{_nearest(setting, known)}")
    return cls(**settings)


def unavailable(name: str) -> str | None:
    """Why the solver of that name cannot run on this machine; None when it can."""
    try:
        return solver_class(name).unavailable()
    except ImportError as error:
        return f"it needs {error.name or 'a package'}, which is not installed ({error})"


def available_solvers(problem: Problem | type | None = None) -> list[str]:
    """The names of the solvers that can run on this machine, for a problem (or problem type) or for any."""
    kind = problem if problem is None or isinstance(problem, type) else type(problem)
    names = [name for name in solver_names() if unavailable(name) is None]
    return [n for n in names if kind is None or issubclass(kind, solver_class(n).problem_types)]


def default_solver(problem: Problem) -> str:
    """The solver to use for a problem when none is named: the exact one for its type, where there is one.

    Raises:
        TypeError: not a problem of a known type.
    """
    for kind, name in DEFAULTS.items():
        if isinstance(problem, kind):
            return name
    known = " or ".join(kind.__name__ for kind in DEFAULTS)
    raise TypeError(f"a {type(problem).__name__} is not a problem to solve; make a {known} of it")


def solve(problem: Problem, solver: str | None = None, **settings: Any) -> Solution:
    """Solve a problem, or a batch of problems, with the named solver: ``solve(problem, "sinkhorn", reg=0.05)``.

    Without a name it is the exact solver for the type of problem; there is none for unbalanced transport, where it is
    Sinkhorn's.

    Raises:
        UnknownSolver: no such name.
        TypeError: an unknown setting, or a problem this solver does not take.
        ValueError: a setting out of range, or a problem too large for this solver.
    """
    return make_solver(solver or default_solver(problem), **settings).solve(problem)


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    return f"{hint} Known: {', '.join(known)}"
