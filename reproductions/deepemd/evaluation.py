"""Test episodes of images on disk: the nodes of their images, and the accuracy of an episode by any metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from reproductions.datasets.image_files import ImageFiles
from reproductions.deepemd import backbone, embedding, patches
from reproductions.deepemd.embedding import Embedding, pyramid_nodes
from reproductions.deepemd.episodes import Episode
from reproductions.deepemd.loading import EpisodeImages, SplitImages, images_of
from reproductions.deepemd.method import NodeMatching, fused_logits, neighbour_logits, pooled_logits
from reproductions.deepemd.patches import Grid, Sampling
from reproductions.loading import batches
from reproductions.machine import Machine
from reproductions.metrics import few_shot_accuracy
from reproductions.storage import Cache, content_hash, source_hash

KEPT = 20_000
"""Splits of up to so many images are encoded once for all episodes; tieredImageNet would take tens of gigabytes."""
AT_ONCE = 512  # patches through the encoder

LOGITS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "EMD": NodeMatching().logits,
    "euclidean": partial(pooled_logits, metric="euclidean"),
    "cosine": partial(pooled_logits, metric="cosine"),
    "nearest nodes": neighbour_logits,
    "prediction fusion": fused_logits,
}


@dataclass(frozen=True, eq=False)
class Nodes:
    """How a trained encoder turns the images of a split into nodes.

    Attributes:
        weights: names the encoder's weights in ``cache``.
    """

    encoder: nn.Module
    embedding: Embedding
    files: ImageFiles
    machine: Machine
    cache: Cache
    weights: str

    @torch.no_grad()
    def of(self, drawn: Sequence[Episode], seed: int) -> Iterator[Tensor]:
        """The nodes of each episode's images, those of the support first, shot by shot.

        Random crops are drawn for every episode anew; what is the same every time is encoded once, and kept.
        """
        if isinstance(self.embedding.transform, Sampling) or len(self.files) > KEPT:
            images = EpisodeImages(self.files, self.embedding.transform, drawn, train=False, seed=seed)
            for cut in batches("testing", images, self.machine, batch_size=None):
                yield self._encoded(self.embedding, cut)
            return
        table = self._table()
        for episode in drawn:
            yield table[images_of(episode)].to(self.machine.device)

    def _table(self) -> Tensor:
        """Nodes of every image of the split; embeddings that share a map, or a grid, share the file of it."""
        transform = self.embedding.transform
        parts = (
            [replace(transform, sizes=(n,)) for n in transform.sizes] if isinstance(transform, Grid) else [transform]
        )
        tables = [self._kept(Embedding(part)) for part in parts]
        if not self.embedding.pyramid:
            return torch.cat(tables, dim=1)
        side = isqrt(tables[0].shape[1])
        return pyramid_nodes(tables[0].mT.unflatten(-1, (side, side)), self.embedding.pyramid)

    def _kept(self, part: Embedding) -> Tensor:
        code = source_hash(tuple(Path(str(m.__file__)) for m in (backbone, embedding, patches)))
        device = self.machine.device.type
        key = content_hash(self.weights, self.files.sha256, asdict(part), code, torch.__version__, device)

        def made() -> dict[str, Tensor]:
            images = SplitImages(self.files, part.transform)
            size = max(1, AT_ONCE // len(images[0]))
            loaded = batches("encoding", images, self.machine, batch_size=size)
            return {"nodes": torch.cat([self._encoded(part, cut).cpu() for cut in loaded])}

        return self.cache.tensors("nodes", key, made)["nodes"]

    def _encoded(self, part: Embedding, cut: Tensor) -> Tensor:
        images = max(1, AT_ONCE // cut.shape[1])
        return torch.cat([part(self.encoder, some) for some in cut.split(images)]).float()


def accuracy(nodes: Tensor, episode: Episode, metric: str, fitted: Callable[[Tensor], Tensor] | None = None) -> float:
    """Accuracy in percent on one episode; its prototypes are the mean support nodes, or fitted to ``(S, N, C)``."""
    way, shot = episode.support.shape
    support, query = nodes.split([way * shot, len(nodes) - way * shot])
    prototype = support.unflatten(0, (shot, way)).mean(0) if fitted is None else fitted(support)
    logits = LOGITS[metric](query, prototype)
    return few_shot_accuracy(logits, episode.labels.to(logits.device)).item()
