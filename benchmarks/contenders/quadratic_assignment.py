"""Quadratic assignment: every contender takes A, B (batch, n, n) to matchings (batch, n), or to lower bounds (batch,).

The problems are minimised, Σ_ij A[i, j] B[p(i), p(j)], and hard: times say little without the values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import quadratic_assignment

from benchmarks import common
from benchmarks.contenders import Array, Call, Contender, Instance
from solvers import QuadraticAssignmentProblem, Solution
from solvers.highs import level_one_bound

RESTARTS = 100
TARGET = 0.01  # of the best value known
SECONDS = {"local_search": 0.5, "mpopt": 2.0}  # that the anytime solvers have to come there


def _ours(instance: Instance, name: str, **settings: Any) -> Call:
    solver, (A, B) = common.ours(name, **settings), instance.tensors()
    accepted = "ITERATION_LIMIT"  # the peers, too, return what they have at their limit of iterations
    return lambda: common.solved(solver.solve(QuadraticAssignmentProblem(A, B)), accepted).permutation


def _our_proof(instance: Instance, name: str) -> Call:
    solver, (A, B) = common.ours(name), instance.tensors()

    def call() -> Any:
        solution = solver.solve(QuadraticAssignmentProblem(A, B))
        if (status := solution.status.name) != "OPTIMAL":
            raise RuntimeError(f"{name} proved nothing and ended with {status}: {solution.message}")
        return np.stack([solution.value, solution.lower_bound])

    return call


def _our_bound(instance: Instance, **settings: Any) -> Call:
    solver, (A, B) = common.ours("hahn_grant", search=False, **settings), instance.tensors()
    return lambda: common.solved(solver.solve(QuadraticAssignmentProblem(A, B)), "ITERATION_LIMIT").lower_bound


def _scipy(instance: Instance, method: str, restarts: int) -> Call:
    """The best of so many runs, from the barycenter and random matrices (faq) or from random permutations (2opt)."""
    A, B = instance.numpy()
    start: dict[str, Any] = {} if method == "2opt" else {"P0": "randomized"}

    def best(a: Any, b: Any) -> Any:
        rng = np.random.default_rng(0)
        found = [quadratic_assignment(a, b, method=method, options={"rng": rng})]
        found += [quadratic_assignment(a, b, method=method, options={"rng": rng, **start}) for _ in range(restarts - 1)]
        return min(found, key=lambda result: result.fun).col_ind

    return lambda: np.stack([best(a, b) for a, b in zip(A, B, strict=True)])


def _scipy_bound(instance: Instance) -> Call:
    """The optimum of the level-1 RLT, by HiGHS's interior point method."""
    pairs = list(zip(*instance.numpy(), strict=True))
    return lambda: np.array([level_one_bound(A, B, np.zeros_like(A)) for A, B in pairs])


def anytime(name: str, instance: Instance) -> Callable[[], Solution]:
    """A run of one problem that lasts for its ``SECONDS`` and keeps the history of its values."""
    solver, (A, B) = common.ours(name, time_limit=SECONDS[name], max_iterations=10**9), instance.tensors()
    return lambda: solver.solve(QuadraticAssignmentProblem(A[0], B[0]))


def seconds_to(solution: Solution, best: Array) -> float:
    """When the first value within ``TARGET`` of the best was found.

    Raises:
        RuntimeError: it was not.
    """
    target = float(best[0] + TARGET * abs(best[0]))
    for progress in solution.history:
        if progress.value is not None and float(progress.value) <= target:
            return progress.time
    raise RuntimeError(f"{solution.solver} found {float(solution.value):g}, and not {target:g}, in its time")


SOLVERS = {
    "local_search": Contender(partial(_ours, name="local_search", max_iterations=5000), "matchmark", "tabu, iterated"),
    "mpopt": Contender(partial(_ours, name="mpopt"), "matchmark", "dual ascent and fusion moves"),
    "local_cka": Contender(partial(_ours, name="local_cka"), "matchmark", "Frank–Wolfe of centred kernels, 500 starts"),
    "faq": Contender(partial(_ours, name="faq", starts=RESTARTS), "matchmark", f"Frank–Wolfe, {RESTARTS} starts"),
    "two_opt": Contender(partial(_ours, name="two_opt", starts=RESTARTS), "matchmark", f"descent, {RESTARTS} starts"),
    "branch_and_bound": Contender(
        partial(_ours, name="branch_and_bound"), "matchmark", "exact", largest=(12, "minutes and more")
    ),
    "scipy_faq": Contender(
        partial(_scipy, method="faq", restarts=RESTARTS), "scipy", f"Frank–Wolfe, {RESTARTS} starts"
    ),
    "scipy_2opt": Contender(
        partial(_scipy, method="2opt", restarts=RESTARTS),
        "scipy",
        f"descent, {RESTARTS} starts",
        largest=(30, "half a minute a problem"),
    ),
}
PROOFS = {
    "branch_and_bound": Contender(partial(_our_proof, name="branch_and_bound"), "matchmark", "branch and bound"),
    "gurobi": Contender(partial(_our_proof, name="gurobi"), "gurobipy", "binary quadratic programme"),
    "highs": Contender(
        partial(_our_proof, name="highs"), "scipy", "level-1 RLT, binary", largest=(8, "minutes and more")
    ),
    "brute_force": Contender(partial(_our_proof, name="brute_force"), "matchmark", "enumeration"),
}
BOUNDS = {
    "hahn_grant": Contender(_our_bound, "matchmark", "smoothed"),
    "hahn_grant_published": Contender(
        partial(_our_bound, schedule="published", max_iterations=100), "matchmark", "published, 100 sweeps"
    ),
    "scipy_level_one": Contender(_scipy_bound, "scipy", "linear programme", largest=(12, "minutes and gigabytes")),
}
