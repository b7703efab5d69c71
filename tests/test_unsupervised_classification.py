"""Clusters of images matched to classes, on blobs whose classes are known."""

from __future__ import annotations

import itertools

import pytest
import torch

from reproductions.blind_match.classification import Clusters, classified, cluster_centres
from reproductions.blind_match.method import Distortion, standardised
from reproductions.blind_match.sampling import half_of, vision_prototypes

N, IMAGES, DIMENSIONS = 6, 240, 12


def blobs(spread: float = 0.3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, labels, and the centres that they scatter around."""
    g = torch.Generator().manual_seed(1)
    centres = 4 * torch.randn(N, DIMENSIONS, generator=g)
    labels = torch.randint(N, (IMAGES,), generator=g)
    return centres[labels] + spread * torch.randn(IMAGES, DIMENSIONS, generator=g), labels, centres


def test_clear_blobs_are_found_and_named():
    x, labels, centres = blobs()
    clusters = cluster_centres(x, labels, N, local_seed=5, n_init=3)
    half = half_of(IMAGES, 5)
    assert clusters.labels.equal(labels[half])
    assert clusters.counts.sum() == IMAGES // 2
    assert (clusters.counts > 0).sum() == N
    assert torch.allclose(clusters.centres.norm(dim=1), torch.ones(N, dtype=torch.float64))
    assert torch.allclose(clusters.centres, vision_prototypes(x, labels, N, 5)[clusters.best], atol=1e-6)
    distortion = Distortion("gw")
    V, L = (standardised(distortion.kernel(y)) for y in (clusters.centres, centres))
    every = torch.tensor(list(itertools.permutations(range(N))))
    result = classified(clusters, every[distortion.problem(V, L).objective(every).argmin()])
    assert (result.accuracy, result.best_accuracy, result.matching_accuracy) == (100, 100, 100)
    assert cluster_centres(x, labels, N, local_seed=5, n_init=3).assigned.equal(clusters.assigned)


def test_the_share_of_images_by_hand():
    """Cluster 0 has three of class 1 and one of class 0, cluster 1 two of class 0, cluster 2 one of class 2."""
    clusters = Clusters(
        torch.eye(3, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 1, 1, 2]), torch.tensor([1, 1, 1, 0, 0, 0, 2])
    )
    assert clusters.counts.tolist() == [[1, 3, 0], [2, 0, 0], [0, 0, 1]]
    assert clusters.best.tolist() == [1, 0, 2]
    result = classified(clusters, torch.tensor([0, 1, 2]))
    assert result.accuracy == pytest.approx(200 / 7)
    assert result.best_accuracy == pytest.approx(600 / 7)
    assert result.matching_accuracy == pytest.approx(100 / 3)


def test_embeddings_are_clustered_as_long_as_they_are():
    """Two classes in one direction, near and far: of length 1 they would be one."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2
    x = (1 + 9 * labels[:, None]) * torch.tensor([[1.0, 1.0]]) + 0.1 * torch.randn(80, 2, generator=g)
    clusters = cluster_centres(x, labels, 2, local_seed=0, n_init=2)
    assert classified(clusters, clusters.best).accuracy == 100


def test_what_cannot_be_clustered_is_refused():
    x, labels, _ = blobs()
    for arguments, words in (
        ((x, labels[1:], N, 0), "one label an embedding"),
        ((x, labels, N - 1, 0), "labels must be 0 … 4, not 0 … 5"),
        ((x[:10], labels[:10] % 2, 6, 0), "6 clusters need 6 images at least, and half of them are 5"),
    ):
        with pytest.raises(ValueError, match=words):
            cluster_centres(*arguments)
