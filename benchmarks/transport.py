"""Optimal transport: Sinkhorn and EMD, from the caller's arrays to the plan, checks included.

Peers: POT's batched Sinkhorn in the log domain (``pot_log``, the same iteration as ours) and on the scalings
(``pot_scaling``, faster, but it under- or overflows for small reg), POT's network simplex in a loop (``pot``), OpenCV's
``cv2.EMD`` in a loop (``opencv``, float32).
"""

import math
from functools import cache, partial

import numpy as np
import ot
import torch

from benchmarks import common
from solvers import TransportProblem, make_solver

REG = 0.05
TOLERANCE = 1e-5  # of the marginal error, in the 1-norm
MAX_ITERATIONS = 1000


class Sinkhorn:
    """Entropic transport at reg = 0.05, until the marginal error is at most 1e-5."""

    version = "1"  # to be raised when instances or settings change: older results are then no longer comparable
    param_names = ("solver", "size", "dtype", "device")
    params = (
        ["sinkhorn", "pot_log", "pot_scaling"],
        common.grid(["256x49x49", "64x196x80", "1x1000x1000"], [], ["2048x49x49", "1x4000x4000"]),
        common.grid(["float32"], ["float64"]),
        ["cpu", "cuda"],
    )

    def setup(self, solver, size, dtype, device):
        self.call = _warm_sinkhorn(solver, size, dtype, device)

    def time_solve(self, solver, size, dtype, device):
        self.call()

    def track_marginal_error(self, solver, size, dtype, device):
        """Against the weights in float64, whatever the solver computed in."""
        _, a, b = common.transport_instance(size)
        return common.tracked(common.marginal_error(self.call(), a, b))

    track_marginal_error.unit = "1-norm"


class SinkhornMemory:
    """Peak memory of the process, interpreter and imports included: both solvers import torch and POT.

    One matrix has 36 MB: below 32 MiB glibc may serve it from its heap, and the peak then varies by a quarter from run
    to run.
    """

    version = "1"
    param_names = ("solver", "size", "dtype")
    params = (["sinkhorn", "pot_log"], ["1x3000x3000"], ["float32"])

    def setup(self, solver, size, dtype):
        self.call = _sinkhorn(solver, size, dtype, "cpu")

    def peakmem_solve(self, solver, size, dtype):
        common.finite(self.call())


class EMD:
    """Exact transport."""

    version = "1"
    param_names = ("solver", "size")
    params = (
        common.grid(["emd", "pot"], ["opencv"]),
        common.grid(["375x25x25", "64x49x49", "1x500x500"], [], ["1x2000x2000"]),
    )

    def setup(self, solver, size):
        self.call = _warm_emd(solver, size)

    def time_solve(self, solver, size):
        self.call()

    def track_optimality_gap(self, solver, size):
        """Of the plan's cost to a proven lower bound; the marginal error where that is larger."""
        cost, a, b = common.transport_instance(size)
        plan = common.finite(self.call()).astype(np.float64)
        gap = common.relative_gap((cost * plan).sum((-2, -1)), _dual_bound(size))
        return common.tracked(max(gap, common.marginal_error(plan, a, b)))

    track_optimality_gap.unit = "relative"


# -------------------------------------------------------------------------------------------------------- Sinkhorn


@cache  # asv runs setup before every sample
def _warm_sinkhorn(solver, size, dtype, device):
    return common.warmed_up(_sinkhorn(solver, size, dtype, device))


def _sinkhorn(solver, size, dtype, device):
    """A function of no arguments that solves the instance and waits for the device."""
    common.require_device(device)
    if solver == "pot_scaling" and device == "cuda":
        raise NotImplementedError("POT starts its scalings on the CPU")
    instance = (torch.tensor(x, dtype=getattr(torch, dtype), device=device) for x in common.transport_instance(size))
    run = SINKHORN[solver](*instance)

    def call():
        plan = run()
        common.synchronize(device)
        return plan

    return call


def _our_sinkhorn(cost, a, b):
    solver = make_solver("sinkhorn", reg=REG, tolerance=TOLERANCE, max_iterations=MAX_ITERATIONS)
    return lambda: common.solved(solver.solve(TransportProblem(cost, a, b))).plan


def _pot_sinkhorn(method, cost, a, b):
    # POT stops on the 2-norm of the row marginals, looked at every tenth iteration. ‖x‖₁ ≤ √n ‖x‖₂, so this is the
    # largest tolerance that keeps the promise ours keeps.
    tol = TOLERANCE / math.sqrt(cost.shape[-2])
    settings = {"reg": REG, "tol": tol, "max_iter": MAX_ITERATIONS, "method": method, "grad": "detach"}
    return lambda: ot.solve_batch(cost, a=a, b=b, **settings).plan


SINKHORN = {
    "sinkhorn": _our_sinkhorn,
    "pot_log": partial(_pot_sinkhorn, "log_sinkhorn"),
    "pot_scaling": partial(_pot_sinkhorn, "sinkhorn"),
}


# ------------------------------------------------------------------------------------------------------------- EMD


@cache
def _warm_emd(solver, size):
    return common.warmed_up(EXACT[solver](*common.transport_instance(size)))


def _our_emd(cost, a, b):
    solver = make_solver("emd")
    return lambda: common.solved(solver.solve(TransportProblem(cost, a, b))).plan


def _pot_emd(cost, a, b):
    return lambda: [ot.emd(*weights, costs) for *weights, costs in zip(a, b, cost, strict=True)]


def _opencv_emd(cost, a, b):
    if max(cost.shape[1:]) > 1000:
        raise NotImplementedError("cv2.EMD takes half a minute at 2000 points")
    import cv2

    cost, a, b = (np.ascontiguousarray(x, dtype=np.float32) for x in (cost, a[..., None], b[..., None]))
    return lambda: [cv2.EMD(u, v, cv2.DIST_USER, costs)[2] for u, v, costs in zip(a, b, cost, strict=True)]


EXACT = {"emd": _our_emd, "pot": _pot_emd, "opencv": _opencv_emd}


@cache
def _dual_bound(size):
    """A lower bound on the cost of every plan, (batch,), tight to rounding, that needs no trust in who computed it.

    For any g, f_i = min_j C_ij − g_j makes (f, g) dual feasible, and by weak duality no plan costs less than
    ⟨f, a⟩ + ⟨g, b⟩. The g of an optimal solver makes it tight; a wrong g would only show as a gap.
    """
    cost, a, b = common.transport_instance(size)
    logs = (ot.emd(*weights, costs, log=True)[1] for *weights, costs in zip(a, b, cost, strict=True))
    g = np.stack([log["v"] for log in logs])
    f = (cost - g[:, None, :]).min(-1)
    return (f * a).sum(-1) + (g * b).sum(-1)
