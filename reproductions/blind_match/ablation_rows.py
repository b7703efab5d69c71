"""The tables of the ablation: the published variants of Hahn and Grant's ascent, and ours in a tenth of their time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numba
import torch

from reproductions.blind_match.ablation import SEEDS, TIME_LIMITS, Run, run_ours, synthetic_problem
from reproductions.blind_match.outcomes import solver_sources, spread
from reproductions.blind_match.published_ascent import VARIANTS, run_published
from reproductions.blind_match.sampling import local_seeds
from reproductions.experiment import Measured, NotMeasured, Options, Row
from reproductions.storage import content_hash, source_hash

COLUMNS = {"cost": "matching_cost", "bound": "matching_bound", "gap": "optimality_gap", "time": "solve_time"}
DATA = "synthetic clouds"


@dataclass(frozen=True)
class Length:
    """One table of a size.

    Attributes:
        limit: seconds of the published variants.
        ours: seconds of our own solver beside them.
        takes: what all of it takes, where it must be asked for.
    """

    n: int
    suffix: str
    limit: float
    ours: tuple[float, ...]
    takes: str = ""


LENGTHS = (
    Length(40, "", 1.5, (0.15,)),
    Length(100, "", 3.0, (0.3,)),
    Length(40, "_published_limit", TIME_LIMITS[40], (0.3, 1.0), "minutes, as all variants end by themselves"),
    Length(100, "_half_minute", 30.0, (1.0, 3.0), "a quarter of an hour"),
    Length(100, "_published_limit", TIME_LIMITS[100], (3.0, 10.0), "up to 60 hours"),
)


def rows(options: Options) -> list[Row]:
    """Two sizes, with short limits and with the published ones."""
    found = []
    for of in LENGTHS:
        waits = of.takes and not options.full
        missing = f"takes {of.takes}: matchmark reproduce blind-match --full" if waits else ""
        found += _rows_of(f"hahn_grant_{of.n}{of.suffix}", of.n, of.limit, of.ours, missing)
    return found


def _rows_of(table: str, n: int, limit: float, ours: tuple[float, ...], missing: str = "") -> list[Row]:
    limits = dict.fromkeys(VARIANTS, limit) | {f"ours, {seconds:g} s": seconds for seconds in ours}
    found = []
    for name, seconds in limits.items():
        settings = {"n": n, "limit": seconds, "seeds": SEEDS}
        of = ("hahn_grant", settings, "embedded", DATA, content_hash(DATA, n, SEEDS))
        found += [Row(table, name, column, metric, *of, missing=missing) for column, metric in COLUMNS.items()]
    return found


def measure(row: Row, options: Options, advance: Callable[[float], None]) -> Measured:
    """One number over the five clouds."""
    n, limit, values = row.settings["n"], row.settings["limit"], []
    for k, seed in enumerate(local_seeds(SEEDS)):
        run = _run(row.row, n, limit, seed, options)
        values.append(_value(row.metric, run, n))
        advance((k + 1) / SEEDS)
    return spread(values)


def _value(metric: str, run: Run, n: int) -> float:
    if metric in ("matching_bound", "optimality_gap") and not math.isfinite(run.bound):
        raise NotMeasured("within its time the ascent made no sweep over all submatrices, which a bound needs")
    gap = 100 * (run.value - run.bound) / abs(run.value)
    return {
        "matching_cost": run.value / n**2,
        "matching_bound": run.bound / n**2,
        "optimality_gap": gap,
        "solve_time": run.seconds,
    }[metric]


def _run(name: str, n: int, limit: float, seed: int, options: Options) -> Run:
    """One run, made once."""
    key = content_hash(name, n, limit, seed, numba.get_num_threads(), source_hash(solver_sources()), torch.__version__)
    if (known := options.cache.read_json("ablation", key)) is not None:
        bound = -math.inf if known["bound"] is None else known["bound"]
        return Run(**known | {"permutation": torch.tensor(known["permutation"]), "bound": bound})
    problem = synthetic_problem(n, seed)
    if name in VARIANTS:
        run = run_published(problem, VARIANTS[name], limit, seed)
    else:
        run = run_ours(problem, limit, seed)
    bound = run.bound if math.isfinite(run.bound) else None  # before its first sweep the dense form has none
    kept = asdict(run) | {"permutation": run.permutation.tolist(), "bound": bound, "history": []}
    options.cache.write_json("ablation", key, kept)
    return run
