"""How alignment falls as partners are shuffled: no optimisation, raw kernels (paper, Sec. 3, Fig. 2 and 7 to 9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from reproductions.blind_match.method import Distortion

ENTRIES = 2**19  # of a kernel that are gathered at once: 4 MB
SAME = 1e-6  # distance of two images that are equal, but for the rounding of products


def shuffling_levels(count: int = 21) -> list[float]:
    """The protocol's levels 0 … 1, which it takes in single precision: of 100 members 0.7 shuffles 69."""
    return torch.linspace(0, 1, count, dtype=torch.float32).tolist()


def partial_permutation(n: int, level: float, seed: int) -> Tensor:
    """A permutation of n members, int64 ``(n,)``: int(level · n) random ones are permuted among themselves.

    Any of them may stay where it was. The members of a lower level are among those of a higher one of the same seed.

    Raises:
        ValueError: a level outside 0 … 1.
    """
    if not 0 <= level <= 1:
        raise ValueError(f"a level of shuffling is a number from 0 to 1, not {level!r}")
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: int(level * n)]
    permutation = torch.arange(n)
    permutation[shuffled.sort().values] = shuffled
    return permutation


def permuted_alignment(V: Tensor, L: Tensor, distortion: Distortion, permutation: Tensor) -> Tensor:
    """F of the vision kernel with its members permuted, Σ_ij ℓ(V[p(i), p(j)], L[i, j]), without a permuted copy of V.

    Args:
        V: kernel of the vision side ``(n, n)``.
        L: that of the language side, likewise.
        distortion: whose ℓ it is.
        permutation: p, int64 ``(n,)``.
    """
    rows = max(1, ENTRIES // len(V))
    total = V.new_zeros(())
    for p, part in zip(permutation.split(rows), L.split(rows), strict=True):
        total += distortion.alignment(V[p[:, None], permutation], part)
    return total


def shuffled_alignment(
    V: Tensor,
    L: Tensor,
    distortion: Distortion,
    levels: Sequence[float],
    seeds: Sequence[int],
    advance: Callable[[float], None] = lambda fraction: None,
) -> Tensor:
    """F at every level of shuffling with every seed, ``(levels, seeds)``.

    A distance for GW; for the others a similarity with its sign changed.

    Args:
        V: kernel of the vision side ``(n, n)``, not standardised.
        L: that of the language side, likewise.
        distortion: whose kernels they are.
        levels: shares of the members that are shuffled.
        seeds: one a permutation.
        advance: is told the finished fraction.

    Raises:
        ValueError: kernels of different shapes, or a level outside 0 … 1.
    """
    if V.ndim != 2 or V.shape[0] != V.shape[1] or V.shape != L.shape:
        raise ValueError(f"both kernels must be (n, n) with one n: V {tuple(V.shape)}, L {tuple(L.shape)}")
    permutations = torch.stack([partial_permutation(len(V), level, seed) for level in levels for seed in seeds])
    scores = torch.zeros(len(permutations), dtype=V.dtype)
    for k, permutation in enumerate(permutations):
        scores[k] = permuted_alignment(V, L, distortion, permutation)
        advance((k + 1) / len(permutations))
    return scores.reshape(len(levels), len(seeds))


def min_max_scaled(scores: Tensor) -> Tensor:
    """Scores on 0 … 1, as GW is shown: by the least and the greatest of all models, levels and seeds of a family.

    Raises:
        ValueError: all scores are the same.
    """
    least, greatest = scores.aminmax()
    if not greatest > least:
        raise ValueError("all scores are the same: they have no scale")
    return (scores - least) / (greatest - least)


def distance_ratios(features: Tensor, pixels: Tensor) -> Tensor:
    """Empirical Lipschitz constants of a network f: |f(x) − f(y)| / |x − y| of every pair of images (Fig. 9).

    Features and pixels are brought to length 1 first. Pairs of equal images have no ratio and are left out.

    Args:
        features: f of every image, ``(n, d)``.
        pixels: the images themselves ``(n, D)``, in the same order.

    Returns:
        Float64 ``(pairs,)``, at most n (n − 1) / 2.

    Raises:
        ValueError: not as many features as images.
    """
    if len(features) != len(pixels):
        raise ValueError(f"one row of features an image: {len(features)} rows for {len(pixels)} images")
    i, j = torch.triu_indices(len(pixels), len(pixels), 1)
    f, x = (F.normalize(y.double(), dim=-1) for y in (features, pixels))
    moved, apart = (torch.cdist(y, y)[i, j] for y in (f, x))
    return (moved / apart)[apart > SAME]
