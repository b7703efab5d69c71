"""What a row measures: a stage of the matching, on the cells of a network, with the settings of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from torchvision.models import ResNet50_Weights, ResNet101_Weights

from reproductions.scot.backbones import Backbone
from reproductions.scot.hyperpixels import Masses
from reproductions.scot.method import Hyperpixels, Matching
from reproductions.scot.views import View, cells_of

DAISY = "DAISY"  # in the place of a network

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
WHOLE_VOTES = ("spair", "tss")  # data sets on which the plan votes as it is: exp2 = 1


@dataclass(frozen=True)
class Network:
    """A network, the name of its file of weights, and its layers.

    Attributes:
        backbone: with the layers for every data set but SPair-71k; without any where there are none.
        pattern: of the names of its weights.
        on_spair: the layers there, where they are others.
    """

    backbone: Backbone
    pattern: str
    on_spair: tuple[int, ...] = ()

    def layers(self, data_set: str) -> tuple[int, ...]:
        return self.on_spair if self.on_spair and data_set == "spair" else self.backbone.layers


NETWORKS = {
    # A block at stride 8 and all those after the first three at stride 16.
    "MobileNetV2": Network(
        Backbone(
            "mobilenetv2_100",
            (4, 9, 10, 11, 12, 13, 14, 15, 16),
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            options=(("pad_type", "same"),),
        ),
        "mobilenetv2_100_same*.safetensors",
    ),
    "ResNet-50": Network(Backbone("resnet50", ()), "resnet50-*.pth", (0, 11, 12, 13)),
    "ResNet-101": Network(
        Backbone("resnet101", (2, 22, 24, 25, 27, 28, 29)), "resnet101-*.pth", (0, 19, 27, 28, 29, 30)
    ),
    "FCN-101": Network(Backbone("fcn_resnet101", (2, 4, 5, 18, 19, 20, 24, 32)), "fcn_resnet101_coco-*.pth"),
}
# Trained by a later recipe than those of the paper.
LATER = {Path(weights.IMAGENET1K_V2.url).name for weights in (ResNet50_Weights, ResNet101_Weights)}


@dataclass(frozen=True)
class Setup:
    """A stage, a network and a data set.

    Attributes:
        network: of ``NETWORKS``, or ``DAISY``.
        stage: of ``STAGES``.
        data_set: "pf_willow", …
        weights: of the network; None for descriptors.
    """

    network: str
    stage: str
    data_set: str
    weights: Path | None = None

    @property
    def name(self) -> str:
        """As rows are called."""
        return self.stage if self.weights is None else f"{self.network}: {self.stage}"

    @property
    def masses(self) -> Masses:
        return STAGES[self.stage][0]

    @property
    def matching(self) -> Matching | None:
        """With the votes of the data set; None where nothing is matched."""
        matching = STAGES[self.stage][1]
        if matching is None or not matching.transport or self.data_set not in WHOLE_VOTES:
            return matching
        return replace(matching, exponent=1)

    @cached_property
    def backbone(self) -> Backbone | None:
        return None if self.weights is None else _backbone(self.network, self.data_set, self.weights)

    @property
    def solver(self) -> str:
        """As recorded in the tables."""
        return self.matching.solver if self.matching is not None and self.matching.transport else "none"

    @property
    def settings(self) -> dict[str, Any]:
        """As recorded in the tables: everything that the matches depend on, besides the data."""
        found: dict[str, Any] = {"network": self.network, "stage": self.stage, "masses": self.masses}
        if self.matching is not None:
            found |= asdict(self.matching)
        if self.weights is not None and self.backbone is not None:
            found |= {"layers": list(self.backbone.layers), "weights": self.weights.name}
        return found

    def cells(self, view: View) -> tuple[Hyperpixels, float]:
        """The hyperpixels of a view, and the ratio by which it was resized."""
        return cells_of(view, self.backbone, self.masses)


def setups(data: Path, data_set: str, stages: Iterable[str] = STAGES, masks: bool = False) -> Iterator[Setup]:
    """The stages on every network with layers for the data set whose weights are in ``DIR/weights``.

    Stages with stored masks only where there are such, and with activation maps only for networks that classify.
    """
    for network, weights in weights_in(data).items():
        if NETWORKS[network].layers(data_set):
            for stage in stages:
                masses, _ = STAGES[stage]
                if (masses != "mask" or masks) and (masses != "activation" or network != "FCN-101"):
                    yield Setup(network, stage, data_set, weights)


@cache
def weights_in(data: Path) -> dict[str, Path]:
    """The files of weights in ``DIR/weights``, by network."""
    found = {name: sorted((data / "weights").glob(network.pattern)) for name, network in NETWORKS.items()}
    return {name: paths[0] for name, paths in found.items() if paths}


@cache
def _backbone(network: str, data_set: str, weights: Path) -> Backbone:
    """The same object each time: it holds the loaded network."""
    chosen = NETWORKS[network]
    return replace(chosen.backbone, layers=chosen.layers(data_set), weights=weights)
