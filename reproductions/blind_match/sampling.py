"""The protocol's random choices: its seeds, the half of the images a seed looks at, and prototypes of classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reproductions import UserError

GLOBAL_SEED = 42


def local_seeds(count: int, seed: int = GLOBAL_SEED) -> list[int]:
    """The first ``count`` seeds that the protocol draws from its global one."""
    return torch.randint(2**32 - 1, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def half_of(n: int, local_seed: int) -> Tensor:
    """Half of n images, whatever their classes: the first n // 2 of a random order, int64 ``(n // 2,)``."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(local_seed))[: n // 2]


def vision_prototypes(embeddings: Tensor, labels: Tensor, classes: int, local_seed: int | None = None) -> Tensor:
    """The mean embedding of every class, of length 1: float64 ``(classes, d)``.

    Args:
        embeddings: of the images ``(n, d)``.
        labels: int64 ``(n,)``.
        classes: how many there are.
        local_seed: of the half of the images that is looked at; all of them when left out.

    Raises:
        UserError: a class without an image.
    """
    if local_seed is not None:
        chosen = half_of(len(labels), local_seed)
        embeddings, labels = embeddings[chosen], labels[chosen]
    counts = torch.bincount(labels, minlength=classes)
    if not bool((counts > 0).all()):
        raise UserError(
            f"class {int(counts.argmin())} has no image among the {len(labels)} that are looked at: the data set needs "
            "more images a class"
        )
    sums = torch.zeros(classes, embeddings.shape[1], dtype=torch.float64)
    return F.normalize(sums.index_add_(0, labels, embeddings.double()) / counts[:, None], dim=-1)


def language_prototypes(embeddings: Tensor) -> Tensor:
    """The mean over the prompts of every class, of length 1: ``(classes, prompts, d)`` → float64 ``(classes, d)``.

    Prompts that are NaN are padding and do not count.
    """
    return F.normalize(embeddings.double().nanmean(-2), dim=-1)
