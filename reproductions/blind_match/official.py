"""The paper's own tables: its data sets and networks, where they are in the folder, as the released code runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from reproductions import UserError
from reproductions.blind_match.classification import classified, cluster_centres
from reproductions.blind_match.contenders import CONTENDERS
from reproductions.blind_match.instances import Instance, best_subsets
from reproductions.blind_match.method import RELEASED, Distortion
from reproductions.blind_match.outcomes import answered, summarised
from reproductions.blind_match.sampling import language_prototypes, local_seeds, vision_prototypes
from reproductions.blind_match.shuffling import shuffled_alignment
from reproductions.blind_match.sources import Embedded, embedded, missing
from reproductions.claims import Claim, load_paper
from reproductions.datasets.labelled import load_labelled
from reproductions.datasets.labelled_images import LabelledImages
from reproductions.experiment import Advance, Measured, Options, Row

MAIN = "all-mpnet-base-v2"
WAITS = "takes hours: matchmark reproduce blind-match --data DIR --full"
GW = Distortion("gw", compatibility=RELEASED)
EXACT = "branch and bound"
SEEDS, SUBSET_SEEDS, SUBSETS = 20, 3, 10
SHUFFLED, SHUFFLES = "shuffling_coco_knn", 100
SHORT = 60.0  # seconds a match of ours; the published limits are those of the tables


@dataclass(frozen=True)
class Study:
    """What a published table is measured on.

    Attributes:
        dataset: as ``load_labelled`` calls it.
        language: of all rows; None where the columns are language models.
        vision: of all rows; None where the rows are vision models.
        limit: seconds a match, as published.
        hours: whether all of it takes so long that it must be asked for.
        differs: why its rows cannot be held against the paper.
    """

    dataset: str
    language: str | None = MAIN
    vision: str | None = None
    limit: float = SHORT
    hours: bool = False
    differs: str = ""


STUDIES = {
    "small_scale_cifar10": Study("cifar10"),
    "small_scale_cinic10": Study("cinic10", "All-Roberta-large-v1"),
    "small_scale_solvers": Study(
        "cifar10",
        vision="DINOv2 ViT-G/14",
        differs="which data set and networks the published table is of is not confirmed; here DINOv2 ViT-G/14 and "
        "all-mpnet-base-v2 on CIFAR-10",
    ),
    "unsupervised_classification": Study("cifar10", None),
    "larger_scale_cifar100": Study("cifar100", limit=3600.0, hours=True),
    "larger_scale_imagenet100": Study("imagenet100", limit=3600.0, hours=True),
    "solver_comparison_larger": Study("cifar100", vision="CLIP ViT-L/14@336", limit=5400.0, hours=True),
    SHUFFLED: Study("coco_captions"),
}
OTHERS = {"MPOpt+GRASP": "another program, run by its authors", "Random": "no network"}


def rows(options: Options) -> list[Row]:
    """A row for every published number whose data set is in the folder, and ours beside those that take hours."""
    found = list[Row]()
    for claim, study in _claims():
        data = _data(study.dataset, options.data)
        if data is None or (claim.row in OTHERS and claim.table != "small_scale_solvers"):
            continue
        vision, language = _models(claim, study)
        why = _missing(study.dataset, vision, language, options)
        contender, limit = _contender(claim), study.limit
        about = {"vision": vision, "language": language, "limit": limit, "seed": options.seed}
        shown = {"distortion": GW.title if claim.table != SHUFFLED else "10-NN", **about}
        title = claim.data if data.tier == "paper" else f"{data.title}, {len(data)} images"
        differs = study.differs or data.note
        row = Row(
            claim.table,
            claim.row,
            claim.column,
            claim.metric,
            CONTENDERS[contender].solver if contender else "none",
            shown,
            tier=data.tier,
            data=title,
            data_hash=data.sha256,
            claim=claim,
            missing=why or (WAITS if study.hours and not options.full else ""),
            differs=differs,
        )
        found.append(row)
        if study.hours and claim.row != "FHG":
            ours = {**shown, "limit": SHORT, "solver": EXACT}
            name = f"{claim.row}, {EXACT}"
            solver = CONTENDERS[EXACT].solver
            found.append(replace(row, row=name, solver=solver, settings=ours, claim=None, missing=why))
    return found


def prepare(options: Options, advance: Advance) -> None:
    """Embed the images and texts of every data set and network that are at hand."""
    wanted = dict.fromkeys(
        (STUDIES[r.table].dataset, r.settings["vision"], r.settings["language"]) for r in rows(options) if not r.missing
    )
    for dataset, vision, language in wanted:
        assert options.data is not None
        embedded(dataset, vision, language, options.data, options.cache, options.device, advance)


def measure(row: Row, options: Options, advance: Callable[[float], None]) -> Measured:
    """One published number, measured."""
    seen = vectors(row, options)
    if row.table == SHUFFLED:
        return _shuffled(row, seen, advance)
    if row.table == "unsupervised_classification":
        return _classification(row, seen, options, advance)
    name = EXACT if "solver" in row.settings or row.table.startswith("small_scale_c") else row.row
    contender = CONTENDERS[name if name in CONTENDERS else "FHG"]
    found, optima = [], []
    instances = list(_instances(row, seen))
    for k, (instance, seed) in enumerate(instances):
        found.append(answered(instance, contender, GW, float(row.settings["limit"]), seed, options))
        if row.metric == "global_optimum":
            best = answered(instance, CONTENDERS[EXACT], GW, float(row.settings["limit"]), seed, options)
            optima.append(best.cost)
        advance((k + 1) / len(instances))
    return summarised(row.metric, found, optima)


def _claims() -> list[tuple[Claim, Study]]:
    claims = load_paper("blind_match").claims
    return [(claim, STUDIES[claim.table]) for claim in claims if claim.table in STUDIES]


def _models(claim: Claim, study: Study) -> tuple[str, str]:
    vision = study.vision or claim.row
    return f"{vision}, seed 0" if vision.startswith("Random") else vision, study.language or claim.column


def _contender(claim: Claim) -> str:
    if claim.table == SHUFFLED:
        return ""
    return claim.row if claim.row in CONTENDERS else EXACT if claim.table.startswith("small_scale_c") else "FHG"


@cache
def _data(dataset: str, folder: Path | None) -> LabelledImages | None:
    """The data set, None where it is not in the folder."""
    if folder is None:
        return None
    try:
        return load_labelled(dataset, folder)
    except UserError:
        return None


@cache
def _missing_of(dataset: str, vision: str, language: str, folder: Path, results: Path) -> str:
    return missing(dataset, vision, language, folder, Options(results).cache)


def _missing(dataset: str, vision: str, language: str, options: Options) -> str:
    assert options.data is not None
    return _missing_of(dataset, vision, language, options.data, options.results)


def vectors(row: Row, options: Options) -> Embedded:
    """The vectors that the row is measured on."""
    assert options.data is not None
    of = STUDIES[row.table].dataset, row.settings["vision"], row.settings["language"]
    return _vectors(*of, options.data, options.results, options.device)


@cache
def _vectors(dataset: str, vision: str, language: str, folder: Path, results: Path, device: str) -> Embedded:
    return embedded(dataset, vision, language, folder, Options(results).cache, device, lambda what, fraction: None)


def _instances(row: Row, seen: Embedded) -> Iterator[tuple[Instance, int]]:
    """What the row's number is made of, with the seed of each: all classes, or their best subsets."""
    of = partial(vision_prototypes, seen.vision, seen.labels, len(seen.classes))
    y = language_prototypes(seen.language)
    if not row.column.startswith("N = "):
        for seed in local_seeds(SEEDS):
            yield Instance(of(seed), y), seed
        return
    subsets, seeds = (1, 1) if row.table == "solver_comparison_larger" else (SUBSETS, SUBSET_SEEDS)
    size = min(int(row.column.removeprefix("N = ")), len(seen.classes))
    chosen = best_subsets(Instance(of(), y), size, subsets, GW)
    for seed in local_seeds(seeds):
        whole = Instance(of(seed), y)
        for members in chosen:
            yield whole.subset(members), seed


