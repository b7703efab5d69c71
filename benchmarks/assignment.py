"""Linear assignment: Jonker–Volgenant, from the caller's arrays to the matching, checks included.

Peers: SciPy's ``linear_sum_assignment`` and ``lapjv`` in a loop over the batch, and the fastest batched function of
``lapx``. Of these only lapjv returns dual potentials, as ours does.
"""

from functools import cache

import numpy as np
from lapjv import lapjv
from scipy.optimize import linear_sum_assignment

from benchmarks import common, timing
from solvers import AssignmentProblem


class Assignment(timing.Timed):
    """Exact linear assignment of square costs."""

    version = "2"  # to be raised when instances or settings change: older results are then no longer comparable
    param_names = ("solver", "size", "dtype")
    params = (
        common.grid(["jonker_volgenant"], ["scipy", "lapjv", "lapx"]),
        common.grid(["1000x10x10", "900x29x29", "1x500x500"], [], ["1x4000x4000"]),
        common.grid(["float64"], ["float32"]),
    )

    def setup(self, solver, size, dtype):
        self.call = _warm(solver, size, dtype)

    def time_solve(self, solver, size, dtype):
        self.call()

    def track_optimality_gap(self, solver, size, dtype):
        """Of the matching's cost to SciPy's optimum."""
        cost = common.assignment_instance(size)
        return common.tracked(common.relative_gap(_value(cost, self.call()), _value(cost, _scipy(cost)())))

    track_optimality_gap.unit = "relative"


@cache  # asv runs setup before every sample
def _warm(solver, size, dtype):
    return common.warmed_up(SOLVERS[solver](common.assignment_instance(size).astype(dtype)))


def _ours(cost):
    solver = common.ours("jonker_volgenant")
    return lambda: common.solved(solver.solve(AssignmentProblem(cost))).permutation


def _scipy(cost):
    return lambda: [linear_sum_assignment(costs)[1] for costs in cost]


def _lapjv(cost):
    return lambda: [lapjv(costs)[0] for costs in cost]


def _lapx(cost):
    import lap

    return lambda: lap.lapjvr_batch(cost, return_cost=False, n_threads=1)[1]


SOLVERS = {"jonker_volgenant": _ours, "scipy": _scipy, "lapjv": _lapjv, "lapx": _lapx}


def _value(cost, matching):
    """Σ_i C[i, p(i)] of each problem, (batch,).

    Raises:
        ValueError: a row of ``matching`` is not a permutation.
    """
    p = common.finite(matching).astype(np.int64)
    if (np.sort(p, -1) != np.arange(cost.shape[-1])).any():
        raise ValueError("the solver returned something that is not a permutation")
    return np.take_along_axis(cost, p[..., None], -1).sum((-2, -1))
