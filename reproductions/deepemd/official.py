"""DeepEMD on the paper's own data sets: rows for what a folder holds, and their measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reproductions import UserError
from reproductions.claims import Claim, load_paper
from reproductions.datasets.few_shot import BENCHMARKS, FEW_SHOT
from reproductions.datasets.image_files import ImageFiles
from reproductions.deepemd.backbone import ResNet12
from reproductions.deepemd.checkpoints import load_encoder
from reproductions.deepemd.embedding import Embedding
from reproductions.deepemd.encoders import present, trained_encoder
from reproductions.deepemd.evaluation import Nodes, accuracy
from reproductions.deepemd.loading import draw_episodes
from reproductions.deepemd.patches import Fcn, Grid, Sampling
from reproductions.deepemd.structured_layer import StructuredLayer, random_orders
from reproductions.experiment import Options, Row
from reproductions.loading import seed_of
from reproductions.machine import WORKERS, Machine
from reproductions.provenance import library_versions
from reproductions.storage import content_hash, source_hash

QUERIES = 15
EPISODES = {1: 5000, 5: 600}  # by shots
# How an image becomes nodes, and whose nodes: the encoder of that name was trained.
EMBEDDINGS: dict[str, tuple[str, Embedding]] = {
    "FCN 5x5": ("fcn", Embedding(Fcn())),
    "FCN pyramid (5,3)": ("fcn", Embedding(Fcn(), pyramid=(3,))),
    "FCN pyramid (5,2)": ("fcn", Embedding(Fcn(), pyramid=(2,))),
    "FCN pyramid (5,2,1)": ("fcn", Embedding(Fcn(), pyramid=(2, 1))),
    **{f"Grid {n}x{n}": ("grid", Embedding(Grid((n,)))) for n in (6, 5, 4, 3, 2)},
    "Grid pyramid (3,2)": ("grid", Embedding(Grid((3, 2)))),
    "Grid pyramid (5,3)": ("grid", Embedding(Grid((5, 3)))),
    "Grid pyramid (5,2)": ("grid", Embedding(Grid((5, 2)))),
    "Grid pyramid (5,3,2)": ("grid", Embedding(Grid((5, 3, 2)))),
    **{f"Sampling {n}": ("sampling", Embedding(Sampling(n))) for n in (9, 16, 25)},
}
MAIN = {
    "DeepEMD (5x5)": "FCN 5x5",
    "DeepEMD-FCN": "FCN pyramid (5,2,1)",
    "DeepEMD-Grid": "Grid pyramid (5,3,2)",
    "DeepEMD-Sampling": "Sampling 25",
}
COMPARED = {
    "ProtoNet, global, Euclidean": "euclidean",
    "MatchingNet, global, cosine": "cosine",
    "KNN, local, cosine": "nearest nodes",
    "Prediction Fusion, local, cosine": "prediction fusion",
    "DeepEMD-FCN (5x5), local, EMD": "EMD",
}
ONE_ENCODER = "measured on DeepEMD's encoder, published for one that was trained with this very metric"


def rows(options: Options) -> list[Row]:
    """The main results of every data set, and the ablations on miniImageNet, as far as there are encoders.

    Raises:
        UserError: a data set that is there, but not as expected.
    """
    found = []
    for dataset in present(options):
        for table, name, embedding, metric, way, shot in _cells(dataset):
            variant, _ = EMBEDDINGS[embedding]
            if (encoder := trained_encoder(options, dataset, variant)) is None:
                continue
            files, column = _test_images(options, dataset), f"{way}-way {shot}-shot"
            settings: dict[str, Any] = {"way": way, "shot": shot, "queries": QUERIES, "episodes": EPISODES[shot]}
            settings |= {"embedding": embedding, "metric": metric, "encoder": _hash(encoder)}
            if shot > 1:
                settings["layer_lr"] = StructuredLayer().lr
            found.append(
                Row(
                    table=table,
                    row=name,
                    column=column,
                    metric="few_shot_accuracy",
                    solver="emd" if metric == "EMD" else "none",
                    settings=settings,
                    tier="paper",
                    data=BENCHMARKS[dataset].title,
                    data_hash=files.sha256,
                    claim=_claim(table, name, column),
                    differs=ONE_ENCODER if metric != "EMD" else files.check_raw_size() or "",
                )
            )
    return found


def _cells(dataset: str) -> Iterator[tuple[str, str, str, str, int, int]]:
    """Table, row, embedding, metric, ways and shots of what is measured on a data set."""
    for name, embedding in MAIN.items():
        for shot in EPISODES:
            yield dataset, name, embedding, "EMD", 5, shot
    if dataset == "mini_imagenet":
        for way in (5, 10):
            for embedding in EMBEDDINGS:
                yield "embeddings", embedding, embedding, "EMD", way, 1
            for name, metric in COMPARED.items():
                yield "metric_comparison", name, "FCN 5x5", metric, way, 1


def measure(row: Row, options: Options, advance: Callable[[float], None]) -> list[float]:
    """Accuracy in percent of each episode; what several tables show is measured once."""
    key = content_hash(row.settings, row.data_hash, source_hash(), library_versions(), options.seed, options.device)

    def made() -> dict[str, Tensor]:
        return {"accuracies": torch.tensor(_accuracies(row, options, advance), dtype=torch.float64)}

    return options.cache.tensors("accuracies", key, made)["accuracies"].tolist()


@torch.no_grad()
def _accuracies(row: Row, options: Options, advance: Callable[[float], None]) -> list[float]:
    dataset = next(k for k, b in BENCHMARKS.items() if b.title == row.data)
    variant, embedding = EMBEDDINGS[row.settings["embedding"]]
    path, encoder = trained_encoder(options, dataset, variant), ResNet12()
    assert path is not None
    load_encoder(path, encoder)
    # on CUDA the decoding of images would be what takes time
    workers = WORKERS // options.jobs if options.device != "cpu" else 0
    machine = Machine(torch.device(options.device), workers=workers, tell=lambda what, fraction: advance(fraction))
    encoder.eval().to(machine.device)
    files, way, shot = _test_images(options, dataset), row.settings["way"], row.settings["shot"]
    drawn = draw_episodes(files, way, QUERIES, row.settings["episodes"], options.seed + shot, shot)
    nodes = Nodes(encoder, embedding.on(dataset), files, machine, options.cache, row.settings["encoder"])
    found: list[float] = []

    def fitted(support: Tensor) -> Tensor:
        layer, labels = StructuredLayer(), torch.arange(way, device=support.device).repeat(shot)
        generator = torch.Generator().manual_seed(seed_of(options.seed, shot, len(found)))
        order = random_orders(layer.passes, way * shot, generator).to(support.device)
        with torch.enable_grad():
            return layer.fitted(support[None], labels, [order])[0]

    for x, episode in zip(nodes.of(drawn, seed_of(options.seed, shot)), drawn, strict=True):
        found.append(accuracy(x, episode, row.settings["metric"], fitted if shot > 1 else None))
        advance(len(found) / len(drawn))
    return found


@cache
def _test_images(options: Options, dataset: str) -> ImageFiles:
    if options.data is None:
        raise UserError("the paper's data sets need --data")
    return FEW_SHOT[dataset](options.data, "test")


@cache
def _hash(path: Path) -> str:
    return content_hash(path.read_bytes())[:16]


def _claim(table: str, row: str, column: str) -> Claim | None:
    try:
        return load_paper("deepemd").claim(table, row, column)
    except KeyError:
        return None