def _classification(row: Row, seen: Embedded, options: Options, advance: Callable[[float], None]) -> list[float]:
    """Percent of the images of each seed's half."""
    y, shares = language_prototypes(seen.language), []
    for k, seed in enumerate(local_seeds(SEEDS)):
        clusters = cluster_centres(seen.vision, seen.labels, len(seen.classes), seed)
        limit = float(row.settings["limit"])
        match = answered(Instance(clusters.centres, y), CONTENDERS["FHG"], GW, limit, seed, options)
        shares.append(classified(clusters, torch.tensor(match.permutation)).accuracy)
        advance((k + 1) / SEEDS)
    return shares


def _shuffled(row: Row, seen: Embedded, advance: Callable[[float], None]) -> list[float]:
    """Mutual 10-NN at the level of the column, permutation by permutation, all images each its own class."""
    knn, level = Distortion("knn", k=10, compatibility=RELEASED), float(row.column.removeprefix("level "))
    V, L = _shuffled_kernels(seen, knn)
    similarities: list[float] = (-shuffled_alignment(V, L, knn, [level], local_seeds(SHUFFLES), advance)[0]).tolist()
    return similarities


@cache
def _shuffled_kernels(seen: Embedded, knn: Distortion) -> tuple[Tensor, Tensor]:
    x = vision_prototypes(seen.vision, seen.labels, len(seen.classes))
    return knn.kernel(x), knn.kernel(language_prototypes(seen.language))
