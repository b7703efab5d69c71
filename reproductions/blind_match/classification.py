"""Unsupervised classification: clusters of images are matched to the names of classes (paper, Sec. 5.4, Table 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor

from reproductions.blind_match.method import matching_accuracy
from reproductions.blind_match.sampling import GLOBAL_SEED, half_of

STARTS = 100  # of k-means


@dataclass(frozen=True)
class Clusters:
    """Half of the images, clustered.

    Attributes:
        centres: of the clusters, of length 1, float64 ``(n, d)``: what stands in for the prototypes of classes.
        assigned: the cluster of every image of the half, int64 ``(m,)``.
        labels: its class, int64 ``(m,)``.
    """

    centres: Tensor
    assigned: Tensor
    labels: Tensor

    @property
    def counts(self) -> Tensor:
        """How many images of a cluster are of a class: int64 ``(n, n)``, clusters by classes."""
        n = len(self.centres)
        return torch.bincount(n * self.assigned + self.labels, minlength=n * n).reshape(n, n)

    @property
    def best(self) -> Tensor:
        """The class of every cluster that makes the most images right, int64 ``(n,)``: the truth it is held to."""
        return torch.from_numpy(linear_sum_assignment(self.counts.numpy(), maximize=True)[1])


@dataclass(frozen=True)
class Classified:
    """What a matching of clusters to classes is worth, in percent.

    Attributes:
        accuracy: images whose cluster was matched to their class.
        best_accuracy: the same of the best matching there is for these clusters.
        matching_accuracy: clusters that were matched as the best matching has them.
    """

    accuracy: float
    best_accuracy: float
    matching_accuracy: float


def cluster_centres(embeddings: Tensor, labels: Tensor, n: int, local_seed: int, n_init: int = STARTS) -> Clusters:
    """K-means on the half of the images that a seed looks at, on embeddings as they are, not of length 1.

    Args:
        embeddings: of all images ``(images, d)``.
        labels: their classes 0 … n − 1, int64 ``(images,)``, of which k-means knows nothing.
        n: clusters, as many as there are classes.
        local_seed: of the half. K-means itself starts from the same seed always.
        n_init: starts of k-means (k-means++), of which the best counts.

    Raises:
        ValueError: as many labels as embeddings are expected, labels below n, and n images at least in a half.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(f"one label an embedding: {tuple(labels.shape)} for embeddings {tuple(embeddings.shape)}")
    if not bool(((labels >= 0) & (labels < n)).all()):
        raise ValueError(f"labels must be 0 … {n - 1}, not {int(labels.min())} … {int(labels.max())}")
    chosen = half_of(len(labels), local_seed)
    if len(chosen) < n:
        raise ValueError(f"{n} clusters need {n} images at least, and half of them are {len(chosen)}")
    means = KMeans(n_clusters=n, init="k-means++", n_init=n_init, random_state=GLOBAL_SEED)
    means.fit(embeddings[chosen].numpy())
    centres = F.normalize(torch.from_numpy(means.cluster_centers_).double(), dim=-1)
    return Clusters(centres, torch.from_numpy(means.labels_).long(), labels[chosen])


def classified(clusters: Clusters, permutation: Tensor) -> Classified:
    """How good it is to call every image by the class that its cluster was matched to.

    Args:
        clusters: of the images.
        permutation: π, the class of every cluster, int64 ``(n,)``.
    """
    best = clusters.best
    return Classified(
        accuracy=matching_accuracy(permutation[clusters.assigned], clusters.labels).item(),
        best_accuracy=matching_accuracy(best[clusters.assigned], clusters.labels).item(),
        matching_accuracy=matching_accuracy(permutation, best).item(),
    )
