"""SCOT's tables: keypoints transferred between images, with every stage of the matching on and off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from reproductions.claims import Claim, load_paper
from reproductions.experiment import Advance, Options, Row
from reproductions.metrics import percentage_of_correct_keypoints
from reproductions.scot.backbones import Backbone
from reproductions.scot.descriptors import daisy_cells
from reproductions.scot.figures import draw_comparison
from reproductions.scot.hyperpixels import Masses, hyperpixels
from reproductions.scot.method import Hyperpixels, Matching
from reproductions.scot.sources import Pair, Source, View, embedded, on_disk
from reproductions.storage import content_hash, source_hash

ALPHAS = (0.05, 0.10, 0.15)
IMAGES = 24  # whose hyperpixels are kept: pairs come by category

STAGES: dict[str, tuple[Masses, Matching | None]] = {
    "no matching": ("uniform", None),
    "NN, nearest cell": ("uniform", Matching(transport=False, exponent=1, hough=False, nearest=True)),
    "OT, nearest cell": ("uniform", Matching(hough=False, nearest=True)),
    "OT, 50 iterations, nearest cell": ("uniform", Matching(hough=False, iterations=50, nearest=True)),
    "NN": ("uniform", Matching(transport=False, exponent=1, hough=False)),
    "OT": ("uniform", Matching(hough=False)),
    "OT, 50 iterations": ("uniform", Matching(hough=False, iterations=50)),
    "OT + CAM": ("activation", Matching(hough=False)),
    "OT + masks": ("mask", Matching(hough=False)),
    "NN + RHM": ("uniform", Matching(transport=False, exponent=3)),
    "OT + RHM": ("uniform", Matching()),
    "OT + CAM + RHM": ("activation", Matching()),
    "OT + masks + RHM": ("mask", Matching()),
}
EMBEDDED = ("no matching", "NN, nearest cell", "OT, nearest cell", "NN", "OT", "NN + RHM", "OT + RHM")
BACKBONES = {
    # The last block at stride 8 and all those after the first three at stride 16.
    "MobileNetV2": (
        Backbone(
            "mobilenetv2_100",
            (5, 9, 10, 11, 12, 13, 14, 15, 16),
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            options=(("pad_type", "same"),),
        ),
        "mobilenetv2_100_same*.safetensors",
    ),
    "ResNet-101": (Backbone("resnet101", (2, 22, 24, 25, 27, 28, 29)), "resnet101-*.pth"),
    "FCN-101": (Backbone("fcn_resnet101", (2, 4, 5, 18, 19, 20, 24, 32)), "fcn_resnet101_coco-*.pth"),
}
ON_SPAIR = {"ResNet-101": (0, 19, 27, 28, 29, 30)}  # with the votes as they are: exp2 = 1
# The published row that a network's whole method is.
PUBLISHED = {("ResNet-101", "OT + CAM + RHM"): "SCOT"}


def rows(options: Options) -> list[Row]:
    """Every stage on the embedded pairs; with ``--data``, every network whose weights are there on every data set."""
    found = [_row(source, stage, "DAISY", None, a) for source in embedded() for stage in EMBEDDED for a in ALPHAS]
    for source in _on_disk(options):
        for network, path in _weights(options).items():
            for stage, (masses, _) in STAGES.items():
                if (masses == "mask" and not source.masks) or (masses == "activation" and network == "FCN-101"):
                    continue
                found += [_row(source, stage, network, path, a) for a in ALPHAS]
    return found


def prepare(options: Options, advance: Advance) -> None:
    """Nothing: the networks are trained by others."""


def pictures(options: Options) -> dict[str, bytes]:
    """The matches of some pairs of each data set, drawn for three stages, as PNG."""
    found = {}
    for source in (*embedded(), *_on_disk(options)):
        network = "DAISY" if source.tier == "embedded" else next(iter(_weights(options)), None)
        if network is None:
            continue
        for number in sorted({0, len(source.pairs) // 2}):
            pair = source.pairs[number]
            moved = {stage: _moved(network, stage, source, pair, options).numpy() for stage in ("NN", "OT", "OT + RHM")}
            images = pair.source.pixels(), pair.target.pixels()
            found[f"{source.name}_matches_{number}"] = draw_comparison(
                *images, pair.source_keypoints, pair.target_keypoints, moved, ALPHAS[1] * pair.threshold
            )
    return found


def measure(row: Row, options: Options, advance: Callable[[float], None]) -> Sequence[float]:
    """PCK in percent of each pair; of each keypoint where there is one pair alone."""
    source = next(s for s in (*embedded(), *_on_disk(options)) if s.title == row.data)
    moved, alpha = _transferred(row, source, options, advance), row.settings["alpha"]
    target = [torch.from_numpy(p.target_keypoints) for p in source.pairs]
    if len(target) == 1:
        return [percentage_of_correct_keypoints(x[None], y[None], source.pairs[0].threshold, alpha).item()
                for x, y in zip(moved[0], target[0], strict=True)]  # fmt: skip
    return [
        percentage_of_correct_keypoints(x, y, p.threshold, alpha).item()
        for x, y, p in zip(moved, target, source.pairs, strict=True)
    ]


def _row(source: Source, stage: str, network: str, weights: Path | None, alpha: float) -> Row:
    masses, matching = STAGES[stage]
    settings: dict[str, Any] = {"network": network, "alpha": alpha, "masses": masses}
    if matching is not None:
        settings |= asdict(_of(matching, source))
    if weights is not None:
        settings |= {"layers": list(_backbone(network, source, weights).layers), "weights": weights.name}
    column = f"PCK@{alpha:.2f} ({source.convention})"
    claim = _claim(source, network, stage, column)
    return Row(
        table=source.name,
        row=claim.row if claim is not None else stage if source.tier == "embedded" else f"{network}: {stage}",
        column=column,
        metric="pck",
        solver="none" if matching is None or not matching.transport else matching.solver,
        settings=settings,
        tier=source.tier,
        data=source.title,
        data_hash=source.sha256,
        claim=claim,
    )


def _transferred(row: Row, source: Source, options: Options, advance: Callable[[float], None]) -> list[Tensor]:
    """The keypoints of every pair in its target image, ``(K, 2)`` each; every α reads the same."""
    identity = {**row.identity, "column": "", "settings": {**row.settings, "alpha": None}}
    key = content_hash(identity, source_hash(), torch.__version__)

    def made() -> dict[str, Tensor]:
        found = {}
        for k, pair in enumerate(source.pairs):
            found[str(k)] = _moved(row.settings["network"], _stage(row), source, pair, options)
            advance((k + 1) / len(source.pairs))
        return found

    options.cache.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(options.cache.folder / f"keypoints-{key[:16]}.lock"):  # rows of other α may be measured beside
        tensors = options.cache.tensors("keypoints", key, made)
    return [tensors[str(k)] for k in range(len(source.pairs))]


def _moved(network: str, stage: str, source: Source, pair: Pair, options: Options) -> Tensor:
    keypoints = torch.from_numpy(pair.source_keypoints)
    masses, matching = STAGES[stage]
    if matching is None:  # the same place, relative to the image
        source_size, target_size = (v.pixels().shape[1::-1] for v in (pair.source, pair.target))
        return keypoints * torch.tensor(target_size) / torch.tensor(source_size)
    backbone = None if network == "DAISY" else _backbone(network, source, _weights(options)[network])
    (s, of_source), (t, of_target) = (_cells(_Seen(v, backbone, masses)) for v in (pair.source, pair.target))
    moved = _of(matching, source).transferred(s, t, (keypoints * of_source).float())
    return moved.double() / of_target


def _stage(row: Row) -> str:
    if row.claim is not None:
        return next(stage for (_, stage), name in PUBLISHED.items() if name == row.row)
    return row.row.rpartition(": ")[2]


class _Seen:
    """A view as a network sees it; equal ones are computed once."""

    def __init__(self, view: View, backbone: Backbone | None, masses: Masses) -> None:
        self.view, self.backbone, self.masses = view, backbone, masses
        self.key = (view.key, backbone, masses)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Seen) and self.key == other.key


@lru_cache(maxsize=IMAGES)
def _cells(seen: _Seen) -> tuple[Hyperpixels, float]:
    if seen.backbone is None:
        return _descriptors(seen)
    image = seen.view.pixels()
    mask = seen.view.mask() if seen.masses == "mask" and seen.view.mask is not None else None
    return hyperpixels(seen.backbone, image, seen.masses, mask)


@lru_cache(maxsize=10 * IMAGES)  # these are small
def _descriptors(seen: _Seen) -> tuple[Hyperpixels, float]:
    return daisy_cells(seen.view.pixels())


def _of(matching: Matching, source: Source) -> Matching:
    """The matching with the votes of the data set: on SPair-71k exp2 is 1."""
    return matching if source.name != "spair" else Matching(**{**asdict(matching), "exponent": 1})


@lru_cache
def _backbone(network: str, source: Source, weights: Path) -> Backbone:
    chosen, _ = BACKBONES[network]
    layers = ON_SPAIR.get(network, chosen.layers) if source.name == "spair" else chosen.layers
    return Backbone(chosen.name, layers, weights, chosen.mean, chosen.std, chosen.options)


def _on_disk(options: Options) -> tuple[Source, ...]:
    return () if options.data is None else on_disk(options.data, options.cache.folder / "data")


@cache  # asked for by every pair
def _weights(options: Options) -> dict[str, Path]:
    """The files of weights in ``DIR/weights``, by network."""
    if options.data is None:
        return {}
    folder = options.data / "weights"
    found = {name: sorted(folder.glob(pattern)) for name, (_, pattern) in BACKBONES.items()}
    return {name: paths[0] for name, paths in found.items() if paths}


def _claim(source: Source, network: str, stage: str, column: str) -> Claim | None:
    published = PUBLISHED.get((network, stage))
    if published is None:
        return None
    try:
        return load_paper("scot").claim(source.name, published, column)
    except KeyError:
        return None
