"""Graph matching with sparse pairs, by time and value; see `benchmarks.contenders.graph_matching`."""

from functools import cache

from benchmarks import common, timing
from benchmarks.contenders import graph_matching


class GraphMatching(timing.Timed):
    """Keypoints among others, with a few candidates each."""

    version = "1"  # to be raised when instances or settings change: older results are then no longer comparable
    param_names = ("solver", "size")
    params = (["mpopt", "pylibmgm"], common.grid(["20x30"], ["50x60"], ["200x300"]))

    def setup(self, solver, size):
        self.call = _warm(solver, size)

    def time_solve(self, solver, size):
        self.call()

    def track_optimality_gap(self, solver, size):
        """Of the value to the best known, relative."""
        value, best = float(common.finite(self.call())), graph_matching.best_value(size)
        return common.tracked(max(0.0, (value - best) / abs(best)))

    track_optimality_gap.unit = "relative"


@cache  # asv runs setup before every sample
def _warm(solver, size):
    return common.warmed_up(graph_matching.prepared(solver, size))
