"""CIFAR-10 from stored vectors: people's answers, a network and a language model, matched two at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from reproductions.blind_match.classification import Clusters, classified, cluster_centres
from reproductions.blind_match.contenders import CONTENDERS
from reproductions.blind_match.instances import Instance
from reproductions.blind_match.method import Distortion
from reproductions.blind_match.outcomes import answered, columns_of, summarised
from reproductions.blind_match.sampling import local_seeds
from reproductions.blind_match.sides import Pair, stored_pairs
from reproductions.blind_match.tables import Source, rows_of
from reproductions.experiment import Measured, Options, Row
from reproductions.storage import content_hash, source_hash

SMALL, SOLVERS, CLASSIFIED = "cifar10_ten_classes", "cifar10_solvers", "cifar10_classification"
NAMES = ("people_network", "people_language", "network_language")
SEEDS = 20
LIMIT = 2.0  # seconds a match; most take a fraction
OPTIMUM_LIMIT = 600.0  # of the proof that "global optimum" is held against; it takes a fraction of a second
EXACT = "branch and bound"
DISTORTIONS = (Distortion("gw"), Distortion("cka"), Distortion("knn", k=4))
GW = DISTORTIONS[0]
CLASSIFYING = ("Random", "LocalCKA", "OT", "FAQ", "MPOpt", "FHG", EXACT)
BEST = "best assignment"


def rows(options: Options) -> list[Row]:
    """Distortions on every pair of sides, solvers on two of them, and classification without labels."""
    pairs, found = stored_pairs(options.data), list[Row]()
    for name in NAMES:
        if name not in pairs:
            continue
        pair = pairs[name]
        source = Source("local", pair.data, pair.sha256)
        about = {"pair": name, "seeds": SEEDS}
        for distortion in DISTORTIONS:
            title = f"{pair.title}, {distortion.title}"
            found += rows_of(SMALL, title, CONTENDERS[EXACT], LIMIT, distortion, about, source)
        if name == "people_language":
            continue
        for title, contender in CONTENDERS.items():
            columns = columns_of(contender) | {"global optimum": "global_optimum"}
            missing = contender.unavailable(len(pair.classes))
            table = f"{SOLVERS}_{name}"
            found += rows_of(table, title, contender, LIMIT, GW, about, source, columns, missing)
        if name == "network_language":
            found += _classified_rows(pair, about, source)
    return found


def measure(row: Row, options: Options, advance: Callable[[float], None]) -> Measured:
    """One number over 20 seeds, each with its half of the images."""
    pair, seeds = stored_pairs(options.data)[row.settings["pair"]], local_seeds(SEEDS)
    if row.table == CLASSIFIED:
        return _classified(row, pair, options, advance)
    contender = CONTENDERS[EXACT if row.table == SMALL else row.row]
    distortion = next(d for d in DISTORTIONS if d.title == row.settings["distortion"])
    found, optima = [], []
    for k, seed in enumerate(seeds):
        instance = pair.instance(seed)
        found.append(answered(instance, contender, distortion, LIMIT, seed, options))
        if row.metric == "global_optimum":
            best = answered(instance, CONTENDERS[EXACT], distortion, OPTIMUM_LIMIT, seed, options)
            if not best.proven:
                raise ValueError(f"the optimum of seed {seed} is not proven within {OPTIMUM_LIMIT} s")
            optima.append(best.cost)
        advance((k + 1) / SEEDS)
    return summarised(row.metric, found, optima)


def _classified_rows(pair: Pair, about: dict[str, object], source: Source) -> list[Row]:
    columns = {"classification accuracy": "classification_accuracy", "matching accuracy": "matching_accuracy"}
    found = []
    for title in CLASSIFYING:
        missing = CONTENDERS[title].unavailable(len(pair.classes))
        found += rows_of(CLASSIFIED, title, CONTENDERS[title], LIMIT, GW, about, source, columns, missing)
    settings = {**about, "solver": "scipy"}
    return [*found, Row(CLASSIFIED, BEST, *next(iter(columns.items())), "none", settings, *source)]


def _classified(row: Row, pair: Pair, options: Options, advance: Callable[[float], None]) -> Measured:
    """Percent of the images, or of the clusters, seed by seed."""
    shares = []
    for k, seed in enumerate(local_seeds(SEEDS)):
        clusters = _clusters(pair, seed, options)
        if row.row == BEST:
            shares.append(classified(clusters, clusters.best).best_accuracy)
        else:
            instance = Instance(clusters.centres, pair.y.prototypes(len(pair.classes), None))
            match = answered(instance, CONTENDERS[row.row], GW, LIMIT, seed, options)
            outcome = classified(clusters, torch.tensor(match.permutation))
            shares.append(outcome.accuracy if row.metric == "classification_accuracy" else outcome.matching_accuracy)
        advance((k + 1) / SEEDS)
    return shares


def _clusters(pair: Pair, seed: int, options: Options) -> Clusters:
    """K-means on the seed's half of the images, computed once."""
    assert pair.x.labels is not None
    vectors, labels, n = pair.x.vectors, pair.x.labels, len(pair.classes)

    def made() -> dict[str, torch.Tensor]:
        found = cluster_centres(vectors, labels, n, seed)
        return {"centres": found.centres, "assigned": found.assigned, "labels": found.labels}

    return Clusters(**options.cache.tensors("clusters", content_hash(pair.sha256, seed, source_hash()), made))
