"""Shuffled partners: the released code's scores and permutations, and what must hold of any kernels."""

from __future__ import annotations

import pytest
import torch

from reproductions.blind_match.method import RELEASED, Distortion
from reproductions.blind_match.sampling import language_prototypes, local_seeds, vision_prototypes
from reproductions.blind_match.shuffling import (
    distance_ratios,
    min_max_scaled,
    partial_permutation,
    permuted_alignment,
    shuffled_alignment,
    shuffling_levels,
)

DISTORTIONS = {
    "gw": Distortion("gw", compatibility=RELEASED),
    "cka": Distortion("cka", compatibility=RELEASED),
    "knn3": Distortion("knn", 3, RELEASED),
}


@pytest.mark.parametrize("name", DISTORTIONS)
def test_scores_and_permutations_are_the_released_codes(golden, name):
    data = {k: torch.from_numpy(v) for k, v in golden("blind_match_experiment").items()}
    distortion = DISTORTIONS[name]
    V = distortion.kernel(vision_prototypes(data["vision_embeddings"], data["labels"], 8))
    L = distortion.kernel(language_prototypes(data["language_embeddings"][:, None]))
    expected, levels = data[f"shuffle_{name}_alignment"], data["shuffle_levels"].tolist()
    seeds = local_seeds(3)
    assert seeds == data["local_seeds"].tolist()
    for k, level in enumerate(levels):
        for s, seed in enumerate(seeds):
            p = data["shuffle_perms"][k, s]
            assert permuted_alignment(V, L, distortion, p).item() == pytest.approx(expected[k, s].item(), abs=1e-4)
            assert partial_permutation(8, level, seed).equal(p)
    found = shuffled_alignment(V, L, distortion, levels, seeds)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def planted(n: int, noise: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 8, generator=g, dtype=torch.float64)
    return x, x + noise * torch.randn(n, 8, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_alignment_falls_from_that_of_partners_to_that_of_chance(name):
    distortion = DISTORTIONS[name]
    V, L = map(distortion.kernel, planted(60))
    told: list[float] = []
    scores = shuffled_alignment(V, L, distortion, [0, 0.25, 0.5, 0.75, 1], range(20), told.append)
    assert torch.allclose(scores[0], distortion.alignment(V, L).expand(20))
    assert (scores.mean(1).diff() > 0).all(), "all are distances, or similarities with their sign changed"
    random = torch.stack([distortion.alignment(V[p][:, p], L) for p in map(torch.randperm, [60] * 200)])
    assert abs(scores[-1].mean() - random.mean()) < 5 * random.std() / 20**0.5
    assert told[-1] == 1
    assert len(told) == 100


def test_blocks_of_rows_change_nothing(monkeypatch):
    distortion = Distortion("gw")
    V, L = map(distortion.kernel, planted(30))
    p = partial_permutation(30, 0.5, 3)
    expected = (V[p][:, p] - L).square().sum()
    for entries in (1, 210, 10_000):
        monkeypatch.setattr("reproductions.blind_match.shuffling.ENTRIES", entries)
        torch.testing.assert_close(permuted_alignment(V, L, distortion, p), expected)


def test_a_level_is_the_share_that_may_move():
    for level, least in ((0, 0), (0.02, 0), (0.5, 30), (1, 70)):
        p = partial_permutation(100, level, 7)
        assert p.sort().values.equal(torch.arange(100))
        assert least <= int((p != torch.arange(100)).sum()) <= int(level * 100)
    assert partial_permutation(100, 0.3, 7).equal(partial_permutation(100, 0.3, 7))
    assert not partial_permutation(100, 0.3, 7).equal(partial_permutation(100, 0.3, 8))
    levels = shuffling_levels()
    assert levels[0] == 0
    assert levels[-1] == 1
    assert levels == pytest.approx([k / 20 for k in range(21)], abs=1e-7)
    assert int(levels[14] * 100) == 69, "in single precision 0.7 is less than that"


def test_scores_of_a_family_share_a_scale():
    scaled = min_max_scaled(torch.tensor([[3.0, 5.0], [4.0, 7.0]]))
    assert scaled.tolist() == [[0, 0.5], [0.25, 1]]
    with pytest.raises(ValueError, match="no scale"):
        min_max_scaled(torch.ones(3))


def test_distance_ratios_by_hand():
    pixels = torch.tensor([[1.0, 0], [0, 2], [3, 0], [-1, 0]])  # the first and the third are one direction
    features = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 5]])
    ratios = distance_ratios(features, pixels)
    assert ratios.tolist() == pytest.approx([1, 2**0.5 / 2, 1, 1, 0])
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    assert distance_ratios(3 * x, x).numpy() == pytest.approx(torch.ones(780).numpy())
    with pytest.raises(ValueError, match="3 rows for 4 images"):
        distance_ratios(features[:3], pixels)


def test_what_cannot_be_shuffled_is_refused():
    V = torch.zeros(4, 4)
    for level in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="from 0 to 1"):
            partial_permutation(4, level, 0)
    for other in (torch.zeros(5, 5), torch.zeros(4)):
        with pytest.raises(ValueError, match="both kernels must be"):
            shuffled_alignment(V, other, Distortion(), [0], [0])
