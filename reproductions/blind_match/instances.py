"""What is matched: classes seen from two sides, all of them or those whose alignment is best."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    x: Tensor
    y: Tensor
    all_y: Tensor | None = None

    @property
    def n(self) -> int:
        return len(self.x)

    def kernels(self, distortion: Distortion) -> tuple[Tensor, Tensor]:
        """V and L ``(n, n)``, standardised on these classes."""
        V, L = distortion.kernel(self.x), distortion.kernel(self.y)
        like = None
        if distortion.compatibility.standardised_on_all and self.all_y is not None:
            like = distortion.kernel(self.all_y)
        return standardised(V), standardised(L, like)

    def problem(self, distortion: Distortion) -> QuadraticAssignmentProblem:
        """The quadratic assignment whose best permutation, one hopes, is the identity."""
        return distortion.problem(*self.kernels(distortion))


def best_subsets(x: Tensor, y: Tensor, size: int, count: int, distortion: Distortion, seed: int = 0) -> list[Tensor]:
    """The subsets of classes with the best alignment, best first, int64 ``(size,)`` each.

    Least Σ_{i,k in S} ℓ(V[i, k], L[i, k]) with both kernels standardised on all classes: p-dispersion-sum (sec. 5.2 of
    the paper). They are found by a search, so that a better one may exist.

    Args:
        x: prototypes of all classes on the vision side ``(n, d1)``.
        y: on the language side ``(n, d2)``.
        size: classes of a subset.
        count: how many subsets, if there are as many.
        distortion: what V, L and ℓ are.
        seed: of the search.
    """
    V, L = standardised(distortion.kernel(x)), standardised(distortion.kernel(y))
    cost = distortion.loss(V, L)
    found = select_subsets(cost + cost.mT, size, count, seed=seed)
    return [torch.from_numpy(np.ascontiguousarray(members)) for members in found.members]


def subset(x: Tensor, y: Tensor, members: Tensor) -> Instance:
    """These classes alone."""
    return Instance(x[members], y[members], y)
