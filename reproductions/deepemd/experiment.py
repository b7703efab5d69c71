"""DeepEMD's tables on the embedded tier: few-shot digits, every way of matching nodes on the same episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from reproductions.claims import Claim, load_paper
from reproductions.datasets import load_digits
from reproductions.deepemd.backbone import ResNet12
from reproductions.deepemd.episodes import Episode, episodes
from reproductions.deepemd.method import NodeMatching, nodes, pooled_logits
from reproductions.deepemd.pretrain import Pretraining, cached_feature_maps, pretrained_encoder
from reproductions.experiment import Advance, Options, Row
from reproductions.metrics import few_shot_accuracy

PRETRAINING = Pretraining(classes=(0, 1, 2, 3, 4))
NOVEL = (5, 6, 7, 8, 9)
WAY, QUERIES, EPISODES = 5, 15, 600
BATCH = 8  # episodes whose transport problems go to the solver in one call

SINKHORN = {"reg": 0.05, "tolerance": 1e-4}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "EMD, cross-reference weights": ("emd", {"weights": "cross_reference"}),
    "EMD, uniform weights": ("jonker_volgenant", {"weights": "uniform"}),
    "Sinkhorn, cross-reference weights": ("sinkhorn", {"weights": "cross_reference", **SINKHORN}),
    "pooled cosine": ("", {"metric": "cosine"}),
    "pooled Euclidean prototypes": ("", {"metric": "euclidean"}),
}
# The published row that is measured the same way, on the paper's data.
PUBLISHED = {
    "EMD, cross-reference weights": "DeepEMD (5x5)",
    "pooled cosine": "MatchNet",
    "pooled Euclidean prototypes": "ProtoNet",
}


def rows(options: Options) -> list[Row]:
    """Five ways to compare nodes × 1 and 5 shots, 600 episodes each."""
    digits = load_digits()
    return [
        Row(
            table="few_shot_digits",
            row=method,
            column=f"{WAY}-way {shot}-shot",
            metric="few_shot_accuracy",
            solver=solver or "none",
            settings={"shot": shot, "queries": QUERIES, **settings},
            tier=digits.tier,
            data=digits.name,
            data_hash=digits.sha256,
            claim=_claim(method, f"{WAY}-way {shot}-shot"),
        )
        for shot in (1, 5)
        for method, (solver, settings) in METHODS.items()
    ]


def prepare(options: Options, advance: Advance) -> None:
    """Train the encoder on the base classes, about a minute on two cores."""

    def on_epoch(epoch: int, epochs: int, loss: float) -> None:
        advance(f"training the encoder, epoch {epoch} of {epochs}, loss {loss:.3f}", epoch / epochs)

    _encoder(options, on_epoch)
    _novel_nodes(options)


def measure(row: Row, options: Options, advance: Callable[[float], None]) -> Sequence[float]:
    """Accuracy in percent of each episode."""
    features, labels = _novel_nodes(options)
    shot = row.settings["shot"]
    drawn = list(episodes(labels.cpu().numpy(), WAY, shot, QUERIES, EPISODES, seed=options.seed + shot))
    accuracies: list[float] = []
    for start in range(0, EPISODES, BATCH):
        part = drawn[start : start + BATCH]
        accuracies += few_shot_accuracy(_logits(row, features, part), part[0].labels.to(options.device)).tolist()
        advance(len(accuracies) / EPISODES)
    return accuracies


def _logits(row: Row, features: Tensor, part: list[Episode]) -> Tensor:
    """Logits ``(episodes, queries, way)``; a class's prototype is the mean of its support images' nodes."""
    prototype = features[torch.stack([e.support for e in part])].mean(2)
    query = features[torch.stack([e.query for e in part])]
    settings = {k: v for k, v in row.settings.items() if k not in ("shot", "queries")}
    if row.solver == "none":
        return pooled_logits(query, prototype, **settings)
    weights = settings.pop("weights")
    return NodeMatching(row.solver, weights, settings).logits(query, prototype)


def _encoder(options: Options, on_epoch: Callable[[int, int, float], None] = lambda *_: None) -> ResNet12:
    images, labels = load_digits().split(PRETRAINING.classes)
    return pretrained_encoder(images, labels, replace(PRETRAINING, seed=options.seed), options.cache, on_epoch)


@cache
def _novel_nodes(options: Options) -> tuple[Tensor, Tensor]:
    """Nodes ``(n, 25, 64)`` and labels of the novel classes' images; every row, in any process, reads the same."""
    images, labels = load_digits().split(NOVEL)
    maps = cached_feature_maps(_encoder(options), images, PRETRAINING, options.cache)
    return nodes(maps).contiguous().to(options.device), labels.to(options.device)


def _claim(method: str, column: str) -> Claim | None:
    published = PUBLISHED.get(method)
    return None if published is None else load_paper("deepemd").claim("mini_imagenet", published, column)
