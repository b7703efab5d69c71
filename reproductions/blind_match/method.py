"""Blind matching: the kernels of two sets of embeddings, and the quadratic assignment that aligns them.

Schnaus, Araslanov and Cremers, "It's a (Blind) Match! Towards Vision–Language Correspondence without Parallel Data",
CVPR 2025. With V the kernel of the vision embeddings and L that of the language embeddings, a permutation π matches
vision class i to language class π(i), and

    F(π) = Σ_ik ℓ(V[i, k], L[π(i), π(k)])        GW: ℓ(a, b) = (a − b)²;   else: ℓ(a, b) = −a b.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from solvers import QuadraticAssignmentProblem

Name = Literal["gw", "cka", "knn", "inner_product"]
ROUNDING = 1e-12  # share of a kernel's size below which its spread is an error of floating point
SELF = -2.2e-16  # what the released code puts on the diagonal before it looks for neighbours


@dataclass(frozen=True)
class Compatibility:
    """What the released code does otherwise than its formulas say, each a switch; all are off by default.

    Attributes:
        row_centred_cka: kernels of CKA lose the mean of their rows only; Σ KH ∘ LH is then not HSIC.
        self_as_neighbour: a member is kept from its own neighbours only by a similarity just below zero, so that it
            is one where all others are negative.
        standardised_on_all: of a subset of classes, the language kernel is standardised on all of them; the vision
            kernel on the subset.
        cost_on_own_kernels: the cost of a solver that was given other kernels (LocalCKA: those of CKA) is that of
            these kernels, though it stands beside costs of GW.
        doubled_kernel: the entropic transport is given V and 2 L, which halves its ε.
    """

    row_centred_cka: bool = False
    self_as_neighbour: bool = False
    standardised_on_all: bool = False
    cost_on_own_kernels: bool = False
    doubled_kernel: bool = False


RELEASED = Compatibility(True, True, True, True, True)


@dataclass(frozen=True)
class Distortion:
    """How two sets of embeddings are compared.

    Attributes:
        name: "gw" (Gromov–Wasserstein: distances, squared difference), "inner_product" (distances, minus their
            product), "cka" (centred linear kernels) or "knn" (mutual nearest neighbours).
        k: neighbours, of "knn" alone.
        compatibility: the released code's own ways.

    Raises:
        ValueError: an unknown name, or k < 1.
    """

    name: Name = "gw"
    k: int = 4
    compatibility: Compatibility = Compatibility()

    def __post_init__(self) -> None:
        if self.name not in get_args(Name):
            raise ValueError(f"a distortion is one of {', '.join(get_args(Name))}, not {self.name!r}")
        if self.k < 1:
            raise ValueError(f"k must be at least 1, not {self.k!r}")

    @property
    def title(self) -> str:
        return {"gw": "GW", "cka": "CKA", "knn": f"{self.k}-NN", "inner_product": "inner product"}[self.name]

    def kernel(self, x: Tensor) -> Tensor:
        """The kernel ``(n, n)`` of embeddings ``(n, d)``, not yet standardised, float64.

        Raises:
            ValueError: "knn" with no more than k members.
        """
        x = x.double()
        if self.name in ("gw", "inner_product"):
            return _distances(F.normalize(x, dim=-1))
        if self.name == "cka":
            return self._centred(x / x.std(dim=-1, keepdim=True))
        return self._neighbours(x @ x.mT)

    def _centred(self, x: Tensor) -> Tensor:
        """K H / √tr(KHKH), or H K H in place of K H."""
        KH = x @ x.mT
        KH = KH - KH.mean(-1, keepdim=True)
        norm = (KH * KH.mT).sum((-2, -1)).sqrt()
        if not self.compatibility.row_centred_cka:
            KH = KH - KH.mean(-2, keepdim=True)
        return KH / norm[..., None, None]

    def _neighbours(self, similarity: Tensor) -> Tensor:
        """1/√(nk) for the k most similar others of every row, else 0."""
        n = similarity.shape[-1]
        if n <= self.k:
            raise ValueError(f"{self.k} neighbours need more than {self.k} members, and there are {n}")
        itself = SELF if self.compatibility.self_as_neighbour else -torch.inf
        similarity = similarity.clone()
        similarity.diagonal(0, -2, -1).fill_(itself)
        nearest = similarity.topk(self.k, dim=-1).indices
        return torch.zeros_like(similarity).scatter_(-1, nearest, 1 / math.sqrt(n * self.k))

    def problem(self, V: Tensor, L: Tensor) -> QuadraticAssignmentProblem:
        """min_π F(π), the quadratic assignment of two kernels ``(n, n)``."""
        if self.name == "gw":
            return QuadraticAssignmentProblem.from_gromov_wasserstein(V, L)
        return QuadraticAssignmentProblem.from_similarity(V, L)

    def alignment(self, V: Tensor, L: Tensor) -> Tensor:
        """F(identity): GW is a distance, the others are similarities with their sign changed; ``(*batch,)``."""
        return self.loss(V, L).sum((-2, -1))

    def loss(self, V: Tensor, L: Tensor) -> Tensor:
        """ℓ of every pair of entries."""
        return (V - L).square() if self.name == "gw" else -V * L


def standardised(K: Tensor, like: Tensor | None = None) -> Tensor:
    """K less the mean and over the deviation (n − 1) of what is off the diagonal of ``like``; then a zero diagonal.

    Args:
        K: ``(n, n)``.
        like: the kernel whose mean and deviation count; K itself when left out.

    Raises:
        ValueError: the entries off the diagonal are all the same, but for rounding.
    """
    source = K if like is None else like
    off = source[~torch.eye(len(source), dtype=torch.bool)]
    deviation = off.std()
    if not deviation > ROUNDING * off.square().mean().sqrt():
        raise ValueError("all entries of the kernel off its diagonal are the same: there is nothing to match by")
    return ((K - off.mean()) / deviation).fill_diagonal_(0)


def matching_accuracy(permutation: Tensor, truth: Tensor | None = None) -> Tensor:
    """Percent of the members that are matched to their partner: ``(*batch, n)`` → ``(*batch,)``.

    Args:
        permutation: π, the partner that each member was given.
        truth: its own partner, ``(n,)`` or ``(*batch, n)``; the identity when left out.
    """
    truth = torch.arange(permutation.shape[-1]) if truth is None else truth
    return 100 * (permutation == truth).double().mean(-1)


def _distances(x: Tensor) -> Tensor:
    """Euclidean distances, by differences: exact zeros on the diagonal, and no cancellation near it."""
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
