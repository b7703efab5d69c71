"""Sinkhorn, from the caller's arrays to the plan or its gradient, checks included; see `benchmarks.contenders`.

In the fast profile the peers are POT's batched functions; in the regular one all of them.
"""

from functools import cache

from benchmarks import common, reference, timing
from benchmarks.contenders import Instance, sinkhorn

REG = 0.05
ITERATIONS = 100
MAX_ITERATIONS = 2000

OTHERS = [name for name in sinkhorn.SOLVERS if name not in ("sinkhorn", "pot_batch_log", "pot_batch_scaling")]


class SinkhornIterations(timing.Timed):
    """100 iterations at reg = 0.05."""

    version = "1"  # to be raised when instances or settings change: older results are then no longer comparable
    param_names = ("solver", "size", "dtype", "device")
    params = (
        common.grid(["sinkhorn", "pot_batch_log", "pot_batch_scaling"], OTHERS),
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
        common.grid(["sinkhorn", "pot_batch_log"], ["pot_batch_scaling", *(s for s in OTHERS if s != "geomloss")]),
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
        common.grid(
            ["sinkhorn", "pot_batch_log"], [s for s in sinkhorn.GRADIENTS if s not in ("sinkhorn", "pot_batch_log")]
        ),
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


class SinkhornMemory:
    """Peak memory of the process, interpreter and imports included: both solvers import torch and POT.

    One matrix has 36 MB: below 32 MiB glibc may serve it from its heap, and the peak then varies by a quarter from run
    to run. Ten iterations have the peak of any number.
    """

    version = "1"
    param_names = ("solver", "size", "dtype")
    params = (common.grid(["sinkhorn", "pot_batch_log"], ["torch_log"]), ["1x3000x3000"], ["float32"])

    def setup(self, solver, size, dtype):
        instance = Instance(common.transport_instance(size), dtype)
        self.call = sinkhorn.SOLVERS[solver].prepared(instance, reg=REG, iterations=10)

    def peakmem_solve(self, solver, size, dtype):
        common.finite(self.call())


@cache  # asv runs setup before every sample
def _warm(solver, size, dtype, device, **task):
    instance = Instance(common.transport_instance(size), dtype, device)
    return common.warmed_up(sinkhorn.SOLVERS[solver].prepared(instance, **task))


@cache
def _warm_gradient(solver, size, dtype, device):
    instance = Instance(common.transport_instance(size), dtype, device)
    return common.warmed_up(sinkhorn.GRADIENTS[solver].prepared(instance, reg=REG, iterations=ITERATIONS))


def _marginal_error(call, size):
    _, a, b = common.transport_instance(size)
    return common.tracked(common.marginal_error(call(), a, b))
