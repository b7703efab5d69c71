"""Exact transport, from the caller's arrays to the plan or its gradient; see `benchmarks.contenders`."""

from functools import cache

import numpy as np

from benchmarks import common, reference, timing
from benchmarks.contenders import Instance, emd


class EMD(timing.Timed):
    """Random weights, or uniform ones: then solvers of assignments compete too."""

    version = "2"  # to be raised when instances or settings change: older results are then no longer comparable
    param_names = ("solver", "size", "weights", "dtype")
    params = (
        common.grid(["emd"], ["pot", "opencv", "scipy", "lapx"]),
        common.grid(
            ["375x25x25", "256x49x49"], ["64x196x80", "1x500x500", "1x1000x1000"], ["1x2000x2000", "1x4000x4000"]
        ),
        common.grid(["random"], ["uniform"]),
        common.grid(["float64"], ["float32"]),
    )

    def setup(self, solver, size, weights, dtype):
        self.call = _warm(solver, size, weights, dtype)

    def time_solve(self, solver, size, weights, dtype):
        self.call()

    def track_optimality_gap(self, solver, size, weights, dtype):
        """Of the plan's cost to a proven lower bound; the marginal error where that is larger."""
        cost, a, b = common.transport_instance(size, weights)
        plan = common.finite(self.call()).astype(np.float64)
        gap = common.relative_gap((cost * plan).sum((-2, -1)), reference.transport_optimum(size, weights))
        return common.tracked(max(gap, common.marginal_error(plan, a, b)))

    track_optimality_gap.unit = "relative"


class EMDGradient(timing.Timed):
    """The gradient of the optimal cost to the cost matrix: an optimal plan."""

    version = "1"
    param_names = ("solver", "size")
    params = (
        common.grid(["emd"], ["pot_torch"]),
        common.grid(["375x25x25"], ["256x49x49", "64x196x80", "1x1000x1000"], ["1x4000x4000"]),
    )

    def setup(self, solver, size):
        self.call = _warm_gradient(solver, size)

    def time_gradient(self, solver, size):
        self.call()

    def track_optimality_gap(self, solver, size):
        """Of the gradient taken for the plan it should be, as above."""
        cost, a, b = common.transport_instance(size)
        plan = common.finite(self.call()).astype(np.float64)
        gap = common.relative_gap((cost * plan).sum((-2, -1)), reference.transport_optimum(size, "random"))
        return common.tracked(max(gap, common.marginal_error(plan, a, b)))

    track_optimality_gap.unit = "relative"


@cache  # asv runs setup before every sample
def _warm(solver, size, weights, dtype):
    instance = Instance(common.transport_instance(size, weights), dtype)
    return common.warmed_up(emd.SOLVERS[solver].prepared(instance))


@cache
def _warm_gradient(solver, size):
    return common.warmed_up(emd.GRADIENTS[solver].prepared(Instance(common.transport_instance(size))))
