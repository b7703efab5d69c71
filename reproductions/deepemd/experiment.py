"""DeepEMD's tables: few-shot accuracy, every way of matching nodes on the same features and episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from reproductions.claims import Claim, load_paper
from reproductions.deepemd import encoders, official, solver_table
from reproductions.deepemd.embedding import pyramid_nodes
from reproductions.deepemd.episodes import Episode
from reproductions.deepemd.evaluation import LOGITS
from reproductions.deepemd.figures import draw_accuracy_against_time, draw_flows
from reproductions.deepemd.method import NodeMatching, nodes, similarity
from reproductions.deepemd.structured_layer import StructuredLayer, random_orders
from reproductions.deepemd.studies import QUERIES, Study, Task, encoder, feature_maps, studies, study_of
from reproductions.experiment import Advance, Options, Row
from reproductions.metrics import few_shot_accuracy
from reproductions.storage import content_hash, source_hash

BATCH = 8  # episodes whose transport problems go to the solver in one call
DRAWN = 4  # queries of which the flows are drawn
FITTED = 16  # episodes of a fitted layer: each takes 100 passes over its support images

SINKHORN = {"reg": 0.05, "tolerance": 1e-4}
CROSS = {"weights": "cross_reference"}
PAPER = "EMD, cross-reference weights"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    PAPER: ("emd", CROSS),
    "EMD, pyramid (2, 1)": ("emd", {**CROSS, "pyramid": (2, 1)}),
    "EMD, structured layer, step 100": ("emd", {**CROSS, "layer_lr": 100.0}),
    "EMD, structured layer, step 0.1": ("emd", {**CROSS, "layer_lr": 0.1}),
    "EMD, uniform weights": ("jonker_volgenant", {"weights": "uniform"}),
    "Sinkhorn": ("sinkhorn", {**CROSS, **SINKHORN}),
    "nearest nodes": ("", {"metric": "nearest nodes"}),
    "prediction fusion": ("", {"metric": "prediction fusion"}),
    "pooled cosine": ("", {"metric": "cosine"}),
    "pooled Euclidean prototypes": ("", {"metric": "euclidean"}),
    # What the paper's metric gains in the same episodes.
    **{
        f"EMD less {other}": ("emd", {**CROSS, "less": other})
        for other in ("Sinkhorn", "nearest nodes", "pooled cosine")
    },
}
# The published row that is measured the same way, on the paper's data.
PUBLISHED = {
    PAPER: "DeepEMD (5x5)",
    "EMD, structured layer, step 100": "DeepEMD (5x5)",
    "pooled cosine": "MatchNet",
    "pooled Euclidean prototypes": "ProtoNet",
}

train = encoders.train


def rows(options: Options) -> list[Row]:
    """Every way to compare nodes on every task of every small data set, the solvers, and the paper's own data sets."""
    return (
        official.rows(options)
        + [
            Row(
                table=f"{study.table}_gains" if "less" in settings else study.table,
                row=method,
                column=task.column,
                metric="accuracy_gain" if "less" in settings else "few_shot_accuracy",
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
        + solver_table.rows(options)
    )


def prepare(options: Options, advance: Advance) -> None:
    """Train the encoders on the base classes: a minute for the digits, half an hour for Tiny-ImageNet, on two cores."""
    for study in studies(options.data):

        def on_epoch(epoch: int, epochs: int, loss: float, study: Study = study) -> None:
            advance(f"training on {study.name}, epoch {epoch} of {epochs}, loss {loss:.3f}", epoch / epochs)

        encoder(study, options, on_epoch)
        for task in study.tasks:
            feature_maps(study, task, options)


def measure(row: Row, options: Options, advance: Callable[[float], None]) -> Sequence[float]:
    """Accuracy in percent of each episode."""
    if row.tier == "paper":
        return official.measure(row, options, advance)
    if row.table == solver_table.TABLE:
        return solver_table.measure(row, options, advance)
    study = study_of(row.table, options)
    task = next(t for t in study.tasks if t.column == row.column)
    if (other := row.settings.get("less")) is None:
        return _accuracies(study, task, row.row, options, advance).tolist()
    ours, others = (_accuracies(study, task, method, options, advance) for method in (PAPER, other))
    return (ours - others).tolist()


def pictures(options: Options) -> dict[str, bytes]:
    """The flows of some queries of each small data set to their nearest class, and accuracy against time, as PNG."""
    drawn = {f"{study.table}_flows": _flows(study, options) for study in studies(options.data)}
    table = pd.read_csv(options.results / "deepemd" / f"{solver_table.TABLE}.csv")
    columns = table.drop_duplicates("metric").set_index("metric")["column"]
    picture = draw_accuracy_against_time(table, columns["few_shot_accuracy"], columns["episode_time"])
    return drawn | {"solvers_accuracy_time": picture}


def _flows(study: Study, options: Options) -> bytes:
    task = next(t for t in study.tasks if t.shot == 1 and not t.runs)
    images, maps = study.images(task), feature_maps(study, task, options)
    episode = study.episodes(task, options.seed)[0]
    features, query = nodes(maps), episode.query[:: len(episode.query) // DRAWN][:DRAWN]
    prototype = features[episode.support[:, 0]]
    S = similarity(features[query], prototype)
    solution = NodeMatching().solution(features[query], prototype, S)
    plan = solution.plan
    assert isinstance(plan, Tensor)
    grey = images.float().mean(1)
    grey = (grey - grey.amin((-2, -1), True)) / (grey.amax((-2, -1), True) - grey.amin((-2, -1), True)).clamp(min=1e-6)
    pairs = []
    for k, best in enumerate(solution.value.argmin(-1).tolist()):
        right = best == episode.labels[(episode.query == query[k]).nonzero()[0, 0]]
        title = f"query {k + 1} and the class it is taken for: {'right' if right else 'wrong'}"
        two = grey[query[k]].numpy(), grey[episode.support[best, 0]].numpy()
        pairs.append((title, *two, plan[k, best].numpy()))
    return draw_flows(pairs, side=maps.shape[-1])


def _accuracies(study: Study, task: Task, method: str, options: Options, advance: Callable[[float], None]) -> Tensor:
    """Accuracy in percent of each episode, measured once for the rows that want it."""

    def made() -> dict[str, Tensor]:
        solver, settings = METHODS[method]
        maps = feature_maps(study, task, options).to(options.device)
        features = pyramid_nodes(maps, settings.get("pyramid", ()))
        drawn = study.episodes(task, options.seed)[: _count(task, settings)]
        found: list[Tensor] = []
        for start in range(0, len(drawn), BATCH):
            part = drawn[start : start + BATCH]
            labels = torch.stack([e.labels for e in part]).to(options.device)
            found.append(few_shot_accuracy(_logits(solver, settings, features, part, options), labels))
            advance((start + len(part)) / len(drawn))
        return {"": torch.cat(found)}

    versions = source_hash(), torch.__version__, options.seed, options.device
    key = content_hash(study.sha256, task.column, method, METHODS[method], *versions)
    return options.cache.tensors("episodes", key, made)[""]


def _count(task: Task, settings: dict[str, Any]) -> int:
    return min(task.count, FITTED) if "layer_lr" in settings else task.count


def _logits(solver: str, settings: dict[str, Any], features: Tensor, part: list[Episode], options: Options) -> Tensor:
    """Logits ``(episodes, queries, way)``; a class's prototype is the mean of its support images' nodes, or fitted."""
    index = torch.stack([e.support for e in part])
    query = features[torch.stack([e.query for e in part])]
    prototype = features[index].mean(2)
    settings = {k: v for k, v in settings.items() if k != "pyramid"}
    metric = settings.pop("metric", None)
    if metric is not None:
        return LOGITS[metric](query, prototype)
    if (lr := settings.pop("layer_lr", None)) is not None:
        prototype = _fitted(StructuredLayer(lr=lr), features, index, options)
    weights = settings.pop("weights")
    return NodeMatching(solver, weights, settings).logits(query, prototype)


def _fitted(layer: StructuredLayer, features: Tensor, support: Tensor, options: Options) -> Tensor:
    """The structured layer of every episode, its orders drawn from a generator of the episode's own."""
    episodes, way, shot = support.shape
    labels = torch.arange(way, device=features.device).repeat_interleave(shot)
    orders = [
        random_orders(layer.passes, way * shot, torch.Generator().manual_seed(options.seed + int(index[0, 0])))
        for index in support
    ]
    return layer.fitted(features[support.reshape(episodes, -1)], labels, [o.to(features.device) for o in orders])


def _claim(method: str, task: Task) -> Claim | None:
    published = PUBLISHED.get(method)
    if published is None or task.runs or (method == PAPER and task.shot > 1):
        return None
    claims = {c.key: c for c in load_paper("deepemd").claims}
    return claims.get(("mini_imagenet", published, task.column))
