"""DeepEMD's tables: few-shot accuracy, every way of matching nodes on the same features and episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from reproductions.claims import Claim, load_paper
from reproductions.deepemd import encoders, official
from reproductions.deepemd.backbone import ResNet12
from reproductions.deepemd.embedding import pyramid_nodes
from reproductions.deepemd.episodes import Episode
from reproductions.deepemd.method import NodeMatching, fused_logits, neighbour_logits, pooled_logits
from reproductions.deepemd.pretrain import cached_feature_maps, pretrained_encoder
from reproductions.deepemd.structured_layer import StructuredLayer, random_orders
from reproductions.deepemd.studies import QUERIES, Study, Task, studies, study_of
from reproductions.experiment import Advance, Options, Row
from reproductions.metrics import few_shot_accuracy

BATCH = 8  # episodes whose transport problems go to the solver in one call
FITTED = 24  # episodes of a fitted layer: each takes 100 passes over its support images

SINKHORN = {"reg": 0.05, "tolerance": 1e-4}
CROSS = {"weights": "cross_reference"}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "EMD, cross-reference weights": ("emd", CROSS),
    "EMD, pyramid (2, 1)": ("emd", {**CROSS, "pyramid": (2, 1)}),
    "EMD, structured layer, step 100": ("emd", {**CROSS, "layer_lr": 100.0}),
    "EMD, structured layer, step 0.1": ("emd", {**CROSS, "layer_lr": 0.1}),
    "EMD, uniform weights": ("jonker_volgenant", {"weights": "uniform"}),
    "Sinkhorn, cross-reference weights": ("sinkhorn", {**CROSS, **SINKHORN}),
    "nearest nodes": ("", {"metric": "nearest nodes"}),
    "prediction fusion": ("", {"metric": "prediction fusion"}),
    "pooled cosine": ("", {"metric": "cosine"}),
    "pooled Euclidean prototypes": ("", {"metric": "euclidean"}),
}
# The published row that is measured the same way, on the paper's data.
PUBLISHED = {
    "EMD, cross-reference weights": "DeepEMD (5x5)",
    "EMD, structured layer, step 100": "DeepEMD (5x5)",
    "pooled cosine": "MatchNet",
    "pooled Euclidean prototypes": "ProtoNet",
}


train = encoders.train


def rows(options: Options) -> list[Row]:
    """Every way to compare nodes on every task of every small data set, then the paper's own where they are at hand."""
    return official.rows(options) + [
        Row(
            table=study.table,
            row=method,
            column=task.column,
            metric="few_shot_accuracy",
            solver=solver or "none",
            settings={"shot": task.shot, "queries": QUERIES, "episodes": _count(task, settings), **settings},
            tier=study.tier,
            data=study.name,
            data_hash=study.sha256,
            claim=_claim(method, task),
        )
        for study in studies(options.data)
        for task in study.tasks
        for method, (solver, settings) in METHODS.items()
        if task.shot > 1 or "layer_lr" not in settings
    ]


def prepare(options: Options, advance: Advance) -> None:
    """Train the encoders on the base classes: a minute for the digits, some twenty for Tiny-ImageNet, on two cores."""
    for study in studies(options.data):

        def on_epoch(epoch: int, epochs: int, loss: float, study: Study = study) -> None:
            advance(f"training on {study.name}, epoch {epoch} of {epochs}, loss {loss:.3f}", epoch / epochs)

        _encoder(study, options, on_epoch)
        for task in study.tasks:
            _maps(study.table, task, options)


def measure(row: Row, options: Options, advance: Callable[[float], None]) -> Sequence[float]:
    """Accuracy in percent of each episode."""
    if row.tier == "paper":
        return official.measure(row, options, advance)
    study = study_of(row.table, options)
    task = next(t for t in study.tasks if t.column == row.column)
    maps = _maps(study.table, task, options).to(options.device)
    features = pyramid_nodes(maps, row.settings.get("pyramid", ()))
    drawn = study.episodes(task, options.seed)[: row.settings["episodes"]]
    accuracies: list[float] = []
    for part in _parts(drawn):
        labels = torch.stack([e.labels for e in part]).to(options.device)
        accuracies += few_shot_accuracy(_logits(row, features, part, options), labels).tolist()
        advance(len(accuracies) / len(drawn))
    return accuracies


def _parts(drawn: list[Episode]) -> Iterator[list[Episode]]:
    for start in range(0, len(drawn), BATCH):
        yield drawn[start : start + BATCH]


def _count(task: Task, settings: dict[str, Any]) -> int:
    return min(task.count, FITTED) if "layer_lr" in settings else task.count


def _logits(row: Row, features: Tensor, part: list[Episode], options: Options) -> Tensor:
    """Logits ``(episodes, queries, way)``; a class's prototype is the mean of its support images' nodes, or fitted."""
    index = torch.stack([e.support for e in part])
    query = features[torch.stack([e.query for e in part])]
    prototype = features[index].mean(2)
    settings = {k: v for k, v in row.settings.items() if k not in ("shot", "queries", "episodes", "pyramid")}
    metric = settings.pop("metric", None)
    if metric == "nearest nodes":
        return neighbour_logits(query, prototype)
    if metric == "prediction fusion":
        return fused_logits(query, prototype)
    if metric is not None:
        return pooled_logits(query, prototype, metric)
    if (lr := settings.pop("layer_lr", None)) is not None:
        prototype = _fitted(StructuredLayer(lr=lr), features, index, options)
    weights = settings.pop("weights")
    return NodeMatching(row.solver, weights, settings).logits(query, prototype)


def _fitted(layer: StructuredLayer, features: Tensor, support: Tensor, options: Options) -> Tensor:
    """The structured layer of every episode, its orders drawn from a generator of the episode's own."""
    episodes, way, shot = support.shape
    labels = torch.arange(way, device=features.device).repeat_interleave(shot)
    orders = [
        random_orders(layer.passes, way * shot, torch.Generator().manual_seed(options.seed + int(index[0, 0])))
        for index in support
    ]
    return layer.fitted(features[support.reshape(episodes, -1)], labels, [o.to(features.device) for o in orders])


def _encoder(study: Study, options: Options, on_epoch: Callable[[int, int, float], None] = lambda *_: None) -> ResNet12:
    return pretrained_encoder(*study.base, replace(study.pretraining, seed=options.seed), options.cache, on_epoch)


@cache
def _maps(table: str, task: Task, options: Options) -> Tensor:
    """Feature maps ``(n, C, H, W)`` of the images of a task; every row, in any process, reads the same."""
    study = study_of(table, options)
    return cached_feature_maps(_encoder(study, options), study.images(task), study.pretraining, options.cache)


def _claim(method: str, task: Task) -> Claim | None:
    published = PUBLISHED.get(method)
    if published is None or task.runs or ("layer" not in method and method.startswith("EMD") and task.shot > 1):
        return None
    return load_paper("deepemd").claim("mini_imagenet", published, task.column)
