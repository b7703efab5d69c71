"""Tables 4 and 5: Hahn and Grant's ascent as published, one improvement after the other, and ours in less time.

Schnaus, Araslanov and Cremers, "It's a (Blind) Match!", CVPR 2025, sec. D.3: two independent clouds of 40 or 100
directions in R¹⁰²⁴, their distances as kernels, and each variant's cost and bound when its time is up, over n².
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from reproductions.blind_match.method import Distortion
from solvers import QuadraticAssignmentProblem, Status, solve

DIMENSIONS = 1024
SEEDS = 5  # the first of the protocol's
TIME_LIMITS = {40: 3600.0, 100: 7200.0}  # seconds, by n; as published
UNLIMITED = 1_000_000  # sweeps: time ends the ascent, or convergence

Stopped = Literal["proven", "stalled", "time"]


@dataclass(frozen=True)
class Run:
    """What one solver came to on one problem.

    Attributes:
        permutation: the best one, int64 ``(n,)``.
        value: its objective, as the problem computes it.
        bound: no permutation is below it.
        seconds: that it took, compilation apart.
        sweeps: over all n² choices, whole ones.
        stopped: why it ended: the bound has met the value, it rises no more, or time was up.
        history: seconds, best value (infinite while there is none) and bound, after every sweep or check.
    """

    permutation: Tensor
    value: float
    bound: float
    seconds: float
    sweeps: int
    stopped: Stopped
    history: list[tuple[float, float, float]]


def synthetic_problem(n: int, local_seed: int) -> QuadraticAssignmentProblem:
    """The published instance of a size and seed: minimises −Σ_ik V[i, k] L[π(i), π(k)], not standardised.

    Both clouds are n float32 draws from N(0, I) scaled to length 1, the vision side first, from one generator.

    Raises:
        ValueError: fewer than two members.
    """
    if n < 2:
        raise ValueError(f"an instance has at least 2 members, not {n}")
    random = torch.Generator().manual_seed(local_seed)
    vision, language = (F.normalize(torch.randn(n, DIMENSIONS, generator=random), dim=1) for _ in range(2))
    distortion = Distortion("inner_product")
    return distortion.problem(distortion.kernel(vision), distortion.kernel(language))


def run_ours(problem: QuadraticAssignmentProblem, time_limit: float, seed: int) -> Run:
    """The smoothed ascent for the bound, with the pair exchanges that it does on the way for the permutation.

    Args:
        problem: a single one.
        time_limit: seconds.
        seed: of the search and of the order of the visits.

    Raises:
        ValueError: a batch of problems, or a time limit that is not positive.
    """
    if problem.batch_shape:
        raise ValueError(f"one problem at a time, not a batch of shape {tuple(problem.batch_shape)}")
    found = solve(problem, "hahn_grant", time_limit=time_limit, seed=seed, max_iterations=UNLIMITED)
    assert found.permutation is not None
    assert found.lower_bound is not None
    assert found.iterations is not None
    stopped: dict[Status, Stopped] = {Status.OPTIMAL: "proven", Status.CONVERGED: "stalled"}
    return Run(
        found.permutation,
        float(found.value),
        float(found.lower_bound),
        found.solve_time,
        int(found.iterations),
        stopped.get(found.status, "time"),
        [(p.time, _number(p.value, math.inf), _number(p.bound, -math.inf)) for p in found.history],
    )


def _number(x: Tensor | None, absent: float) -> float:
    return absent if x is None else float(x)
