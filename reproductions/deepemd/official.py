"""DeepEMD on the paper's own data sets: test episodes of images on disk, by an encoder that was trained on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from reproductions import UserError
from reproductions.claims import Claim, load_paper
from reproductions.datasets.few_shot import BENCHMARKS, FEW_SHOT
from reproductions.datasets.image_files import ImageFiles
from reproductions.deepemd.backbone import ResNet12
from reproductions.deepemd.checkpoints import load_encoder, trained_model
from reproductions.deepemd.embedding import Embedding
from reproductions.deepemd.loading import EpisodeImages, batches, draw_episodes, seed_of
from reproductions.deepemd.machine import Machine
from reproductions.deepemd.method import NodeMatching
from reproductions.deepemd.patches import COMMON, NORMALISATIONS, Fcn, Grid, Normalisation, Sampling
from reproductions.deepemd.structured_layer import StructuredLayer, random_orders
from reproductions.experiment import Options, Row
from reproductions.metrics import few_shot_accuracy
from reproductions.storage import content_hash

WAY, QUERIES = 5, 15
EPISODES = {1: 5000, 5: 600}  # by shots
# The published rows: which trained encoder, and how an image becomes nodes.
VARIANTS: dict[str, tuple[str, Callable[[Normalisation], Embedding]]] = {
    "DeepEMD (5x5)": ("fcn", lambda n: Embedding(Fcn(n))),
    "DeepEMD-FCN": ("fcn", lambda n: Embedding(Fcn(n), pyramid=(2, 1))),
    "DeepEMD-Grid": ("grid", lambda n: Embedding(Grid((5, 3, 2), normalisation=n))),
    "DeepEMD-Sampling": ("sampling", lambda n: Embedding(Sampling(25, n))),
}


@dataclass(frozen=True)
class Trained:
    """A data set of the folder, and the file of an encoder for it."""

    dataset: str
    variant: str
    checkpoint: Path


def trained(options: Options) -> list[Trained]:
    """What can be tested: the data sets in ``options.data`` with an encoder beside them, or in the cache."""
    if options.data is None:
        return []
    places = (options.data, options.cache.folder / "deepemd")
    found = []
    for dataset, benchmark in BENCHMARKS.items():
        if not (options.data / benchmark.folder).is_dir():
            continue
        for variant in dict.fromkeys(variant for variant, _ in VARIANTS.values()):
            paths = (trained_model(place, dataset, variant) for place in places)
            if (path := next((p for p in paths if p.exists()), None)) is not None:
                found.append(Trained(dataset, variant, path))
    return found


def rows(options: Options) -> list[Row]:
    """Every published way of embedding × 1 and 5 shots, on every data set with a trained encoder.

    Raises:
        UserError: a data set that is there, but not as expected.
    """
    return [
        Row(
            table=t.dataset,
            row=name,
            column=f"{WAY}-way {shot}-shot",
            metric="few_shot_accuracy",
            solver="emd",
            settings={"shot": shot, "queries": QUERIES, "episodes": count, "encoder": _hash(t.checkpoint)}
            | ({"layer_lr": StructuredLayer().lr} if shot > 1 else {}),
            tier="paper",
            data=BENCHMARKS[t.dataset].title,
            data_hash=_test_images(options, t.dataset).sha256,
            claim=_claim(t.dataset, name, f"{WAY}-way {shot}-shot"),
        )
        for t in trained(options)
        for name, (variant, _) in VARIANTS.items()
        if variant == t.variant
        for shot, count in EPISODES.items()
    ]


@torch.no_grad()
def measure(row: Row, options: Options, advance: Callable[[float], None]) -> list[float]:
    """Accuracy in percent of each episode."""
    variant, embed = VARIANTS[row.row]
    chosen = next(t for t in trained(options) if (t.dataset, t.variant) == (row.table, variant))
    embedding = embed(NORMALISATIONS.get(row.table, COMMON))
    machine = Machine(torch.device(options.device))
    encoder = ResNet12()
    load_encoder(chosen.checkpoint, encoder)
    encoder.eval().to(machine.device)
    shot, files = row.settings["shot"], _test_images(options, row.table)
    drawn = draw_episodes(files, WAY, QUERIES, row.settings["episodes"], options.seed + shot, shot)
    images = EpisodeImages(files, embedding.transform, drawn, train=False, seed=seed_of(options.seed, shot))
    accuracies: list[float] = []
    for patches, episode in zip(batches("testing", images, machine, batch_size=None), drawn, strict=True):
        nodes = embedding(encoder, patches).float()
        support, query = nodes.split([WAY * shot, len(nodes) - WAY * shot])
        prototype = support.unflatten(0, (shot, WAY)).mean(0)
        if shot > 1:
            labels = torch.arange(WAY, device=nodes.device).repeat(shot)
            generator = torch.Generator().manual_seed(seed_of(options.seed, shot, len(accuracies)))
            layer = StructuredLayer()
            order = random_orders(layer.passes, WAY * shot, generator).to(nodes.device)
            with torch.enable_grad():
                prototype = layer.fitted(support[None], labels, [order])[0]
        logits = NodeMatching().logits(query, prototype)
        accuracies.append(few_shot_accuracy(logits, episode.labels.to(nodes.device)).item())
        advance(len(accuracies) / len(drawn))
    return accuracies


@cache
def _test_images(options: Options, dataset: str) -> ImageFiles:
    if options.data is None:
        raise UserError("the paper's data sets need --data")
    return FEW_SHOT[dataset](options.data, "test")


@cache
def _hash(path: Path) -> str:
    return content_hash(path.read_bytes())[:16]


def _claim(dataset: str, row: str, column: str) -> Claim | None:
    try:
        return load_paper("deepemd").claim(dataset, row, column)
    except KeyError:
        return None
