"""Exact transport: every contender takes C, a, b to an optimal plan T, in float64 inside unless it says otherwise.

A gradient is that of Σ V(C) to C, V the optimal cost; by the envelope theorem it is the plan itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ot
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks import common
from benchmarks.contenders import Array, Call, Contender, Instance
from solvers import TransportProblem


def _ours(instance: Instance) -> Call:
    solver, arrays = common.ours("emd"), instance.tensors()
    return lambda: common.solved(solver.solve(TransportProblem(*arrays))).plan


def _our_gradient(instance: Instance) -> Call:
    solver, (cost, a, b) = common.ours("emd"), instance.tensors()
    C = cost.requires_grad_()

    def call() -> Tensor:
        value = common.solved(solver.solve(TransportProblem(C, a, b))).value
        return torch.autograd.grad(value.sum(), C)[0]

    return call


def _pot(instance: Instance) -> Call:
    cost, a, b = instance.numpy()
    return lambda: [ot.emd(*w, C, numItermax=10_000_000) for *w, C in zip(a, b, cost, strict=True)]


def _pot_gradient(instance: Instance) -> Call:
    cost, a, b = instance.tensors()
    C = cost.requires_grad_()

    def call() -> Tensor:
        values = [ot.emd2(*w, costs, numItermax=10_000_000) for *w, costs in zip(a, b, C, strict=True)]
        return torch.autograd.grad(torch.stack(values).sum(), C)[0]

    return call


def _opencv(instance: Instance) -> Call:
    cv2 = common.peer("cv2")
    cost, a, b = (np.ascontiguousarray(x, dtype=np.float32) for x in instance.arrays)
    weights = a[..., None], b[..., None]
    return lambda: [cv2.EMD(u, v, cv2.DIST_USER, C)[2] for u, v, C in zip(*weights, cost, strict=True)]


def _scipy(instance: Instance) -> Call:
    cost = _of_assignments(instance)
    n = cost.shape[-1]
    return lambda: [_plan(linear_sum_assignment(C)[1], n) for C in cost]


def _lapx(instance: Instance) -> Call:
    lap, cost = common.peer("lap"), _of_assignments(instance)
    n = cost.shape[-1]

    def call() -> list[Array]:
        return [_plan(p, n) for p in lap.lapjvr_batch(cost, return_cost=False, n_threads=torch.get_num_threads())[1]]

    return call


def _of_assignments(instance: Instance) -> Array:
    """The costs, where the problem is one of assignment (Birkhoff): square, with uniform weights."""
    cost, a, b = instance.numpy()
    if cost.shape[-2] != cost.shape[-1] or np.ptp(a) or np.ptp(b):
        raise NotImplementedError("a solver of assignments: square costs with uniform weights only")
    return cost


def _plan(p: Any, n: int) -> Array:
    plan = np.zeros((n, n))
    plan[np.arange(n), p] = 1 / n
    return plan


SOLVERS = {
    "emd": Contender(_ours, "matchmark", "simplex"),
    "pot": Contender(_pot, "POT", "simplex"),
    "opencv": Contender(_opencv, "opencv-python-headless", "simplex in float32", largest=(
        500, "seconds at n = 1000, half a minute at n = 2000, and not optimal from a few hundred points on"
    )),
    "scipy": Contender(_scipy, "scipy", "assignment"),
    "lapx": Contender(_lapx, "lapx", "assignment"),
}  # fmt: skip

GRADIENTS = {
    "emd": Contender(_our_gradient, "matchmark", "envelope"),
    "pot_torch": Contender(_pot_gradient, "POT", "envelope"),
}

LEFT_OUT = {
    "SciPy's `linprog` (HiGHS)": "a solver of general linear programs, tens of times slower than a network simplex",
    "`qpth`": "its interior points take about a minute for 25 problems of 25 × 25",
}
