"""Few-shot episodes: which classes and images make up each N-way K-shot task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Episode:
    """Indices into the data set: ``support`` (way, shot) and ``query`` (way × queries, class by class interleaved)."""

    support: Tensor
    query: Tensor
    labels: Tensor


def sample_indices(
    labels: Sequence[int] | np.ndarray, way: int, per_class: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Index lists ``(way × per_class,)`` of one episode after the other, drawn as the official sampler draws them.

    A random permutation of the classes gives the first ``way``; for each of them a random permutation of its images
    gives the first ``per_class``; the (way, per_class) table is read column by column, so classes interleave.

    Raises:
        ValueError: fewer classes than ``way``, or a class with fewer images than ``per_class``.
    """
    labels = np.asarray(labels)
    classes = [torch.from_numpy(np.flatnonzero(labels == c)) for c in range(int(labels.max()) + 1)]
    if way > len(classes):
        raise ValueError(f"{way}-way episodes need {way} classes, but the split has {len(classes)}")
    if (smallest := min(len(members) for members in classes)) < per_class:
        raise ValueError(f"an episode takes {per_class} images of each class, but the smallest class has {smallest}")
    while True:
        chosen = torch.randperm(len(classes), generator=generator)[:way]
        rows = [classes[c][torch.randperm(len(classes[c]), generator=generator)[:per_class]] for c in chosen]
        yield torch.stack(rows).t().reshape(-1)


def episodes(
    labels: Sequence[int] | np.ndarray, way: int, shot: int, queries: int, count: int, seed: int
) -> Iterator[Episode]:
    """``count`` episodes; the same seed gives the same episodes on every machine."""
    generator = torch.Generator().manual_seed(seed)
    drawn = sample_indices(labels, way, shot + queries, generator)
    for _ in range(count):
        indices = next(drawn)
        support = indices[: way * shot].reshape(shot, way).t()
        yield Episode(support, indices[way * shot :], torch.arange(way).repeat(queries))
