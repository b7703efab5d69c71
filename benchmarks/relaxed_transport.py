"""Unbalanced and partial transport, and transport between point clouds; see `benchmarks.contenders`."""

from functools import cache

import numpy as np

from benchmarks import common, reference, timing
from benchmarks.contenders import Instance, relaxed_transport

SIZES = common.grid(["16x49x49"], ["64x196x80", "1x1000x1000"], ["1x4000x4000"])
REG, ITERATIONS = relaxed_transport.REG, 20


class UnbalancedTransport(timing.Timed):
    """Entropic, until the plan stands still."""

    version = "1"  # to be raised when instances or settings change: older results are then no longer comparable
    param_names = ("solver", "size", "dtype", "device")
    params = (
        common.grid(["sinkhorn"], ["pot"]),
        SIZES,
        common.grid(["float64"], ["float32"]),
        common.grid(["cpu"], ["cuda"]),
    )

    def setup(self, solver, size, dtype, device):
        self.call = _warm("UNBALANCED", solver, size, dtype, device)

    def time_solve(self, solver, size, dtype, device):
        self.call()

    def track_value_error(self, solver, size, dtype, device):
        """How far the plan is from minimising ⟨C, T⟩ + ε Σ T (log T − 1) + the prices: by its fixed point."""
        return common.tracked(fixed_point_error(size, common.finite(self.call())))

    track_value_error.unit = "relative, 1-norm"


class PartialTransport(timing.Timed):
    """Exact: 0.7 of the mass is carried."""

    version = "1"
    param_names = ("solver", "size", "dtype")
    params = (
        common.grid(["emd"], ["pot"]),
        common.grid(["16x49x49"], ["64x196x80", "1x500x500"], ["1x2000x2000"]),
        common.grid(["float64"], ["float32"]),
    )

    def setup(self, solver, size, dtype):
        self.call = _warm("PARTIAL", solver, size, dtype, "cpu")

    def time_solve(self, solver, size, dtype):
        self.call()

    def track_optimality_gap(self, solver, size, dtype):
        """Of the plan's cost to POT's; the excess over the weights where that is larger."""
        cost, _, _ = common.transport_instance(size)
        plan = common.finite(self.call()).astype(np.float64)
        wanted = common.finite(_warm("PARTIAL", "pot", size, "float64", "cpu")())
        gap = common.relative_gap((cost * plan).sum((1, 2)), (cost * wanted).sum((1, 2)))
        return common.tracked(max(gap, partial_error(size, plan)))

    track_optimality_gap.unit = "relative"


class PartialTransportEntropic(timing.Timed):
    """The same with an entropy, to a tolerance."""

    version = "1"
    param_names = ("solver", "size", "dtype", "device")
    params = (
        common.grid(["sinkhorn"], ["pot"]),
        SIZES,
        common.grid(["float64"], ["float32"]),
        common.grid(["cpu"], ["cuda"]),
    )

    def setup(self, solver, size, dtype, device):
        self.call = _warm("PARTIAL_ENTROPIC", solver, size, dtype, device)

    def time_solve(self, solver, size, dtype, device):
        self.call()

    def track_marginal_error(self, solver, size, dtype, device):
        """What is above the weights on either side, and what the mass lacks or exceeds."""
        return common.tracked(partial_error(size, common.finite(self.call()).astype(np.float64)))

    track_marginal_error.unit = "1-norm"


class PointClouds(timing.Timed):
    """Twenty iterations between two clouds in space, from the points to the value."""

    version = "1"
    param_names = ("solver", "size", "dtype", "device")
    params = (
        common.grid(["sinkhorn"], ["sinkhorn_stored", "pot_lazy"]),
        common.grid(["1x1000x1000"], ["1x5000x5000"], ["1x10000x10000"]),
        common.grid(["float32"], ["float64"]),
        common.grid(["cpu"], ["cuda"]),
    )

    def setup(self, solver, size, dtype, device):
        self.call = _warm_points(solver, size, dtype, device)

    def time_solve(self, solver, size, dtype, device):
        self.call()

    def track_value_error(self, solver, size, dtype, device):
        """Of the value after these iterations to that of the converged plan, with a stored cost in float64."""
        value, wanted = common.finite(self.call()).astype(np.float64), reference.point_cloud_value(size, REG)
        return common.tracked(common.relative_gap(value, wanted))

    track_value_error.unit = "relative"


@cache  # asv runs setup before every sample
def _warm(family, solver, size, dtype, device):
    instance = Instance(common.transport_instance(size), dtype, device)
    return common.warmed_up(getattr(relaxed_transport, family)[solver].prepared(instance))


@cache
def _warm_points(solver, size, dtype, device):
    instance = Instance(common.point_cloud_instance(size), dtype, device)
    return common.warmed_up(relaxed_transport.POINTS[solver].prepared(instance, iterations=ITERATIONS))


def fixed_point_error(size, T):
    """‖T − D₁ T D₂‖₁ / ‖T‖₁, the largest of the batch: what one more half-step on each side would change.

    With f = −ρ log(T 1 / a) and g alike, the optimal plan is exp((f_i + g_j − C_ij)/ε).
    """
    cost, a, b = common.transport_instance(size)
    T, rho, reg = T.astype(np.float64), relaxed_transport.REACH, relaxed_transport.REG
    f, g = -rho * np.log(T.sum(-1) / a), -rho * np.log(T.sum(-2) / b)
    optimal = np.exp((f[..., None] + g[..., None, :] - cost) / reg)
    return float((abs(T - optimal).sum((1, 2)) / T.sum((1, 2))).max())


def partial_error(size, T):
    """Σ (T 1 − a)₊ + Σ (Tᵀ 1 − b)₊ + |Σ T − s|, the largest of the batch."""
    _, a, b = common.transport_instance(size)
    above = np.maximum(T.sum(-1) - a, 0).sum(-1) + np.maximum(T.sum(-2) - b, 0).sum(-1)
    return float((above + abs(T.sum((1, 2)) - relaxed_transport.MASS)).max())
