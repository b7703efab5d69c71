"""Gromov–Wasserstein, from the caller's distances to a matching or coupling; see `benchmarks.contenders`."""

from functools import cache

from benchmarks import common, reference, timing
from benchmarks.contenders import Instance, gromov_wasserstein


class GromovWasserstein(timing.Timed):
    """Shuffled points with a little noise."""

    version = "2"  # to be raised when instances or settings change: older results are then no longer comparable
    param_names = ("solver", "size", "dtype")
    params = (
        common.grid(
            ["gromov_wasserstein"], [name for name in gromov_wasserstein.SOLVERS if name != "gromov_wasserstein"]
        ),
        common.grid(["1x100x100"], ["32x30x30", "1x300x300"], ["1x1000x1000"]),
        common.grid(["float64"], ["float32"]),
    )

    def setup(self, solver, size, dtype):
        self.call = _warm(solver, size, dtype)

    def time_solve(self, solver, size, dtype):
        self.call()

    def track_optimality_gap(self, solver, size, dtype):
        """Of the mean energy to that of undoing the shuffle, where 1 is that of no matching at all."""
        return common.tracked(reference.gromov_wasserstein_gap(size, common.finite(self.call())))

    track_optimality_gap.unit = "of the energy without a matching"


@cache  # asv runs setup before every sample
def _warm(solver, size, dtype):
    Dx, Dy, _ = common.gromov_wasserstein_instance(size)
    return common.warmed_up(gromov_wasserstein.SOLVERS[solver].prepared(Instance((Dx, Dy), dtype)))
