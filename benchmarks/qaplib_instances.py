"""Instances of QAPLIB, where the environment variable ``MATCHMARK_QAPLIB`` names the folder they are in.

The files are not part of the project; see `benchmarks.qaplib`. Without the folder everything here is skipped.
"""

import os
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks import common, qaplib, timing
from benchmarks.contenders import Instance, quadratic_assignment

FOLDER = "MATCHMARK_QAPLIB"
NAMES = common.grid(
    ["nug12", "tai12a", "chr12a"], ["esc16a", "nug20", "bur26a", "tai30a"], ["ste36a", "tai35a", "sko49"]
)


class Qaplib(timing.Timed):
    """Heuristics with so many iterations or starts, on the instances people know."""

    version = "1"  # to be raised when settings change: older results are then no longer comparable
    param_names = ("solver", "instance")
    params = (
        common.grid(["local_search", "two_opt", "faq", "mpopt"], ["local_cka", "scipy_faq", "scipy_2opt"]),
        NAMES,
    )

    def setup(self, solver, instance):
        self.call = _warm("SOLVERS", solver, instance)

    def time_solve(self, solver, instance):
        self.call()

    def track_optimality_gap(self, solver, instance):
        """Of the value to the best known, relative."""
        (A, B), best = loaded(instance)
        p = common.finite(self.call())[0]
        return common.tracked(max(0.0, float((A * B[np.ix_(p, p)]).sum() - best) / best))

    track_optimality_gap.unit = "relative"


class QaplibBound(timing.Timed):
    """Lower bounds of the same."""

    version = "1"
    param_names = ("solver", "instance")
    params = (common.grid(["hahn_grant"], ["hahn_grant_published", "scipy_level_one"]), NAMES)

    def setup(self, solver, instance):
        self.call = _warm("BOUNDS", solver, instance)

    def time_solve(self, solver, instance):
        self.call()

    def track_optimality_gap(self, solver, instance):
        """Of the best value known to the bound, relative; a bound above it is an error."""
        best = loaded(instance)[1]
        gap = (best - float(common.finite(self.call())[0])) / best
        return common.tracked(0.0 if abs(gap) < 1e-9 else gap)

    track_optimality_gap.unit = "relative"


@cache
def loaded(instance):
    """(A, B) and the best known value of an instance; skip, from ``setup``, without its folder.

    Raises:
        QaplibError: a folder without the instance or its solution.
    """
    if not os.environ.get(FOLDER):
        raise NotImplementedError(f"{FOLDER} names no folder of QAPLIB's instances")
    path = Path(os.environ[FOLDER], f"{instance}.dat")
    A, B = qaplib.read_dat(path)
    best = qaplib.best_known(path, A, B)
    if best is None:
        raise qaplib.QaplibError(f"there is no file {path.with_suffix('.sln')}")
    return (A, B), best


@cache  # asv runs setup before every sample
def _warm(family, solver, instance):
    contender = getattr(quadratic_assignment, family)[solver]
    return common.warmed_up(contender.prepared(Instance(tuple(x[None] for x in loaded(instance)[0]))))
