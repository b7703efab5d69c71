"""Rows of transferred keypoints: by radius, by class, and again beside the numbers of the released code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from reproductions.claims import load_paper
from reproductions.experiment import Options, Row
from reproductions.metrics import percentage_of_correct_keypoints
from reproductions.scot.setups import DAISY, LATER, Setup, setups, weights_in
from reproductions.scot.sources import Pair, Source, all_sources
from reproductions.storage import content_hash, source_hash

ALPHAS = (0.05, 0.10, 0.15)
EMBEDDED = ("no matching", "NN, nearest cell", "OT, nearest cell", "NN", "OT", "NN + RHM", "OT + RHM")
BY_CLASS = ("NN, nearest cell", "OT", "OT + CAM + RHM", "OT + masks + RHM")  # at α = 0.1
# The published rows that a network's stage is: the paper's, then the released code's. FCN-101 is in none: the code took
# one of another library, trained on other images.
PUBLISHED = {
    ("ResNet-101", "OT + CAM + RHM"): ("SCOT", "SCOT (ResNet-101)", "SCOT (ResNet-101), activation masses"),
    ("ResNet-101", "OT + RHM"): ("SCOT (ResNet-101), uniform masses",),
    ("ResNet-50", "OT + CAM + RHM"): ("SCOT (ResNet-50), activation masses",),
    ("ResNet-50", "OT + RHM"): ("SCOT (ResNet-50), uniform masses",),
}


def rows(options: Options) -> Iterator[Row]:
    """Every stage on the embedded pairs; with ``--data``, every network whose weights are there on every data set."""
    for source in sources(options):
        if source.tier == "embedded":
            for stage in EMBEDDED:
                for alpha in ALPHAS:
                    yield from _rows(source, Setup(DAISY, stage, source.name), alpha)
        elif options.data is not None:
            for setup in setups(options.data, source.name, masks=source.masks):
                for alpha in ALPHAS:
                    yield from _rows(source, setup, alpha)
                for category in source.categories if setup.stage in BY_CLASS else ():
                    yield from _rows(source, setup, ALPHAS[1], category)


def measure(row: Row, options: Options, advance: Callable[[float], None]) -> Sequence[float]:
    """PCK in percent of each pair, or of each of a class; of each keypoint where that is one pair alone."""
    source = next(s for s in sources(options) if s.title == row.data)
    moved, alpha, category = (
        _transferred(row, source, options, advance),
        row.settings["alpha"],
        row.settings.get("class"),
    )
    found = [
        (x, torch.from_numpy(p.target_keypoints), p.threshold)
        for x, p in zip(moved, source.pairs, strict=True)
        if category in (None, p.category)
    ]
    if len(found) == 1:
        predicted, truth, threshold = found[0]
        found = [(x[None], y[None], threshold) for x, y in zip(predicted, truth, strict=True)]
    return [percentage_of_correct_keypoints(x, y, threshold, alpha).item() for x, y, threshold in found]


def sources(options: Options) -> tuple[Source, ...]:
    """The embedded data sets, and those that the user's folder holds."""
    return all_sources(options.data, options.cache.folder / "data")


def moved_keypoints(setup: Setup, pair: Pair) -> Tensor:
    """A pair's keypoints in its target image, float64 ``(K, 2)``."""
    keypoints = torch.from_numpy(pair.source_keypoints)
    if setup.matching is None:  # the same place, relative to the image
        source_size, target_size = (v.pixels().shape[1::-1] for v in (pair.source, pair.target))
        return keypoints * torch.tensor(target_size) / torch.tensor(source_size)
    (s, of_source), (t, of_target) = (setup.cells(v) for v in (pair.source, pair.target))
    return setup.matching.transferred(s, t, (keypoints * of_source).float()).double() / of_target


def _rows(source: Source, setup: Setup, alpha: float, category: str | None = None) -> Iterator[Row]:
    """The row, and the same one again in the released code's table where that has it."""
    column = f"PCK@{alpha:.2f} ({source.convention})" + ("" if category is None else f", {category}")
    table = source.name if category is None else f"{source.name}_classes"
    names = PUBLISHED.get((setup.network, setup.stage), ())
    claims = {c.table: c for c in load_paper("scot").claims if c.row in names and c.column == column}
    if setup.weights is not None and setup.weights.name in LATER:
        claims = {}
    for place in (table, f"code_{table}"):
        claim = claims.get(place)
        if place == table or claim is not None:
            yield Row(
                table=place,
                row=setup.name if claim is None else claim.row,
                column=column,
                metric="pck",
                solver=setup.solver,
                settings={"alpha": alpha, **({"class": category} if category else {}), **setup.settings},
                tier=source.tier,
                data=source.title,
                data_hash=source.sha256,
                claim=claim,
            )


def _transferred(row: Row, source: Source, options: Options, advance: Callable[[float], None]) -> list[Tensor]:
    """The keypoints of every pair in its target image, ``(K, 2)`` each, for every radius, class and table."""
    network, stage = row.settings["network"], row.settings["stage"]
    weights = None if options.data is None else weights_in(options.data).get(network)
    setup = Setup(network, stage, source.name, weights)
    key = content_hash(setup.settings, source.name, source.sha256, source_hash(), torch.__version__)

    def made() -> dict[str, Tensor]:
        found = {}
        for k, pair in enumerate(source.pairs):
            found[str(k)] = moved_keypoints(setup, pair)
            advance((k + 1) / len(source.pairs))
        return found

    tensors = options.cache.tensors("keypoints", key, made)
    return [tensors[str(k)] for k in range(len(source.pairs))]
