"""Conditional transport, from the caller's arrays to losses or gradients; see `benchmarks.contenders`."""

from functools import cache

import numpy as np

from benchmarks import common, reference, timing
from benchmarks.contenders import Instance, conditional_transport

TEMPERATURE = 0.1
SIZES = common.grid(["256x49x49"], ["64x196x80", "375x25x25", "1x1000x1000"], ["2048x49x49", "1x4000x4000"])
PARAMETERS = (
    common.grid(["conditional_transport"], ["torch", "conditional_transport_loss"]),
    SIZES,
    common.grid(["float32"], ["float64"]),
    common.grid(["cpu"], ["cuda"]),
)


class ConditionalTransport(timing.Timed):
    """Both navigators at temperature 0.1."""

    version = "1"  # to be raised when instances or settings change: older results are then no longer comparable
    param_names = ("solver", "size", "dtype", "device")
    params = PARAMETERS

    def setup(self, solver, size, dtype, device):
        self.call = _warm("SOLVERS", solver, size, dtype, device)

    def time_solve(self, solver, size, dtype, device):
        self.call()

    def track_value_error(self, solver, size, dtype, device):
        """Of the losses to those in float64, relative."""
        losses = common.finite(self.call()).astype(np.float64)
        return common.tracked(common.relative_gap(losses, reference.conditional_transport(size, TEMPERATURE)))

    track_value_error.unit = "relative"


class ConditionalTransportGradient(timing.Timed):
    """The gradient of the losses to the cost, the losses included."""

    version = "1"
    param_names = ("solver", "size", "dtype", "device")
    params = PARAMETERS

    def setup(self, solver, size, dtype, device):
        self.call = _warm("GRADIENTS", solver, size, dtype, device)

    def time_gradient(self, solver, size, dtype, device):
        self.call()

    def track_gradient_error(self, solver, size, dtype, device):
        """Against the gradient in float64."""
        gradient = common.finite(self.call())
        wanted = reference.conditional_transport_gradient(size, TEMPERATURE)
        return common.tracked(reference.gradient_error(gradient, wanted))

    track_gradient_error.unit = "relative, 1-norm"


@cache  # asv runs setup before every sample
def _warm(family, solver, size, dtype, device):
    instance = Instance(common.transport_instance(size), dtype, device)
    contender = getattr(conditional_transport, family)[solver]
    return common.warmed_up(contender.prepared(instance, temperature=TEMPERATURE))
