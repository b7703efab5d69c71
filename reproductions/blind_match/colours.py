"""The embedded tier's colours: CIELAB against a language model's vectors of their names."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch

from reproductions.blind_match.contenders import CONTENDERS, Match
from reproductions.blind_match.instances import Instance, best_subsets
from reproductions.blind_match.method import Distortion
from reproductions.blind_match.outcomes import answered, summarised
from reproductions.blind_match.sampling import local_seeds
from reproductions.blind_match.shuffling import min_max_scaled, shuffled_alignment, shuffling_levels
from reproductions.blind_match.tables import Source, rows_of
from reproductions.datasets.colours import BASIC, load_colours
from reproductions.experiment import Measured, Options, Row
from reproductions.statistics import Estimate

TABLE, SHUFFLED = "colours", "colours_shuffled"
TITLE = "XKCD colours"
SIZES, CONTROL_SIZES = range(10, 101, 10), range(10, 41, 10)
LIMIT, CONTROL_LIMIT = 3.0, 1.0  # seconds a match
CONTROLS = 3  # orders of the names that have nothing to do with the colours
SOLVER = "branch and bound"
LEVELS = shuffling_levels(11)
PERMUTATIONS = 20
DISTORTIONS = {"GW, scaled": Distortion("gw"), "CKA": Distortion("cka"), "10-NN": Distortion("knn", k=10)}
GW = Distortion("gw")


def rows() -> list[Row]:
    """The basic colours, the best subsets of every size, the same with permuted names, and shuffled alignments."""
    source = Source("embedded", TITLE, load_colours().sha256)
    row = partial(rows_of, TABLE, contender=CONTENDERS[SOLVER], distortion=GW, source=source)
    found = row(row="eleven basic colours", limit=LIMIT, about={"n": len(BASIC), "chosen": "basic"})
    for n in SIZES:
        found += row(row=f"N = {n}", limit=LIMIT, about={"n": n, "chosen": "best subset"})
    for n in CONTROL_SIZES:
        about = {"n": n, "chosen": "best subset", "names": "permuted"}
        found += row(row=f"N = {n}, names permuted", limit=CONTROL_LIMIT, about=about)
    for name, distortion in DISTORTIONS.items():
        for level in LEVELS:
            settings = {"distortion": distortion.title, "level": round(level, 3), "permutations": PERMUTATIONS}
            found.append(Row(SHUFFLED, name, f"{level:.1f}", "alignment", "none", settings, *source))
    return found


def measure(row: Row, options: Options, advance: Callable[[float], None]) -> Measured:
    """One number of the colours."""
    if row.table == SHUFFLED:
        return _shuffled(row)
    return summarised(row.metric, matches(row, options))


def matches(row: Row, options: Options) -> list[Match]:
    """What branch and bound makes of the row's colours: one match, or one for every order of the names."""
    about, limit = row.settings, float(row.settings["limit"])
    orders = range(CONTROLS) if "names" in about else [None]
    return [answered(_chosen(about["n"], order), CONTENDERS[SOLVER], GW, limit, 0, options) for order in orders]


def members(n: int) -> torch.Tensor:
    """Which colours stand in the row of a size: int64 ``(n,)``, positions in the survey's list."""
    return best_subsets(colours(), n, 1, GW)[0]


@cache
def colours() -> Instance:
    """All 949. V of GW are distances in CIELAB; what CKA and k-NN see is CIELAB less its mean."""
    loaded = load_colours()
    return Instance(loaded.lab - loaded.lab.mean(0), loaded.text, distances=torch.cdist(loaded.lab, loaded.lab))


@cache
def _chosen(n: int, order: int | None) -> Instance:
    if n == len(BASIC):
        return colours().subset(load_colours().places(BASIC))
    whole = colours() if order is None else colours().with_permuted_names(order)
    return whole.subset(best_subsets(whole, n, 1, GW)[0])


def _shuffled(row: Row) -> Estimate:
    """Mean and 95 % of the permutations, as a similarity."""
    of_level = similarities(row.row)[[round(level, 3) for level in LEVELS].index(row.settings["level"])]
    low, high = torch.quantile(of_level, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(of_level.mean().item(), low, high, len(of_level))


@cache
def similarities(name: str) -> torch.Tensor:
    """(levels, permutations), larger is better aligned."""
    distortion = DISTORTIONS[name]
    F = shuffled_alignment(*colours().raw_kernels(distortion), distortion, LEVELS, local_seeds(PERMUTATIONS))
    return 1 - min_max_scaled(F) if distortion.name == "gw" else -F
