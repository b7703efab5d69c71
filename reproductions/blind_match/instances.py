"""What is matched: classes seen from two sides, all of them or those whose alignment is best."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from reproductions.blind_match.method import Distortion, standardised
from solvers import QuadraticAssignmentProblem
from solvers.subset_selection import select_subsets


@dataclass(frozen=True, eq=False)
class Instance:
    """The same n classes on two sides; x[i] and y[i] belong together.

    Attributes:
        x: prototypes of the vision side ``(n, d1)``.
        y: of the language side ``(n, d2)``.
        all_y: those of all classes that these were chosen from, where they are a subset.
        distances: V of GW ``(n, n)``, where it is not that of x brought to length 1.
    """

    x: Tensor
    y: Tensor
    all_y: Tensor | None = None
    distances: Tensor | None = None

    @property
    def n(self) -> int:
        return len(self.x)

    def kernels(self, distortion: Distortion) -> tuple[Tensor, Tensor]:
        """V and L ``(n, n)``, standardised on these classes."""
        V, L = self.raw_kernels(distortion)
        like = None
        if distortion.compatibility.standardised_on_all and self.all_y is not None:
            like = distortion.kernel(self.all_y)
        return standardised(V), standardised(L, like)

    def raw_kernels(self, distortion: Distortion) -> tuple[Tensor, Tensor]:
        """V and L ``(n, n)`` as they are."""
        given = self.distances if distortion.name == "gw" else None
        return distortion.kernel(self.x) if given is None else given.double(), distortion.kernel(self.y)

    def subset(self, members: Tensor) -> Instance:
        """These classes alone."""
        distances = None if self.distances is None else self.distances[members][:, members]
        return Instance(self.x[members], self.y[members], self.y, distances)

    def with_permuted_names(self, seed: int) -> Instance:
        """The same two sides with nothing in common: the language side in a random order."""
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(seed))
        return replace(self, y=self.y[order])

    def problem(self, distortion: Distortion) -> QuadraticAssignmentProblem:
        """The quadratic assignment whose best permutation, one hopes, is the identity."""
        return distortion.problem(*self.kernels(distortion))


def best_subsets(instance: Instance, size: int, count: int, distortion: Distortion, seed: int = 0) -> list[Tensor]:
    """The subsets of classes with the best alignment, best first, int64 ``(size,)`` each.

    Least Σ_{i,k in S} ℓ(V[i, k], L[i, k]) with both kernels standardised on all classes: p-dispersion-sum (sec. 5.2 of
    the paper). They are found by a search, so that a better one may exist.

    Args:
        instance: all classes.
        size: classes of a subset.
        count: how many subsets, if there are as many.
        distortion: what V, L and ℓ are.
        seed: of the search.
    """
    cost = distortion.loss(*instance.kernels(distortion))
    found = select_subsets(cost + cost.mT, size, count, seed=seed)
    return [torch.from_numpy(np.ascontiguousarray(members)) for members in found.members]
