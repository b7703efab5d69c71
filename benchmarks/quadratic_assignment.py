"""Quadratic assignment: heuristics by time, value and time to a target, bounds by time and distance.

See `benchmarks.contenders`.
"""

from functools import cache

import numpy as np

from benchmarks import common, reference, timing
from benchmarks.contenders import Instance, quadratic_assignment


class QuadraticAssignment(timing.Timed):
    """Unrelated point clouds, whose best matching nothing gives away, or two views of one, as with blind matching."""

    version = "3"  # to be raised when instances or settings change: older results are then no longer comparable
    param_names = ("solver", "size", "clouds", "dtype")
    params = (
        common.grid(["local_search", "two_opt", "faq", "local_cka", "mpopt"], ["scipy_faq", "scipy_2opt"]),
        common.grid(["1x12x12"], ["4x20x20", "1x50x50"], ["1x100x100"]),
        ["unrelated", "views"],
        common.grid(["float64"], ["float32"]),
    )

    def setup(self, solver, size, clouds, dtype):
        self.call = _warm(quadratic_assignment.SOLVERS[solver], size, clouds, dtype)

    def time_solve(self, solver, size, clouds, dtype):
        self.call()

    def track_optimality_gap(self, solver, size, clouds, dtype):
        """Of the values to the best known ones, the largest of the batch, relative."""
        return common.tracked(reference.quadratic_assignment_gap(size, common.finite(self.call()), clouds))

    track_optimality_gap.unit = "relative"


class QuadraticAssignmentTimeToTarget:
    """How soon an anytime solver is within one per cent of the best value known.

    A single time by the wall clock, which noise would fail a comparison of two commits for: not in the fast profile.
    """

    version = "1"
    param_names = ("solver", "size")
    params = (["local_search", "mpopt"], common.grid(["1x20x20"], ["1x30x30"]))

    def setup(self, solver, size):
        if common.PROFILE == "fast":
            raise NotImplementedError("from the regular profile on")
        self.call = _warm_until(solver, size)

    def track_seconds_to_target(self, solver, size):
        """Of the run, from its start to the first value that near."""
        return common.tracked(quadratic_assignment.seconds_to(self.call(), reference.quadratic_assignment_best(size)))

    track_seconds_to_target.unit = "seconds"


class QuadraticAssignmentBound(timing.Timed):
    """Lower bounds of the same problems."""

    version = "1"
    param_names = ("solver", "size")
    params = (
        common.grid(["hahn_grant"], ["hahn_grant_published", "scipy_level_one"]),
        common.grid(["1x8x8"], ["1x12x12", "1x20x20"], ["1x30x30"]),
    )

    def setup(self, solver, size):
        self.call = _warm(quadratic_assignment.BOUNDS[solver], size)

    def time_solve(self, solver, size):
        self.call()

    def track_optimality_gap(self, solver, size):
        """Of the best known values to the bounds, the largest of the batch, relative."""
        bounds, best = common.finite(self.call()), reference.quadratic_assignment_best(size)
        return common.tracked(float(((best - bounds) / abs(best)).max()))

    track_optimality_gap.unit = "relative"


class QuadraticAssignmentProof(timing.Timed):
    """Until the optimum is proven: two views of one point cloud."""

    version = "1"
    param_names = ("solver", "size")
    params = (list(quadratic_assignment.PROOFS), common.grid(["1x7x7"], ["1x8x8"], ["1x10x10"]))

    def setup(self, solver, size):
        self.call = _warm(quadratic_assignment.PROOFS[solver], size, "views")

    def time_proof(self, solver, size):
        self.call()

    def track_optimality_gap(self, solver, size):
        """Of the values to the bounds, the largest of the batch, relative."""
        value, bound = common.finite(self.call())
        gap = (value - bound) / abs(value)
        return common.tracked(float(np.where(abs(gap) < 1e-12, 0, gap).max()))  # a bound may be above by rounding only

    track_optimality_gap.unit = "relative"


@cache  # asv runs setup before every sample
def _warm(contender, size, clouds="unrelated", dtype="float64"):
    return common.warmed_up(contender.prepared(Instance(common.quadratic_assignment_instance(size, clouds), dtype)))


@cache
def _warm_until(solver, size):
    call = quadratic_assignment.anytime(solver, Instance(common.quadratic_assignment_instance(size)))
    call()
    return call
