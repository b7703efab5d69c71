"""Sinkhorn, from the caller's arrays to the plan or its gradient, checks included; see `benchmarks.contenders`.

The peers come in with the regular profile.
"""

from functools import cache

from benchmarks import common, reference, timing
from benchmarks.contenders import Instance, sinkhorn

REG = 0.05
ITERATIONS = 100
MAX_ITERATIONS = 2000

PEERS = [name for name in sinkhorn.SOLVERS if name != "sinkhorn"]


class SinkhornIterations(timing.Timed):
    """100 iterations at reg = 0.05."""

    version = "1"  # to be raised when instances or settings change: older results are then no longer comparable
    param_names = ("solver", "size", "dtype", "device")
    params = (
        common.grid(["sinkhorn"], PEERS),
        common.grid(["256x49x49", "1x1000x1000"], ["64x196x80", "375x25x25"], ["2048x49x49", "1x4000x4000"]),
        common.grid(["float32"], ["float64"]),
        common.grid(["cpu"], ["cuda"]),
    )

    def setup(self, solver, size, dtype, device):
        self.call = _warm(solver, size, dtype, device, reg=REG, iterations=ITERATIONS)

    def time_solve(self, solver, size, dtype, device):
        self.call()

    def track_marginal_error(self, solver, size, dtype, device):
        """Against the weights in float64, whatever the solver computed in."""
        return _marginal_error(self.call, size)

    track_marginal_error.unit = "1-norm"


class SinkhornConvergence(timing.Timed):
    """Until the marginal error is at most 1e-6 (1e-5 in float32), at reg = 0.05."""

    version = "1"
    param_names = ("solver", "size", "dtype", "device")
    params = (
        common.grid(["sinkhorn"], [name for name in PEERS if name != "geomloss"]),
        common.grid(["64x196x80"], ["256x49x49", "375x25x25", "1x1000x1000"], ["2048x49x49", "1x4000x4000"]),
        common.grid(["float64"], ["float32"]),
        common.grid(["cpu"], ["cuda"]),
    )

    def setup(self, solver, size, dtype, device):
        task = {"reg": REG, "iterations": MAX_ITERATIONS, "tolerance": sinkhorn.TOLERANCES[dtype]}
        self.call = _warm(solver, size, dtype, device, **task)

    def time_solve(self, solver, size, dtype, device):
        self.call()

    def track_marginal_error(self, solver, size, dtype, device):
        return _marginal_error(self.call, size)

    track_marginal_error.unit = "1-norm"


class SinkhornGradient(timing.Timed):
    """The gradient of ⟨C, T(C)⟩ to the cost after 100 iterations at reg = 0.05, the iterations included."""

    version = "1"
    param_names = ("solver", "size", "dtype", "device")
    params = (
        common.grid(["sinkhorn"], [name for name in sinkhorn.GRADIENTS if name != "sinkhorn"]),
        common.grid(["375x25x25"], ["256x49x49", "64x196x80", "1x1000x1000"]),
        common.grid(["float32"], ["float64"]),
        common.grid(["cpu"], ["cuda"]),
    )

    def setup(self, solver, size, dtype, device):
        self.call = _warm_gradient(solver, size, dtype, device)

    def time_gradient(self, solver, size, dtype, device):
        self.call()

    def track_gradient_error(self, solver, size, dtype, device):
        """Against the gradient at the fixed point, which an unrolled one only nears."""
        gradient = common.finite(self.call())
        return common.tracked(reference.gradient_error(gradient, reference.sinkhorn_gradient(size, REG)))

    track_gradient_error.unit = "relative, 1-norm"


class SinkhornDustbin(timing.Timed):
    """SuperGlue's layer: matching with a dustbin on each side, 100 iterations at reg = 1 on scores from 0 to 10."""

    version = "1"
    param_names = ("solver", "size", "dtype", "device")
    params = (
        common.grid(["sinkhorn"], ["torch_log", "pot_batch_log", "ott_log"]),
        common.grid(["8x128x128"], ["16x512x512"], ["16x1024x1024"]),
        common.grid(["float32"], ["float64"]),
        common.grid(["cpu"], ["cuda"]),
    )

    def setup(self, solver, size, dtype, device):
        self.call = _warm_dustbin(solver, size, dtype, device)

    def time_solve(self, solver, size, dtype, device):
        self.call()

    def track_marginal_error(self, solver, size, dtype, device):
        """As a share of the mass, n + m."""
        _, a, b = common.dustbin_instance(size)
        return common.tracked(common.marginal_error(self.call(), a, b) / a[0].sum())

    track_marginal_error.unit = "1-norm"


@cache  # asv runs setup before every sample
def _warm(solver, size, dtype, device, **task):
    instance = Instance(common.transport_instance(size), dtype, device)
    return common.warmed_up(sinkhorn.SOLVERS[solver].prepared(instance, **task))


@cache
def _warm_dustbin(solver, size, dtype, device):
    instance = Instance(common.dustbin_instance(size), dtype, device)
    return common.warmed_up(sinkhorn.SOLVERS[solver].prepared(instance, reg=1.0, iterations=ITERATIONS))


@cache
def _warm_gradient(solver, size, dtype, device):
    instance = Instance(common.transport_instance(size), dtype, device)
    return common.warmed_up(sinkhorn.GRADIENTS[solver].prepared(instance, reg=REG, iterations=ITERATIONS))


def _marginal_error(call, size):
    _, a, b = common.transport_instance(size)
    return common.tracked(common.marginal_error(call(), a, b))
