"""Two figures of the paper, where its data sets and networks are at hand: size of the network, and Lipschitz ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from torch import Tensor

from reproductions.blind_match import official
from reproductions.blind_match.method import RELEASED, Distortion
from reproductions.blind_match.sampling import language_prototypes, vision_prototypes
from reproductions.blind_match.shuffling import distance_ratios
from reproductions.experiment import Options, Row
from reproductions.features.vision_models import load_vision_model
from reproductions.features.vision_recipes import PIXELS, vision_recipe
from reproductions.pictures import png

SCALED = ("small_scale_cifar10", "small_scale_cinic10")
FEWEST = 3  # networks through which a line is drawn
KNN = Distortion("knn", k=4, compatibility=RELEASED)
IMAGES = 1000  # whose pairs are counted: half a million
BINS = [k / 25 for k in range(51)]


@dataclass(frozen=True)
class Network:
    """A point of the figure of sizes.

    Attributes:
        parameters: of the image network.
        alignment: mutual 4-NN of all images, kernels not standardised.
        accuracy: of the matching, in percent.
    """

    name: str
    family: str
    parameters: int
    alignment: float
    accuracy: float


def pictures(options: Options) -> dict[str, bytes]:
    """What can be drawn, by name; nothing where the networks' vectors are not at hand."""
    rows = [r for r in official.rows(options) if not r.missing]
    found = {}
    for table in SCALED:
        networks = [_network(r, options) for r in rows if r.table == table and r.column == "accuracy"]
        if len(networks) >= FEWEST:
            found[f"{table}_size"] = draw_sizes(networks)
    seen = {r.row: official.vectors(r, options).vision for r in rows if r.table == official.SHUFFLED}
    pixels = seen.pop(PIXELS.name, None)
    if pixels is not None and seen:
        found["shuffling_coco_ratios"] = draw_ratios(seen, pixels)
    return found


def _network(row: Row, options: Options) -> Network:
    name, seen = row.settings["vision"], official.vectors(row, options)
    x = vision_prototypes(seen.vision, seen.labels, len(seen.classes))
    V, L = KNN.kernel(x), KNN.kernel(language_prototypes(seen.language))
    found = official.measure(row, options, lambda fraction: None)
    accuracy = float(np.mean(found)) if isinstance(found, Sequence) else found.mean
    size = load_vision_model(name).parameters
    return Network(name, vision_recipe(name).family, size, -float(KNN.alignment(V, L)), accuracy)


def draw_sizes(networks: Sequence[Network]) -> bytes:
    """Alignment and accuracy against the number of parameters, with the line fitted to its logarithm, as PNG (Fig. 11).

    Networks without parameters have no place on the axis and are left out.
    """
    shown = sorted((n for n in networks if n.parameters), key=lambda n: n.family)
    x = np.log10([n.parameters for n in shown])
    with mpl.rc_context({**sns.axes_style("whitegrid"), **sns.plotting_context("notebook")}):
        fig = Figure(figsize=(11, 4.2), layout="constrained")
        panels = {"mutual 4-NN": "alignment", "matching accuracy (percent)": "accuracy"}
        for axes, (label, name) in zip(fig.subplots(1, 2), panels.items(), strict=True):
            y = [getattr(n, name) for n in shown]
            slope, start = np.polyfit(x, y, 1)
            ends = np.array([x.min(), x.max()])
            axes.plot(10**ends, start + slope * ends, color="grey", linestyle="--")
            for family, members in groupby(shown, key=lambda n: n.family):
                points = [(n.parameters, getattr(n, name)) for n in members]
                axes.plot(*zip(*points, strict=True), linestyle="", marker="o", label=family)
            axes.set(xscale="log", xlabel="parameters of the image network", ylabel=label)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return png(fig)


def draw_ratios(features: Mapping[str, Tensor], pixels: Tensor) -> bytes:
    """How often a network moves two images by which share of the distance of their pixels, as PNG (Fig. 9).

    Args:
        features: network → f of every image ``(n, d)``; the first ``IMAGES`` are looked at.
        pixels: of the images ``(n, D)``.
    """
    with mpl.rc_context({**sns.axes_style("whitegrid"), **sns.plotting_context("notebook")}):
        fig = Figure(figsize=(8, 4.2), layout="constrained")
        axes = fig.subplots()
        for name, f in features.items():
            ratios = distance_ratios(f[:IMAGES], pixels[:IMAGES])
            axes.hist(ratios.numpy(), BINS, density=True, histtype="step", linewidth=2, label=name)
        axes.set(xlim=(0, 2), xlabel="|f(x) − f(y)| / |x − y|", ylabel="density of the pairs")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return png(fig)
