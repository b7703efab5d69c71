"""What contenders answered, each match kept under the hash of all it depends on, and the numbers made of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numba
import torch

import solvers
from reproductions.blind_match.contenders import Contender, Match
from reproductions.blind_match.instances import Instance
from reproductions.blind_match.method import Distortion
from reproductions.experiment import Measured, NotMeasured, Options
from reproductions.statistics import Estimate, clopper_pearson, student_interval
from reproductions.storage import content_hash, source_hash

COLUMNS = {
    "accuracy": "matching_accuracy",
    "cost": "matching_cost",
    "bound": "matching_bound",
    "gap": "optimality_gap",
    "proven": "proven_optimal",
    "time": "solve_time",
}
"""What is said of every contender; bound and gap of those that give one."""
WITHOUT_BOUND = {name: metric for name, metric in COLUMNS.items() if name not in ("bound", "gap")}
OWN = ("method", "instances", "contenders", "ablation", "published_ascent")
GLOBAL = 1e-8  # F above the optimum, as the paper counts global optima


def columns_of(contender: Contender) -> dict[str, str]:
    """Column → metric."""
    return COLUMNS if contender.bounds else WITHOUT_BOUND


def answered(
    instance: Instance, contender: Contender, distortion: Distortion, limit: float, seed: int, options: Options
) -> Match:
    """The contender's match, computed once."""
    given = instance.x, instance.y, instance.all_y, instance.distances
    sides = [side.numpy() for side in given if side is not None]
    asked = [contender.solver, dict(contender.settings), asdict(distortion), limit, seed, numba.get_num_threads()]
    key = content_hash(*sides, asked, source_hash(solver_sources()), torch.__version__, numba.__version__)
    if (known := options.cache.read_json("matches", key)) is not None:
        return Match(**known | {"permutation": tuple(known["permutation"]), "history": _points(known["history"])})
    found = contender.match(instance, distortion, limit, seed)
    options.cache.write_json("matches", key, asdict(found))
    return found


def summarised(metric: str, matches: Sequence[Match], optima: Sequence[float] = ()) -> Measured:
    """One number of a metric over matches, with its interval.

    Accuracies have the Clopper–Pearson interval over all pairs, as if they were independent; shares of proven and of
    global optima the same over the matches; the others Student's over the matches, none where there is but one.

    Args:
        metric: of ``metrics.METRICS``.
        matches: at least one.
        optima: F/n² of the best permutation of each, for "global_optimum".

    Raises:
        NotMeasured: a bound is asked of a contender that came to none within its time.
    """
    if metric == "matching_accuracy":
        return clopper_pearson(sum(m.correct for m in matches), sum(len(m.permutation) for m in matches))
    if metric == "proven_optimal":
        return _share([m.proven for m in matches])
    if metric == "global_optimum":
        reached = [m.cost <= best + GLOBAL / len(m.permutation) ** 2 for m, best in zip(matches, optima, strict=True)]
        return _share(reached)
    return spread([_value(metric, m) for m in matches])


def spread(values: Sequence[float]) -> Estimate:
    """Their mean with Student's interval; a single value stands for itself."""
    return student_interval(values) if len(values) > 1 else Estimate(values[0], values[0], values[0], 1)


def _share(yes: Sequence[bool]) -> Estimate:
    """Percent of several; a single one is no sample of others."""
    return clopper_pearson(sum(yes), len(yes)) if len(yes) > 1 else spread([100.0 * yes[0]])


def _value(metric: str, match: Match) -> float:
    if metric == "matching_cost":
        return match.cost
    if metric == "solve_time":
        return match.seconds
    if match.bound is None:
        raise NotMeasured("within its time the solver gave no bound")
    return match.bound if metric == "matching_bound" else 100 * (match.cost - match.bound) / abs(match.cost)


def _points(history: list[list[float | None]]) -> tuple[tuple[float, float | None, float | None], ...]:
    return tuple((float(t or 0.0), value, bound) for t, value, bound in history)


def solver_sources() -> tuple[Path, ...]:
    """What a match depends on: the solvers, and what poses their problems."""
    folder = Path(__file__).parent
    own = [p for name in OWN if (p := folder / f"{name}.py").exists()]
    return tuple(sorted([*Path(solvers.__file__).parent.rglob("*.py"), *own]))
