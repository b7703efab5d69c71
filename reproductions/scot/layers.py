"""Which layers make the best hyperpixels: the beam search of HPF and SCOT, by the PCK of annotated pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reproductions import UserError
from reproductions.datasets.warped import ImagePair
from reproductions.metrics import percentage_of_correct_keypoints
from reproductions.scot.backbones import Backbone
from reproductions.scot.cells import Cells
from reproductions.scot.hyperpixels import stacked
from reproductions.scot.images import SIDE, normalised, resized
from reproductions.scot.method import Hyperpixels, Matching
from reproductions.storage import Cache, content_hash, source_hash

ALPHA = 0.1  # of the PCK that is maximised
Layers = tuple[int, ...]
Score = Callable[[Layers], float]


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes:
        layers: the best set of all tried; of equals the smallest, then the first in the order of numbers.
        history: every set tried and its score, in the order they were tried.
    """

    layers: Layers
    score: float
    history: tuple[tuple[Layers, float], ...]


def beam_search(
    score: Score,
    first: Sequence[int],
    layers: int,
    beam: int = 4,
    depth: int = 8,
    on_candidate: Callable[[Layers, float], None] | None = None,
) -> Searched:
    """The set of layers with the highest score that a beam search finds.

    It starts with single layers and keeps the best few; each kept set is then extended by every layer above its
    smallest, which gives the grid of cells, and of all extensions the best few are kept again. A set that two kept ones
    lead to is tried once; the official code gives up the rest of a kept set's extensions there, and this one does not.

    Args:
        score: of layers in ascending order, the higher the better.
        first: the single layers to start with, each fit to give the grid.
        layers: how many the network has: extensions come from 0 … layers − 1.
        beam: how many sets of each size are kept.
        depth: the largest number of layers in a set.
        on_candidate: told each set and its score.

    Raises:
        UserError: a beam, depth or first layer that leaves nothing to search.
    """
    if beam < 1 or depth < 1:
        raise UserError(f"a search keeps and combines at least one layer: beam {beam} and depth {depth} are too small")
    if not first or not all(0 <= k < layers for k in first):
        raise UserError(f"a search starts with some of the layers 0 … {layers - 1}, not with {list(first)}")
    tried: dict[Layers, float] = {}

    def best_of(candidates: Iterable[Layers]) -> list[Layers]:
        fresh = sorted(set(candidates))
        for candidate in fresh:
            tried[candidate] = score(candidate)
            if on_candidate is not None:
                on_candidate(candidate, tried[candidate])
        return sorted(fresh, key=lambda s: (-tried[s], s))[:beam]

    kept = best_of((k,) for k in first)
    for _ in range(depth - 1):
        kept = best_of(tuple(sorted({*s, k})) for s in kept for k in range(s[0] + 1, layers) if k not in s)
    best = min(tried, key=lambda s: (-tried[s], len(s), s))
    return Searched(best, tried[best], tuple(tried.items()))


@dataclass(frozen=True, eq=False)
class StoredScores:
    """A score that is computed once for each set of layers, and written down at once: a killed search goes on.

    Attributes:
        score: what is stored.
        cache: where.
        key: the hash of everything that the score depends on besides the layers.
    """

    score: Score
    cache: Cache
    key: str

    def __call__(self, layers: Layers) -> float:
        name = ",".join(map(str, layers))
        if name not in self._known:
            self._known[name] = self.score(layers)
            self.cache.write_json("layers", self.key, self._known)
        return self._known[name]

    @cached_property
    def _known(self) -> dict[str, float]:
        return self.cache.read_json("layers", self.key) or {}


@dataclass(frozen=True, eq=False)
class LayerScorer:
    """The score of layers: mean PCK at α = 0.1 in percent over pairs of images whose cells all weigh the same.

    Every distinct image goes through the network once, with the first score; the maps of all its layers stay in memory,
    67 MB of them for a ResNet-101 and a square image.

    Attributes:
        backbone: the network; its own choice of layers does not matter.
        pairs: images with keypoints; the threshold is τ in pixels of the target image.
        side: the longer side of the resized images.
    """

    backbone: Backbone
    pairs: Sequence[ImagePair]
    matching: Matching
    side: int = SIDE

    @cached_property
    def key(self) -> str:
        """Hash of what the scores depend on: network, images, keypoints, matching and code."""
        weights = [x.numpy() for x in self.backbone.network.state_dict().values()]
        arrays = (x for p in self.pairs for x in (p.source, p.target, p.source_keypoints, p.target_keypoints))
        settings = [self.backbone.name, self.backbone.mean, self.backbone.std, asdict(self.matching), self.side, ALPHA]
        thresholds = [p.threshold for p in self.pairs]
        code = source_hash(tuple(sorted(Path(__file__).parent.glob("*.py"))))
        return content_hash(settings, thresholds, code, torch.__version__, *weights, *arrays)

    def __call__(self, layers: Layers) -> float:
        return float(np.mean([self._pck(pair, layers) for pair in self.pairs]))

    def _pck(self, pair: ImagePair, layers: Layers) -> float:
        source, target = (self._hyperpixels(image, layers) for image in (pair.source, pair.target))
        ratios = [self._maps[content_hash(image)][2] for image in (pair.source, pair.target)]
        keypoints, truth = (
            torch.from_numpy(x).float() * ratio
            for x, ratio in zip((pair.source_keypoints, pair.target_keypoints), ratios, strict=True)
        )
        moved = self.matching.transferred(source, target, keypoints)
        return percentage_of_correct_keypoints(moved, truth, pair.threshold * ratios[1], ALPHA).item()

    def _hyperpixels(self, image: np.ndarray, layers: Layers) -> Hyperpixels:
        maps, size, _ = self._maps[content_hash(image)]
        joined = stacked([maps[k] for k in layers])
        cells = Cells.of_map(joined.shape[-2:], *self.backbone.network.geometry(layers[0]), size)
        return Hyperpixels(joined.flatten(1).mT.contiguous(), cells, cells.weights(None))

    @cached_property
    def _maps(self) -> dict[str, tuple[list[Tensor], tuple[int, int], float]]:
        """Of every image: the maps of all layers, its resized height and width, and the ratio of the sizes."""
        found: dict[str, tuple[list[Tensor], tuple[int, int], float]] = {}
        network = self.backbone.network
        for image in (image for pair in self.pairs for image in (pair.source, pair.target)):
            if (name := content_hash(image)) not in found:
                x, ratio = resized(normalised(image, self.backbone.mean, self.backbone.std), self.side)
                with torch.no_grad():
                    maps = network.tapped(x, range(network.depth))
                found[name] = maps, (x.shape[-2], x.shape[-1]), ratio
        return found
