"""EMD: the exact transport plan with its dual potentials, by the network simplex."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import ot
import torch
from numpy.typing import NDArray

from solvers.problems import TransportProblem
from solvers.solution import Status
from solvers.solver import Answer, Clock, Solver

Array = NDArray[np.float64]
CHUNK = 20_000  # pivots between two looks at the clock, when there is a time limit; doubled every time


@dataclass(frozen=True, kw_only=True)
class EMD(Solver):
    """Minimises ⟨C, T⟩ exactly; returns a vertex plan and feasible dual potentials that prove it.

    The pivots are POT's network simplex (Bonneel et al., SIGGRAPH Asia 2011), in float64 whatever the input, one
    problem after the other on as many threads as torch uses. The optimal value is differentiable by the envelope
    theorem: ∂V/∂C = T, ∂V/∂a = f, ∂V/∂b = g.

    Attributes:
        max_iterations: pivots; beyond them, or beyond ``time_limit``, the answer is the independent plan a bᵀ/Σa with
            the best bound so far. The clock is looked at between problems, and every 20,000 pivots (then 40,000, …)
            inside one.
    """

    name: ClassVar = "emd"
    problem_types: ClassVar = (TransportProblem,)
    exact: ClassVar = True
    gives_bound: ClassVar = True
    differentiable: ClassVar = ("envelope",)
    batched: ClassVar = True
    reference: ClassVar = "Bonneel et al., Displacement Interpolation Using Lagrangian Mass Transport, 2011"

    max_iterations: int = 10_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, not {self.max_iterations!r}")

    def _prepare(self, problem: TransportProblem) -> tuple[Array, Array, Array]:
        n, m = problem.cost.shape[-2:]

        def layout(x: torch.Tensor, *shape: int) -> Array:
            return np.ascontiguousarray(x.detach().numpy().reshape(-1, *shape), dtype=np.float64)

        a, b = layout(problem.a, n), layout(problem.b, m)
        b = b * (a.sum(-1, keepdims=True) / b.sum(-1, keepdims=True))  # float32 totals agree to float32 only
        return layout(problem.cost, n, m), a, b

    def _run(self, problem: TransportProblem, prepared: tuple[Array, Array, Array], clock: Clock) -> Answer:
        C, a, b = prepared
        plans, f = np.empty_like(C), np.empty_like(a)
        statuses = [Status.TIME_LIMIT] * len(C)

        def run(part: range) -> None:
            for k in part:
                plans[k], f[k], statuses[k] = self._simplex(a[k], b[k], C[k], clock)

        threads = min(torch.get_num_threads(), len(C))  # a stretch each: the interpreter is held between pivots
        cuts = [len(C) * t // threads for t in range(threads + 1)]
        with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
            warnings.simplefilter("ignore", UserWarning)  # POT warns at its iteration limit; the status says it
            list(pool.map(run, map(range, cuts, cuts[1:])))

        def back(x: Array, like: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(x).to(problem.dtype).reshape(like.shape)

        f, g = _feasible(C, a > 0, f)
        return Answer(
            plan=back(plans, problem.cost),
            potentials=(back(f, problem.a), back(g, problem.b)),
            statuses=statuses,
            message="" if set(statuses) == {Status.OPTIMAL} else "unfinished problems have the plan a bᵀ/Σa",
        )

    def _simplex(self, a: Array, b: Array, C: Array, clock: Clock) -> tuple[Array, Array, Status]:
        """Plan, potentials of the rows and status of one problem."""
        f, start, pivots = np.zeros_like(a), None, 0
        while not clock.expired:
            step = self.max_iterations - pivots
            step = step if clock.time_limit is None else min(CHUNK + pivots, step)
            T, log = ot.emd(a, b, C, step, True, center_dual=False, check_marginals=False, potentials_init=start)
            f, _ = start = log["u"], log["v"]
            pivots += step
            if log["result_code"] == 1:
                return T, f, Status.OPTIMAL
            if pivots >= self.max_iterations:
                return np.outer(a, b) / a.sum(), f, Status.ITERATION_LIMIT
        return np.outer(a, b) / a.sum(), f, Status.TIME_LIMIT


def _feasible(C: Array, has_mass: NDArray[np.bool_], f: Array) -> tuple[Array, Array]:
    """Feasible potentials by two c-transforms, which never lower the dual value.

    The rows without mass take no part: the simplex leaves their potential open, the second transform closes it.
    """
    g = np.where(has_mass[..., None], C - f[..., None], np.inf).min(-2)
    return (C - g[..., None, :]).min(-1), g
