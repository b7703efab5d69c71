"""Tiny-ImageNet from stored vectors: larger problems, all solvers side by side, and what can be proven of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

from reproductions.blind_match.contenders import CONTENDERS, Contender, Match
from reproductions.blind_match.instances import Instance, best_subsets
from reproductions.blind_match.method import Distortion
from reproductions.blind_match.outcomes import answered, summarised
from reproductions.blind_match.sides import Pair, stored_pairs
from reproductions.blind_match.tables import Source, by_metric, rows_of
from reproductions.experiment import Measured, Options, Row

GW = Distortion("gw")
EXACT = "branch and bound"
SIZES = {"tiny_imagenet_100": range(10, 101, 10), "tiny_imagenet_200": (10, 20, 50, 100, 200)}
LIMIT, LARGE_LIMIT, LARGE = 10.0, 60.0, 100  # seconds a match; of more than so many classes
LONGER = 100.0  # seconds that the peer is given too
SUBSETS, SUBSETS_LIMIT = 10, 3.0
PROOFS = {"1 min": (60.0, range(20, 27, 2)), "90 min": (5400.0, range(20, 37, 2))}
CONTROLS = 3
LARGEST = {"MPOpt": 100, "pylibmgm": 100}
"""Classes beyond which the n⁴ costs of pairs that they keep do not fit into a few gigabytes."""
WAITS = "takes hours: matchmark reproduce blind-match --data DIR --full"


def rows(options: Options) -> list[Row]:
    """All solvers on the best subset of every size, ours on ten of each, proofs, and subsets with permuted names."""
    pairs, found = stored_pairs(options.data), list[Row]()
    for name, sizes in SIZES.items():
        if name not in pairs:
            continue
        pair = pairs[name]
        source = Source("local", pair.data, pair.sha256)
        for n in sizes:
            limit = LIMIT if n <= LARGE else LARGE_LIMIT
            for title, contender in CONTENDERS.items():
                missing = contender.unavailable(n)
                if n > LARGEST.get(title, n):
                    missing = f"its n⁴ costs of pairs do not fit into memory for n > {LARGEST[title]}"
                of = rows_of(name, title, contender, limit, GW, _about(name, n), source, missing=missing)
                found += by_metric(name, f"N = {n}", of)
            if name == "tiny_imagenet_100":
                missing = CONTENDERS["pylibmgm"].unavailable(n) or ("" if options.full else WAITS)
                title = f"pylibmgm, {LONGER:g} s"
                contender, about = CONTENDERS["pylibmgm"], _about(name, n)
                of = rows_of(name, title, contender, LONGER, GW, about, source, missing=missing)
                found += by_metric(name, f"N = {n}", of)
        if name == "tiny_imagenet_100":
            found += _more_rows(name, sizes, options, source)
    return found


def measure(row: Row, options: Options, advance: Callable[[float], None]) -> Measured:
    """One number of one subset, or of several."""
    return summarised(row.metric, matches(row, options, advance))


def matches(row: Row, options: Options, advance: Callable[[float], None] = lambda fraction: None) -> list[Match]:
    """The matches that the row's number is made of."""
    about, contender = row.settings, _contender(row)
    instances, found = _instances(options.data, about["study"], about["n"], about["subsets"], about["names"]), []
    for k, instance in enumerate(instances):
        found.append(answered(instance, contender, GW, float(about["limit"]), k, options))
        advance((k + 1) / len(instances))
    return found


def _contender(row: Row) -> Contender:
    """Whose row it is: its own name, the peer's that was given longer, or else branch and bound."""
    if row.row in CONTENDERS:
        return CONTENDERS[row.row]
    return CONTENDERS["pylibmgm" if row.solver == "pylibmgm" else EXACT]


def _more_rows(name: str, sizes: Sequence[int], options: Options, source: Source) -> list[Row]:
    """Tables of branch and bound alone."""
    found, of = list[Row](), partial(rows_of, contender=CONTENDERS[EXACT], distortion=GW, source=source)
    for n in sizes:
        ten = _about(name, n, subsets=SUBSETS)
        found += of(f"{name}_subsets", f"N = {n}", limit=SUBSETS_LIMIT, about=ten)
    for n in sizes:
        control = _about(name, n, subsets=CONTROLS, names="permuted")
        found += of(f"{name}_subsets", f"N = {n}, names permuted", limit=SUBSETS_LIMIT, about=control)
    for words, (limit, proven) in PROOFS.items():
        missing = WAITS if limit > LARGE_LIMIT and not options.full else ""
        for n in proven:
            about = _about(name, n)
            found += of(f"{name}_proofs", f"N = {n}, {words}", limit=limit, about=about, missing=missing)
    return found


def _about(study: str, n: int, subsets: int = 1, names: str = "true") -> dict[str, object]:
    return {"study": study, "n": n, "subsets": subsets, "names": names}


@cache
def _instances(folder: Path | None, study: str, n: int, subsets: int, names: str) -> list[Instance]:
    """The best subsets of the size; with permuted names, the best one for each of several orders of the names."""
    whole = _whole(stored_pairs(folder)[study])
    if names == "true":
        return [whole.subset(members) for members in best_subsets(whole, n, subsets, GW)]
    orders = (whole.with_permuted_names(k) for k in range(subsets))
    return [order.subset(best_subsets(order, n, 1, GW)[0]) for order in orders]


@cache
def _whole(pair: Pair) -> Instance:
    """All classes, with the prototypes of all images."""
    return pair.instance()
