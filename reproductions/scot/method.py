"""SCOT's matching: cost of cell pairs, transport plan, votes, regularised Hough matching, keypoints.

Notation as in the paper: f_i, g_j are the hyperpixels of the source's and the target's cells, M_ij the cost,
μ_s and μ_t the marginals, T the transport plan. Matrices are held transposed, ``(targets, sources)``: the first
half of a Sinkhorn iteration then fits μ_t and the second μ_s, in the order of the official code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from reproductions.scot.cells import Cells
from reproductions.scot.hough import HoughSpace
from solvers import TransportProblem, solve

EPSILON = 0.05


def similarity(source: Tensor, target: Tensor) -> Tensor:
    """max(cos(f_i, g_j), 0) of hyperpixels ``(n, C)`` and ``(m, C)``, transposed: ``(m, n)``."""
    f, g = F.normalize(source, dim=-1), F.normalize(target, dim=-1)
    return (g @ f.mT).clamp_(min=0)


def cost(source: Tensor, target: Tensor) -> Tensor:
    """M_ij = 1 − max(cos(f_i, g_j), 0), transposed: ``(m, n)``."""
    f, g = F.normalize(source, dim=-1), F.normalize(target, dim=-1)
    return torch.addmm(torch.ones((), dtype=f.dtype), g, f.mT, alpha=-1).clamp_(min=0, max=1)


@dataclass(frozen=True, eq=False)
class Hyperpixels:
    """What is known of an image: a feature for each of its cells, and their weights.

    Attributes:
        features: ``(n, C)``.
        cells: where they lie.
        weights: ``(n,)``, of any positive total.
    """

    features: Tensor
    cells: Cells
    weights: Tensor


@dataclass(frozen=True)
class Matching:
    """Which stages match the cells.

    Attributes:
        transport: by the transport plan; else by the similarity itself.
        iterations: of Sinkhorn: 1 in the official code, 50 in the paper.
        exponent: the power that makes votes: of n_s T (exp2), or of the similarity (exp1).
        hough: weigh the votes by regularised Hough matching.
        solver: registry name, with ε = 0.05 for Sinkhorn; "emd" is ε → 0.
        nearest: a keypoint moves as the nearest cell alone, not as the average of those whose boxes it lies in.
    """

    transport: bool = True
    iterations: int = 1
    exponent: float = 0.5
    hough: bool = True
    solver: Literal["sinkhorn", "emd"] = "sinkhorn"
    nearest: bool = False

    def plan(self, source: Hyperpixels, target: Hyperpixels) -> Tensor:
        """T, ``(targets, sources)``; the weights are scaled to total 1."""
        mu_s, mu_t = (x.weights / x.weights.sum() for x in (source, target))
        settings = {"reg": EPSILON, "tolerance": 1e-8, "max_iterations": self.iterations}
        problem = TransportProblem(cost(source.features, target.features), mu_t, mu_s)
        T = solve(problem, self.solver, **(settings if self.solver == "sinkhorn" else {})).plan
        assert isinstance(T, Tensor)
        return T

    def votes(self, source: Hyperpixels, target: Hyperpixels) -> Tensor:
        """V = (n_s T)^exponent, or max(cos, 0)^exponent without transport, ``(targets, sources)``."""
        if self.transport:
            V = self.plan(source, target).mul_(len(source.cells)).clamp_(min=0)
        else:
            V = similarity(source.features, target.features)
        return V.sqrt_() if self.exponent == 0.5 else V if self.exponent == 1 else V.pow_(self.exponent)

    def matches(self, source: Hyperpixels, target: Hyperpixels) -> Tensor:
        """The target's cell of each source cell, ``(sources,)``."""
        V = self.votes(source, target)
        return HoughSpace(source.cells, target.cells).best_matches(V) if self.hough else V.argmax(0)

    def transferred(self, source: Hyperpixels, target: Hyperpixels, keypoints: Tensor) -> Tensor:
        """Keypoints ``(K, 2)`` of the source image in the target image, in pixels of the resized images."""
        return source.cells.transfer(target.cells, self.matches(source, target), keypoints, self.nearest)
