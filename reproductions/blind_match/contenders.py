"""Who matches: the solvers that the paper compares, and ours, each as it is set there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from reproductions.blind_match.instances import Instance
from reproductions.blind_match.method import Distortion
from reproductions.blind_match.published_ascent import VARIANTS, run_published
from solvers import QuadraticAssignmentProblem, Solution, Status, make_solver
from solvers.registry import solver_class

POT_REG = 0.1  # ε of the entropic transport, POT's own default


@dataclass(frozen=True)
class Match:
    """What a contender answers to one instance; values are F / n².

    Attributes:
        permutation: π, the language class of every vision class.
        cost: F(π)/n², recomputed.
        bound: no permutation is below; None of a heuristic.
        proven: whether π is proven to be optimal.
        seconds: of the algorithm, without compiling.
        history: (seconds, cost, bound) on the way, where the solver keeps them.
    """

    permutation: tuple[int, ...]
    cost: float
    bound: float | None
    proven: bool
    seconds: float
    history: tuple[tuple[float, float | None, float | None], ...] = field(default=(), repr=False)

    @property
    def correct(self) -> int:
        """Members that are matched to their partner."""
        return sum(i == p for i, p in enumerate(self.permutation))


@dataclass(frozen=True)
class Contender:
    """A solver of the registry with its settings, or another way to come to a permutation.

    Attributes:
        solver: registry name; "none" for a random permutation, "published" for the paper's own Hahn–Grant.
        settings: of the solver.
        bounds: whether it bounds the cost from below.
    """

    solver: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    bounds: bool = False

    def unavailable(self, n: int) -> str:
        """Why it cannot take an instance of n classes here; "" where it can."""
        if self.solver in SPECIAL:
            return ""
        problem = QuadraticAssignmentProblem(*torch.zeros(2, n, n))
        return solver_class(self.solver).unavailable(problem) or ""

    def match(self, instance: Instance, distortion: Distortion, time_limit: float, seed: int) -> Match:
        """Match the instance within the time limit in seconds.

        A contender that looks at other kernels (LocalCKA) is judged on those of the distortion, unless the released
        code's way is asked for.
        """
        if self.solver in SPECIAL:
            return SPECIAL[self.solver](self, instance, distortion, time_limit, seed)
        problem, settings = instance.problem(distortion), dict(self.settings)
        if self.solver == "gromov_wasserstein" and distortion.compatibility.doubled_kernel:
            settings["reg"] = settings["reg"] / 2
        found = make_solver(self.solver, **settings, time_limit=time_limit, seed=seed).solve(problem)
        return matched(problem, found)


def matched(problem: QuadraticAssignmentProblem, found: Solution) -> Match:
    """A solution as a match."""
    assert found.permutation is not None
    n2 = found.permutation.shape[-1] ** 2
    history = tuple((p.time, _over(p.value, n2), _over(p.bound, n2)) for p in found.history)
    return Match(
        permutation=tuple(found.permutation.tolist()),
        cost=float(problem.objective(found.permutation)) / n2,
        bound=_over(found.lower_bound, n2),
        proven=found.status is Status.OPTIMAL,
        seconds=found.solve_time,
        history=history,
    )


def _over(x: Tensor | None, n2: int) -> float | None:
    return None if x is None or not bool(x.isfinite()) else float(x) / n2


def _at_random(of: Contender, instance: Instance, distortion: Distortion, time_limit: float, seed: int) -> Match:
    """Any permutation."""
    p = torch.randperm(instance.n, generator=torch.Generator().manual_seed(seed))
    cost = float(instance.problem(distortion).objective(p)) / instance.n**2
    return Match(tuple(p.tolist()), cost, None, False, 0.0)


def _local_cka(of: Contender, instance: Instance, distortion: Distortion, time_limit: float, seed: int) -> Match:
    """Frank–Wolfe on the kernels of CKA, whatever the distortion."""
    own = replace(distortion, name="cka")
    found = make_solver("local_cka", setting="official", time_limit=time_limit, seed=seed).solve(instance.problem(own))
    judge = own if distortion.compatibility.cost_on_own_kernels else distortion
    return replace(matched(instance.problem(judge), found), bound=None, history=())


def _published(of: Contender, instance: Instance, distortion: Distortion, time_limit: float, seed: int) -> Match:
    """The paper's factorised Hahn–Grant with all its parts."""
    run = run_published(instance.problem(distortion), VARIANTS["+ primal heuristic"], time_limit, seed)
    n2 = instance.n**2
    history = tuple((t, v / n2, b / n2) for t, v, b in run.history)
    return Match(
        tuple(run.permutation.tolist()), run.value / n2, run.bound / n2, run.stopped == "proven", run.seconds, history
    )


SPECIAL: Mapping[str, Callable[[Contender, Instance, Distortion, float, int], Match]] = {
    "none": _at_random,
    "local_cka": _local_cka,
    "published": _published,
}

CONTENDERS = {
    "Random": Contender("none"),
    "LocalCKA": Contender("local_cka"),
    "OT": Contender("gromov_wasserstein", {"method": "entropic", "reg": POT_REG}),
    "FAQ": Contender("faq"),
    "2-opt": Contender("two_opt"),
    "MPOpt": Contender("mpopt", bounds=True),
    "pylibmgm": Contender("pylibmgm", {"max_iterations": 10**9, "patience": 10**9}),
    "Gurobi": Contender("gurobi", bounds=True),
    "FHG": Contender("published", bounds=True),
    "local search": Contender("local_search", {"max_iterations": 10**9}),
    "Hahn–Grant, smoothed": Contender("hahn_grant", {"max_iterations": 10**6}, bounds=True),
    "branch and bound": Contender("branch_and_bound", bounds=True),
}
"""The paper's seven (FHG is its own), what came after it, and ours."""
